"""The CT of a scene, with its structures, as the renderer wants it.

A volume is prepared for rendering once and kept; moving the patient must not cost that again. So where all transforms
above the CT are rigid, the volume stays in the CT's own coordinates and the C-arm is brought there; only a scale or
shear above it goes into the volume's grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from weakref import WeakKeyDictionary

import numpy as np
import slicer.util
import torch

from DiffDRRCore import Pose, Renderer, Volume
from DiffDRRCore.pieces import finished, said
from DiffDRRCore.registration.problem.models import without_air
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.labels import labels_state, reading_labels

_MOST_KEPT = 2
_MOST_RENDERERS = 24  # of a volume: of bones, at rest and while something moves
_SLAB = 2**20  # voxels that are read at a time
_present: WeakKeyDictionary[Volume, frozenset[int]] = WeakKeyDictionary()
_kept: OrderedDict[tuple, tuple[Volume, dict]] = OrderedDict()  # state of the nodes: (Volume, its renderers)


def forget() -> None:
    """Free the volumes that are kept for the next rendering; a scene that closes calls it."""
    _kept.clear()


class Anatomy:
    """A CT volume node and, optionally, a labelmap volume or a segmentation node that names its structures.

    Raises SceneError where there is no CT, or it has no voxels.
    """

    def __init__(self, ct, labels=None):
        if ct is None:
            raise SceneError("Choose a CT volume first.")
        if ct.GetImageData() is None or ct.GetImageData().GetNumberOfPoints() == 0:
            raise SceneError(f"The CT '{ct.GetName()}' has no voxels; load it again, or choose another volume.")
        if ct.GetImageData().GetNumberOfScalarComponents() != 1:
            raise SceneError(f"'{ct.GetName()}' has colours; a CT has one value in each voxel.")
        self.ct, self.labels = ct, labels

    @property
    def to_world(self) -> nodes.Matrix:
        """[4, 4] rigid, from the coordinates of `volume` to the world."""
        matrix = nodes.parent_to_world(self.ct)
        return matrix if nodes.is_rigid(matrix) else np.eye(4)

    @property
    def is_scaled(self) -> bool:
        """Whether transforms above the CT are not rigid, so that `volume` is in the world's coordinates."""
        return not nodes.is_rigid(nodes.parent_to_world(self.ct))

    @property
    def volume(self) -> Volume:
        """The CT, in its own coordinates where transforms above it are rigid, else in the world's; float32 HU.

        Raises SceneError for transforms that are not linear, VolumeError for voxels that are not finite.
        """
        return self._prepared()[0]

    def renderer(self, structures=None, integrator: str = "siddon", finest: float = 0.0) -> Renderer:
        """A renderer of everything, or of the structures of these names or numbers alone; kept for the next call.

        `finest`: mm; smaller voxels are averaged to blocks of at most that. Poses are brought to its coordinates by
        `pose_in_volume`.
        """
        volume, renderers = self._prepared()
        blocks = tuple(max(1, int(finest // length)) for length in volume.spacing.flip(0).tolist())
        key = (integrator, None if not structures else tuple(structures), blocks)
        if key not in renderers:
            numbers = [volume.label_id(one) if isinstance(one, str) else int(one) for one in structures or ()]
            if numbers or max(blocks) > 1:
                volume = finished(volume.coarsening(blocks, numbers or None))
            while len(renderers) >= _MOST_RENDERERS:
                renderers.pop(next(iter(renderers)))
            renderers[key] = Renderer(without_air(volume) if numbers else volume, integrator=integrator)
        return renderers[key]

    @property
    def structures(self) -> dict[int, str]:
        """{number: name} of the structures that have voxels in the CT."""
        names = self.volume.label_names
        return {number: names.get(number, str(number)) for number in sorted(self.present_labels) if number != 0}

    @property
    def present_labels(self) -> frozenset[int]:
        """The numbers that voxels of the CT have, 0 for background too; counted once for each `volume`."""
        volume = self.volume
        if volume not in _present:
            _present[volume] = frozenset(volume.present_labels)
        return _present[volume]

    @property
    def center(self) -> np.ndarray:
        """[3] world mm, the middle of the CT: what the patient is turned about."""
        to_world = nodes.parent_to_world(self.ct) @ nodes.volume_grid(self.ct)
        return nodes.transformed(to_world, (np.array(self.ct.GetImageData().GetDimensions()) - 1) / 2)

    def pose_in_volume(self, pose: Pose) -> Pose:
        """A camera_to_world as camera_to_volume: what `renderer` and `volume` go with."""
        return Pose(torch.from_numpy(np.linalg.inv(self.to_world))) @ pose

    def pose_in_world(self, pose: Pose) -> Pose:
        """The inverse of `pose_in_volume`."""
        return Pose(torch.from_numpy(self.to_world)) @ pose

    @property
    def state(self) -> tuple:
        """Equal for two calls only where `volume` is the same; quick."""
        return self._state()

    def preparing(self) -> Generator[str, None, Volume]:
        """What `volume` gives, read in pieces of some milliseconds where it is not kept yet: yields what is done.

        Raises as `volume`.
        """
        state = self._state()
        if state not in _kept:
            _kept[state] = ((yield from self._reading()), {})
            if len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(state)
        return _kept[state][0]

    def _prepared(self) -> tuple[Volume, dict]:
        state = self._state()
        if state not in _kept:
            for _ in self.preparing():
                pass
        _kept.move_to_end(state)
        return _kept[state]

    def _state(self) -> tuple:
        """Equal for two calls only where `_reading` would give the same: VTK never gives a time stamp twice."""
        labels = None if self.labels is None else labels_state(self.labels, self.ct)
        return self.ct.GetImageData().GetMTime(), self._grid().tobytes(), labels

    def _grid(self) -> nodes.Matrix:
        """[4, 4] voxel index to the coordinates of `volume`."""
        return self._above() @ nodes.volume_grid(self.ct)

    def _above(self) -> nodes.Matrix:
        matrix = nodes.parent_to_world(self.ct)
        return np.eye(4) if nodes.is_rigid(matrix) else matrix

    def _reading(self) -> Generator[str, None, Volume]:
        voxels = slicer.util.arrayFromVolume(self.ct)
        hu, deep = np.empty(voxels.shape, dtype=np.float32), max(1, _SLAB // voxels[0].size)
        for first in range(0, len(hu), deep):
            hu[first : first + deep] = voxels[first : first + deep]
            yield "Reading the CT"
        labels, names = None, None
        if self.labels is not None:
            yield "Reading the structures"
            numbers, names = yield from said("Reading the structures", reading_labels(self.labels, self.ct))
            labels = torch.from_numpy(numbers)
        return Volume(torch.from_numpy(hu), self._grid(), labels, names)
