"""Joint angles: how one tracked bone moves on another, as a table and plots over the frames."""

from __future__ import annotations

from pathlib import Path

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.plot import Plot
from DiffDRRSlicerLib.panel.section import fill, fill_table

_COLUMNS = ("Frame", "Flex.", "Abd.", "Rot.", "Lat.", "Ant.", "Dist.")
_NONE = "(none)"
_BONES = {"trackProximalSelector": "trackProximal", "trackDistalSelector": "trackDistal"}


class TrackJointsPart:
    """Two bones, side and points; table and plots, kept up to date with the last tracking."""

    def __init__(self, section):
        self.section, self.panel, self.ui = section, section.panel, section.ui
        self._state, self._shown, self._wrong = None, None, ""
        self._drawn = None  # node of the C-arm whose table was made here, by choices
        self._plots = [Plot(self.ui.trackPlotPlace, name) for name in ("DiffDRRJointAngles", "DiffDRRJointShifts")]
        for name in _BONES:
            getattr(self.ui, name).connect("activated(int)", self._chooser(name))
        self.ui.trackJointTable.connect("cellClicked(int,int)", self._clicked)
        self.ui.trackJointsGroup.connect("toggled(bool)", lambda *_: self.panel.changed())

    def _chooser(self, name: str):
        def chosen(row: int) -> None:
            setattr(self.panel.parameters, _BONES[name], getattr(self.ui, name).itemText(row) if row > 0 else "")

        return chosen

    @property
    def joint(self):
        """What is chosen; None where no two bones are."""
        parameters = self.panel.parameters
        if not parameters.trackProximal or not parameters.trackDistal:
            return None
        of = scene.tracking_joints
        side = of.Side(parameters.trackSide.value)
        points = parameters.trackProximalPoints, parameters.trackDistalPoints
        return of.Joint(parameters.trackProximal, parameters.trackDistal, side, points)

    def apply(self, run) -> None:
        """Bring table and plots of the scene in line with tracking and choices; those of a script or file stay."""
        state = self._state_of(run)
        if state == self._state:
            return
        self._state, self._wrong = state, ""
        if run is None or self.section.running is not None:
            return
        chosen = self.joint is not None and scene.tracking_results.result_state(run) is not None
        if chosen and self.panel.anatomy is not None:
            self._draw(run)
        unchosen = self.joint is None or self._wrong
        if scene.tracking_joints.is_stale(run) or (unchosen and self._drawn is run.carms[0].node):
            scene.tracking_joints.clear_joint(run)
            self._drawn = None

    def _state_of(self, run) -> tuple:
        """Equal for two calls only where table and plots are the same."""
        joint, parameters = self.joint, self.panel.parameters
        kept = None if run is None else (run.carms[0].node, scene.tracking_results.result_state(run))
        points = [] if joint is None else [one and one.GetMTime() for one in joint.points]
        return kept, joint, parameters.trackSmooth, points, parameters.ct, parameters.labels

    def _draw(self, run) -> None:
        from DiffDRRCore.errors import DiffDRRError

        of = scene.tracking_joints
        try:
            course = of.joint_course(run, self.panel.anatomy, self.joint, self.panel.parameters.trackSmooth)
        except DiffDRRError as error:  # what is chosen makes no joint; said in the panel, as it is no answer to a click
            self._wrong = str(error)
            return
        of.show_joint(run, self.joint, *course)
        self._drawn = run.carms[0].node

    def refresh(self, run, bodies) -> None:
        """Offer the bones that were tracked; show what is in the table."""
        parameters = self.panel.parameters
        for name, field in _BONES.items():
            fill(getattr(self.ui, name), [_NONE, *bodies], getattr(parameters, field) or _NONE)
        enough = len(bodies) > 1
        text = "" if enough else "Track two bones or more, each on its own, to see how one moves on the other."
        self.ui.trackJointText.text = self._wrong or text
        self.ui.trackJointText.visible = bool(self._wrong or text)
        rows = [] if run is None else scene.tracking_joints.joint_rows(run)
        if rows != self._shown:
            self._shown = rows
            fill_table(self.ui.trackJointTable, _COLUMNS, [_texts(row) for row in rows])
        self.ui.trackJointTable.visible = bool(rows)
        charts = (None, None) if run is None else scene.tracking_joints.joint_charts(run)
        for plot, chart in zip(self._plots, charts, strict=True):
            plot.show(None if self.ui.trackJointsGroup.collapsed else chart)

    def save(self, run, path: str) -> None:
        """Beside the motions, where there is a joint: their name and "_joint.csv"."""
        if self.joint is not None and not self._wrong:
            file = Path(path).with_name(f"{Path(path).stem}_joint.csv")
            smooth = self.panel.parameters.trackSmooth
            scene.tracking_joints.save_joint(run, self.panel.require_anatomy(), self.joint, file, smooth)

    def close(self) -> None:
        """The scene goes away."""
        self._state, self._shown, self._wrong, self._drawn = None, None, "", None

    def _clicked(self, row: int, _column: int) -> None:
        if self._shown and row < len(self._shown):
            self.section.go(int(self._shown[row][0]))


def _texts(row) -> tuple[str, ...]:
    return str(int(row[0])), *("" if value != value else f"{round(value, 1) + 0.0:.1f}" for value in row[1:])
