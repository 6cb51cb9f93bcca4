"""The pose by a network that was trained for the patient, and a registration from there."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from pathlib import Path

import torch

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.errors import DiffDRRWarning
from DiffDRRCore.geometry import stack_poses
from DiffDRRSlicerLib.scene.accuracy import PARAMETERS, UNITS, deviations_along
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.registration import Progress, SceneRegistration
from DiffDRRSlicerLib.scene.results import Row, write_results_table


class NetworkRegistration(SceneRegistration):
    """Finds where the C-arms stood from their X-rays alone: by a network, then by a registration from there.

    Drive `steps()` as of a `SceneRegistration`. Where it is cancelled after the network has spoken, the nodes stay at
    the best pose so far, be it the network's. Several C-arms stay fixed to each other.

    Args:
        model: a file that a training has written.
        refine: whether to register after it; without, there is no `outcome`, and the table of results holds what the
            network says.
        candidates: whether to try also the views from the opposite side and the mirrored ones, and take the best; of
            several X-rays always.
        options: of `SceneRegistration`.

    Raises as `SceneRegistration`; `steps` raises LearningError for a file that is no network, another patient's CT or
    a camera that the network was not trained for.

    Attributes:
        prediction: what the network says of the first X-ray, with `pose` in the coordinates of `anatomy.volume`;
            None before.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        carms: CArmNode | Iterable[CArmNode],
        model: str | Path,
        refine: bool = True,
        candidates: bool = True,
        **options,
    ):
        super().__init__(anatomy, carms, **options)
        if not str(model).strip():
            raise SceneError("Choose a network first: a file model.safetensors that a training has written.")
        self._model, self._refine, self._candidates = Path(model), refine, candidates
        self.prediction, self._doubts = None, []

    @property
    def ending(self) -> str:
        """As of a `SceneRegistration`."""
        if self.prediction is None or self.outcome is not None:
            return super().ending
        if self._cancelled:
            return "Cancelled: the network's pose is kept."
        return super().ending if self._refine else ""

    def _run(self) -> Generator[Progress, None, None]:
        if self._refine:
            yield from super()._run()
            return
        self._remember_start()
        volume, xrays = yield from self._inputs()
        yield from self._begin_at(volume, xrays)
        write_results_table(self.carms[0], self._start_rows())
        yield self._say("Done", 1.0)

    def _begin_at(self, volume: Volume, xrays: list[XRay]) -> Generator[Progress, None, list[Pose]]:
        from DiffDRRCore.learning.inference import PoseModel

        yield from self._pause("Reading the network")
        model = PoseModel.read(self._model)
        yield from self._pause("Asking the network")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DiffDRRWarning)
            self.prediction = model.predict(volume, xrays[0], candidates=self._candidates)
            starts = [self.prediction.pose] if len(xrays) == 1 else model.starts(volume, xrays)
        self._doubts = sorted({str(one.message) for one in caught if issubclass(one.category, DiffDRRWarning)})
        self._move(stack_poses([pose.to("cpu", torch.float64) for pose in starts]))
        yield self._prepared("The network has found a pose")
        self._check()
        return starts

    def _start_rows(self) -> list[Row]:
        if self.prediction is None:
            return []
        said = self.prediction
        rows: list[Row] = [("network: similarity", float(said.similarity), ""), ("network: answer", said.name, "")]
        deviations = deviations_along(said.pose.to("cpu", torch.float64), said.covariance.cpu())
        for name, value, unit in zip(PARAMETERS, deviations, UNITS, strict=True):
            rows.append((f"network: standard deviation, {name}", value, unit))
        return rows + [("warning", text, "") for text in self._doubts]


def network_summary(rows: Iterable[Row]) -> str:
    """What the network said, in a sentence, of the rows of a table of results; nothing where it said nothing."""
    values = {name.removeprefix("network: "): value for name, value, _ in rows if name.startswith("network: ")}
    names = ["similarity", *(f"standard deviation, {name}" for name in PARAMETERS)]
    if any(name not in values for name in names):
        return ""
    similarity, *found = (float(values[name]) for name in names)
    return (
        f"The network's pose is like the X-ray by {similarity:.2f}; it is sure of it within {max(found[:3]):.1f} "
        f"degrees, {max(found[3:5]):.1f} mm in the image and {found[5]:.1f} mm in depth (standard deviations)."
    )
