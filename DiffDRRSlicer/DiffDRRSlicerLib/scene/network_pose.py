"""The pose by a network that was trained for the patient, and a registration from there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.errors import DiffDRRWarning, LearningError
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import PARAMETERS, UNITS, deviations_along
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.regions import Mask
from DiffDRRSlicerLib.scene.registration import SceneRegistration
from DiffDRRSlicerLib.scene.results import Row, write_results_table
from DiffDRRSlicerLib.scene.run_progress import Progress


class NetworkRegistration(SceneRegistration):
    """Finds where the C-arms stood from their X-rays alone: by a network, then by a registration from there.

    Drive `steps()` as of a `SceneRegistration`. Where it is cancelled after the network has spoken, the nodes stay at
    the best pose so far, be it the network's. Several C-arms stay fixed to each other. Where only bones are moved, the
    network says where all of them are together; locked ones stay, and the others go there from where they are.

    Args:
        model: a file that a training has written.
        refine: whether to register after it; without, there is no `outcome`, and the table of results holds what the
            network says.
        candidates: whether to try also the views from the opposite side and the mirrored ones, and take the best; of
            several X-rays always.
        warp: of a network that was trained in the frame of a template, the rigid transform between this CT and that: a
            linear transform node that takes the CT's own points to the template's, or an ITK file, as in the training.
        invert_warp: whether the file takes the template's points to the CT's.
        options: of `SceneRegistration`; its region and its collimator count for the network, too.

    Raises as `SceneRegistration`; `steps` raises LearningError for a file that is no network, another patient's CT or
    a camera that the network was not trained for, SceneError for a warp that is missing or not rigid.

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
        warp=None,
        invert_warp: bool = False,
        **options,
    ):
        super().__init__(anatomy, carms, **options)
        if not str(model).strip():
            raise SceneError("Choose a network first: a file model.safetensors that a training has written.")
        self._model, self._refine, self._candidates = Path(model), refine, candidates
        self._warp, self._invert_warp = warp, invert_warp
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
        masks = yield from self._masks()
        yield from self._begin_at(volume, xrays, masks)
        write_results_table(self.carms[0], self._start_rows())
        yield self._say("Done", 1.0)

    def _begin_at(
        self, volume: Volume, xrays: list[XRay], masks: list[Mask | None]
    ) -> Generator[Progress, None, list[Pose]]:
        yield from self._pause("Reading the network")
        model = read_network(self._model, self._warp, self._invert_warp)
        masks = [_tensor(mask, xray) for mask, xray in zip(masks, xrays, strict=True)]
        predictions, candidates = [], self._candidates or len(xrays) > 1
        for carm, xray, mask in zip(self.carms, xrays, masks, strict=True):
            yield from self._pause(f"Asking the network about {carm.name}")
            predictions.append(self._doubted(model.predict, volume, xray, candidates, mask))
        starts = [predictions[0].pose]
        if len(xrays) > 1:
            yield from self._pause("Comparing what the network says of each X-ray")
            starts = self._doubted(model.starts, volume, xrays, masks, predictions)
        self.prediction = predictions[0]
        starts = self._started_at([pose.to("cpu", torch.float64) for pose in starts])
        yield self._prepared("The network has found a pose")
        self._check()
        return starts

    def _started_at(self, found: list[Pose]) -> list[Pose]:
        """Where the engine begins, with the nodes put there; `found`: camera_to_volume by the network.

        Where bones move and others are locked, the C-arms stay where they see these, and the start is the bones' own.
        """
        if self._target != "bodies" or not any(group.body.locked for group in self._groups):
            self._placement.begin_at(found)
            return found
        starts = self._placement.starts
        moved = starts[0] @ found[0].inverse()
        self._groups = [group if group.body.locked else group.moved(moved) for group in self._groups]
        self._placement.begin_bodies_at(self._groups)
        return starts

    def _doubted(self, function: Callable, *arguments):
        """What it returns; its warnings are kept."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DiffDRRWarning)
            result = function(*arguments)
        said = {str(one.message) for one in caught if issubclass(one.category, DiffDRRWarning)}
        self._doubts = sorted({*self._doubts, *said})
        return result

    def _start_rows(self) -> list[Row]:
        if self.prediction is None:
            return []
        said = self.prediction
        rows: list[Row] = [("network: similarity", float(said.similarity), ""), ("network: answer", said.name, "")]
        deviations = deviations_along(said.pose.to("cpu", torch.float64), said.covariance.cpu())
        for name, value, unit in zip(PARAMETERS, deviations, UNITS, strict=True):
            rows.append((f"network: standard deviation, {name}", value, unit))
        return rows + [("warning", text, "") for text in self._doubts]


def read_network(path: Path, warp=None, invert_warp: bool = False):
    """A `DiffDRRCore.learning.PoseModel` of a file; `warp` as of `NetworkRegistration`.

    Raises LearningError for a file that is no network and a warp that it does not need, SceneError for a warp that is
    missing or not rigid.
    """
    from DiffDRRCore.learning import PoseModel

    if warp is not None and not isinstance(warp, (str, Path)):
        warp, invert_warp = _template_to_ct(warp), False
    try:
        return PoseModel.read(path, warp=warp, invert_warp=invert_warp)
    except LearningError as error:
        if warp is None and _is_of_template(path):
            raise SceneError(
                f"The network '{path}' was trained in the frame of a template: choose the rigid transform that takes "
                "this CT to the template (Learn, Advanced, Template; warp in a script)."
            ) from error
        raise


def _tensor(mask: Mask | None, xray: XRay) -> torch.Tensor:
    """Of all pixels for None: where nobody wants the collimator to be looked for, the network does not either."""
    return torch.ones(xray.image.shape, dtype=torch.bool) if mask is None else torch.from_numpy(mask)


def _template_to_ct(node) -> Pose:
    """The template's frame in the CT's own coordinates, of a node that takes the CT's own points to the template's."""
    matrix = nodes.transform_to_world(node)
    if not nodes.is_rigid(matrix):
        raise SceneError(
            f"The transform '{node.GetName()}' is not rigid: register the CT to the template without scale."
        )
    return Pose(torch.from_numpy(np.linalg.inv(matrix)))


def _is_of_template(path: Path) -> bool:
    from DiffDRRCore.learning import read_model
    from DiffDRRCore.learning.inference.pose_model import TEMPLATE

    try:
        frame = read_model(path)[1].get("frame")
    except LearningError:
        return False
    return isinstance(frame, dict) and frame.get("kind") == TEMPLATE


def network_summary(rows: Iterable[Row]) -> str:
    """What the network said, in a sentence, of the rows of a table of results; nothing where it said nothing."""
    values = {name.removeprefix("network: "): value for name, value, _ in rows if name.startswith("network: ")}
    names = ["similarity", *(f"standard deviation, {name}" for name in PARAMETERS)]
    if any(name not in values for name in names):
        return ""
    similarity, *found = (float(values[name]) for name in names)
    return (
        f"The network's pose is like the X-ray by {similarity:.2f}. By its own estimate, which is not checked, it is "
        f"off by {max(found[:3]):.1f} degrees, {max(found[3:5]):.1f} mm in the image and {found[5]:.1f} mm in depth "
        "(standard deviations)."
    )
