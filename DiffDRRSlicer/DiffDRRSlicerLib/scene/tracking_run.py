"""Runs of X-rays: a sequence of images that a browser plays into a C-arm's X-ray, of one C-arm or of several together.

A frame is called by its place in the browser, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util

from DiffDRRCore import XRay
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.imaging import preprocess
from DiffDRRCore.imaging.distortion_file import distortion_from_dict
from DiffDRRCore.imaging.xray_reading import UNDISTORTED
from DiffDRRCore.imaging.xray_run import frame_numbers, read_run
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.loading_nodes import frame_count, read_node
from DiffDRRSlicerLib.scene.xrays import all_or_nothing, xray_volume

_OWNED, _OWNER = "DiffDRR.Owned", "DiffDRROwner"  # attribute, and role of a reference


@dataclass(frozen=True)
class XRayRun:
    """C-arms whose X-rays one browser plays.

    Attributes:
        carms: the first is the one in use.  browser: the sequence browser node.
    """

    carms: tuple[CArmNode, ...]
    browser: Any

    def __len__(self) -> int:
        return self.browser.GetNumberOfItems()

    @property
    def frame(self) -> int:
        """The one that is shown; a browser that has not played yet shows the first."""
        return max(0, self.browser.GetSelectedItemNumber())

    def show(self, number: int) -> None:
        """Play to a frame. Raises SceneError where there is none of that number."""
        if not 0 <= number < len(self):
            raise SceneError(f"The run has the frames 0 to {len(self) - 1}; there is no frame {number}.")
        self.browser.SetSelectedItemNumber(int(number))

    @property
    def values(self) -> list[str]:
        """The index values of the frames in the sequences."""
        master = self.browser.GetMasterSequenceNode()
        return [master.GetNthIndexValue(number) for number in range(len(self))]

    def plays(self, node) -> bool:
        """Whether the browser shows a sequence's items in this node."""
        return node is not None and self.browser.GetSequenceNode(node) is not None

    def to_world(self, transform, number: int) -> nodes.Matrix:
        """[4, 4] from below a linear transform to the world, as it is when a frame is shown; nothing is played."""
        matrix, value = np.eye(4), self.values[number]
        while transform is not None:
            sequence = self.browser.GetSequenceNode(transform)
            item = None if sequence is None else sequence.GetDataNodeAtValue(value, True)
            matrix = nodes.transform_to_parent(transform if item is None else item) @ matrix
            transform = transform.GetParentTransformNode()
        return matrix

    def xray(self, carm: CArmNode, number: int) -> XRay | None:
        """A frame as line integrals, with the C-arm's camera; None where this C-arm has no X-ray of it.

        Raises XRayError where nothing says what is bright.
        """
        images = self.browser.GetSequenceNode(xray_volume(carm))
        image = images.GetDataNodeAtValue(self.browser.GetMasterSequenceNode().GetNthIndexValue(number), True)
        if image is None:
            return None
        return preprocess(XRay(nodes.get_image(image).astype("float32"), carm.camera, carm.pose, carm.meta))

    @property
    def assumed(self) -> str:
        """What is not known of the cameras, in a sentence; "" where all is."""
        for carm in self.carms:
            for entry in carm.meta.get("missing", []):
                if entry.startswith((words.DISTANCE, words.SPACING)):
                    return f"The camera of '{carm.name}' is not known ({entry}): motions in mm are only as right as it."
        return ""


def run_path(path: str | Path) -> Path:
    """What `use_run` reads where somebody chose this: a file of many frames, or the folder of one of numbered images.

    Raises ReadError where there is no such file.
    """
    path = Path(path)
    return path.parent if path.is_file() and len(frame_numbers(path)) == 1 else path


def find_run(carms: Iterable[CArmNode]) -> XRayRun | None:
    """The run that these C-arms' X-rays are frames of; None where no browser plays them all."""
    carms = tuple(carms)
    volumes = [carm.referred("xray") for carm in carms]
    if not carms or any(volume is None for volume in volumes):
        return None
    for browser in browsers(carms[0].scene):
        if all(browser.GetSequenceNode(volume) is not None for volume in volumes):
            return XRayRun(carms, browser)
    return None


def require_run(carms: Iterable[CArmNode]) -> XRayRun:
    """As `find_run`. Raises SceneError where a C-arm has no run, or another one than the first."""
    carms = tuple(carms)
    found = find_run(carms)
    if found is not None:
        return found
    for carm in carms:
        xray_volume(carm)
        if find_run([carm]) is None:
            raise SceneError(f"The X-ray of '{carm.name}' is a single image: choose its run of images first.")
    raise SceneError(
        f"'{carms[0].name}' and '{carms[-1].name}' have runs that do not play together: choose the run of one of them "
        "again while both are used."
    )


def use_run(
    carm: CArmNode, images, others: Iterable[CArmNode] = (), find_file: Callable[[str], str | None] | None = None
) -> XRayRun:
    """Make a run's images the X-rays of a C-arm: a sequence of them on its plane, which a browser plays.

    Args:
        images: a sequence node, a volume of many slices, the volume that a browser plays, or the path of a file with
            many frames or of a folder of numbered images. They are copied, and have the size of the C-arm's camera.
        others: C-arms of the same run: where one of them plays already, all play together, frame by frame.
        find_file: as of `loading.load_xray_volume`.

    Raises SceneError, ReadError or XRayError with one sentence; the scene is then as it was.
    """
    volume, found = xray_volume(carm), find_run([carm])
    if found is not None and found.plays(carm.node.GetParentTransformNode()):
        raise SceneError(f"'{carm.name}' plays a run that moves it; load the other run as another X-ray.")
    partner = next((run for run in (find_run([one]) for one in others if one != carm) if run is not None), None)
    with all_or_nothing(carm.scene):
        frames = dict(_placed(carm, images, find_file))
        if len(frames) < 2:
            raise SceneError("A run has two frames or more, this one has one: register it instead.")
        values = _values(list(frames), partner)
        browser = nodes.add_node(carm.scene, "vtkMRMLSequenceBrowserNode", f"{carm.name} run") if not partner else None
        sequence = nodes.add_node(carm.scene, "vtkMRMLSequenceNode", f"{carm.name} images")
        fill_sequence(sequence, volume, dict(zip(values, frames.values(), strict=True)))
    if found is not None:
        _forget(found, volume)
    own(sequence, carm.node)
    play(browser or partner.browser, sequence, volume)
    if partner is None:
        own(browser, carm.node)
        shown = carm.meta.get("frame")
        browser.SetSelectedItemNumber(shown if shown in range(len(frames)) else 0)
    return require_run([carm])


def is_frame_of(carm: CArmNode, images) -> bool:
    """Whether a C-arm's X-ray is a frame of a run, pixel by pixel; `images` as of `use_run`. Of another size: not."""
    volume = carm.referred("xray")
    if volume is None or volume.GetImageData() is None:
        return False
    shown = nodes.get_image(volume)
    try:
        return any(np.array_equal(nodes.get_image(item), shown) for _, item in _placed(carm, images, None))
    except DiffDRRError:  # of another size, or no run: whoever loads it says so
        return False


def fill_sequence(sequence, proxy, items: dict[str, Any]) -> None:
    """Put nodes into a sequence by their index values; the proxy's attributes stay when the browser copies them."""
    sequence.SetIndexName("frame")
    sequence.SetIndexUnit("")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
    for value, item in items.items():
        for key in proxy.GetAttributeNames():
            item.SetAttribute(key, proxy.GetAttribute(key))
        sequence.SetDataNodeAtValue(item, value)


def play(browser, sequence, proxy) -> None:
    """Let a browser show a sequence's items in `proxy`, which keeps its name and its place."""
    with slicer.util.NodeModify(browser):  # else a proxy of its own would be made at the first of these
        browser.AddSynchronizedSequenceNodeID(sequence.GetID())
        browser.AddProxyNode(proxy, sequence, False)
        browser.SetOverwriteProxyName(sequence, False)
        browser.SetSaveChanges(sequence, False)


def own(node, owner) -> None:
    """Remember whose a course, a sequence or a browser is: it goes when that is gone."""
    node.SetAttribute(_OWNED, "1")
    node.SetNodeReferenceID(_OWNER, owner.GetID())


def is_owned(node) -> bool:
    """Whether `own` was ever called for it."""
    return node.GetAttribute(_OWNED) is not None


def owner_of(node):
    """Whose a node is; None where that is gone."""
    return node.GetNodeReference(_OWNER)


def browsers(scene) -> Iterator:
    """All sequence browsers of a scene."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        yield scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")


def _placed(carm: CArmNode, images, find_file) -> Iterator[tuple[str, Any]]:
    """(index value, volume node outside of the scene) of each frame, as the C-arm's camera sees it."""
    camera, undone = carm.camera, carm.meta.get(UNDISTORTED)
    distortion = None if undone is None else distortion_from_dict(undone)
    if isinstance(images, (str, Path)):
        frames = read_run(images, camera=camera)
    else:
        frames = ((number, read_node(images, number, camera, find_file).xray) for number in range(frame_count(images)))
    numeric = slicer.vtkMRMLSequenceNode.NumericIndex
    indexed = not isinstance(images, (str, Path)) and images.IsA("vtkMRMLSequenceNode")
    indexed = indexed and images.GetIndexType() == numeric
    for number, xray in frames:
        xray = xray if distortion is None else xray.undistorted(distortion)
        item = slicer.vtkMRMLScalarVolumeNode()
        nodes.set_image(item, xray.image.detach().cpu().float().numpy(), pixels_to_detector(camera))
        yield images.GetNthIndexValue(number) if indexed else str(number), item


def _values(values: list[str], partner: XRayRun | None) -> list[str]:
    """Index values of the frames: as many as the partner has are the partner's, in their order."""
    if partner is None:
        return values
    if len(values) == len(partner):
        return partner.values
    if not set(values) & set(partner.values):
        raise SceneError(
            f"This run has {len(values)} frames and that of '{partner.carms[0].name}' {len(partner)}, with other "
            "numbers: it is not known which belong together."
        )
    return values


def _forget(run: XRayRun, volume) -> None:
    """Let go of the images that were played before."""
    old = run.browser.GetSequenceNode(volume)
    run.browser.RemoveSynchronizedSequenceNode(old.GetID())
    nodes.remove_node(old)
    if run.browser.GetNumberOfSynchronizedSequenceNodes(True) == 0:
        nodes.remove_node(run.browser)
