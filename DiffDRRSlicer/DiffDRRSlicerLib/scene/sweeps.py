"""A simulated sweep: X-rays from many angles as a sequence, which moves the C-arm as it plays.

motion (transform)          a sequence's item: where the C-arm stood
|-- C-arm                   below it, the identity as long as nobody moves it; its X-ray is a sequence's item too
'-- true pose               below it as well
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from torch import Tensor

from DiffDRRCore import Camera, CArm, Pose, XRay
from DiffDRRCore.physics import SimulatedImage
from DiffDRRCore.physics.devices import orbit
from DiffDRRCore.pieces import finished, said
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import add_reference
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.simulation import Scanned, Step
from DiffDRRSlicerLib.scene.tracking_run import own
from DiffDRRSlicerLib.scene.truth import add_masks, finding_masks, numbers_of, painted
from DiffDRRSlicerLib.scene.xrays import add_xray, all_or_nothing

MOST_FRAMES = 1000
__all__ = ["MOST_FRAMES", "Sweep", "find_sweep", "frames", "orbit", "simulate_sweep", "simulating_sweep"]


@dataclass(frozen=True)
class Sweep:
    """The nodes of a sweep.

    Attributes:
        carm: transform of the C-arm.  browser: sequence browser, which plays.  images, motion: sequences.
        masks: sequence of labelmaps, or None.
    """

    carm: Any
    browser: Any
    images: Any
    motion: Any
    masks: Any


def simulate_sweep(
    scene,
    scanned: Scanned,
    camera: Camera,
    arms: Iterable[CArm],
    seed: int | None = 0,
    masks: bool = False,
    source_to_isocenter: float | None = None,
    name: str = "Simulated sweep",
) -> Sweep:
    """X-rays from each of these C-arms, as a C-arm with a sequence. Frame n is the X-ray of `seed` + n.

    `source_to_isocenter` in mm, None is that of the first.

    Raises SceneError for no positions or more than 1000; otherwise as `simulate_xray`. The scene is then as it was.
    """
    return finished(simulating_sweep(scene, scanned, camera, arms, seed, masks, source_to_isocenter, name))


def find_sweep(carm: CArmNode) -> Sweep | None:
    """The sweep that a C-arm's X-ray plays; None where it is no sweep's, or no longer hangs below what moves it."""
    moved, scene = carm.node.GetParentTransformNode(), carm.scene
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")
        played = [node and browser.GetSequenceNode(node) for node in (carm.referred("xray"), moved)]
        if all(played):
            masks = carm.referred("segmentation")
            return Sweep(carm.node, browser, *played, masks and browser.GetSequenceNode(masks))
    return None


def frames(carm: CArmNode, sweep: Sweep) -> Iterator[XRay]:
    """A sweep's X-rays with their poses in the world, as if each was played now; `carm.meta` has the first's seed."""
    motion = carm.node.GetParentTransformNode()
    above, camera, meta = nodes.parent_to_world(motion), carm.camera, carm.meta
    below = np.linalg.solve(nodes.transform_to_world(motion), carm.to_world)
    for number in range(sweep.images.GetNumberOfDataNodes()):
        image = nodes.get_image(sweep.images.GetNthDataNode(number))
        place = nodes.transform_to_parent(sweep.motion.GetNthDataNode(number))
        yield XRay(image, camera, Pose(above @ place @ below), meta)


def simulating_sweep(
    scene, scanned, camera, arms, seed=0, masks=False, source_to_isocenter=None, name="Simulated sweep"
) -> Generator[Step, None, Sweep]:
    """`simulate_sweep`, an image at a time. Nothing is in the scene before the end; close it to cancel."""
    arms = list(arms)
    poses = [arm.pose for arm in arms]
    if not 1 <= len(poses) <= MOST_FRAMES:
        raise SceneError(f"A sweep has 1 to {MOST_FRAMES} positions, not {len(poses)}.")
    seed = secrets.randbits(31) if seed is None else seed
    yield from scanned.preparing()
    taken = _Frames(scanned, camera)
    for number, pose in enumerate(poses):
        step = Step(f"X-ray {number + 1} of {len(poses)}", number / len(poses))
        yield step
        image = scanned.image(camera, pose, seed + number)
        taken.add(image, pose, (yield from said(step, finding_masks(image))) if masks else None)
        del image  # it holds far more than its pixels
    yield Step("Adding the sequence", 1.0)
    scanned.check(scene)
    with all_or_nothing(scene):
        return _added(scene, taken, source_to_isocenter or float(arms[0].source_to_isocenter), name)


class _Frames:
    """What is kept of each X-ray until all are there: pixels, pose, and masks as one image of numbers."""

    def __init__(self, scanned: Scanned, camera: Camera):
        self.scanned, self.camera = scanned, camera
        self.meta: dict[str, Any] = {}  # of the first
        self.pixels: list[Tensor] = []
        self.poses: list[Pose] = []
        self.masks: list[Tensor] = []
        self.numbers: dict[str, int] = {}

    def add(self, image: SimulatedImage, pose: Pose, found: Mapping[str, Tensor] | None) -> None:
        pixels, meta = self.scanned.pixels(image)
        self.meta = self.meta or meta
        self.pixels.append(pixels.detach().cpu().float())
        self.poses.append(pose)
        if found is None:
            return
        self.numbers = numbers_of(dict.fromkeys([*self.numbers, *found]), self.scanned.anatomy)
        self.masks.append(painted(found, self.numbers, image))


def _added(scene, taken: _Frames, source_to_isocenter, name: str) -> Sweep:
    camera, poses = taken.camera, taken.poses
    carm = add_xray(scene, taken.pixels[0], camera, poses[0], taken.meta, name, source_to_isocenter)
    reference = add_reference(carm, poses[0], taken.scanned.anatomy.ct, f"{carm.name} true pose")
    carm.refer("reference", reference)
    motion = _hang(carm, reference)
    browser = nodes.add_node(scene, "vtkMRMLSequenceBrowserNode", f"{carm.name} browser")
    pixels = (_volume("vtkMRMLScalarVolumeNode", image, camera) for image in taken.pixels)
    sequences = [
        _add_sequence(browser, f"{carm.name} images", carm.referred("xray"), pixels),
        _add_sequence(browser, f"{carm.name} motion", motion, map(_transform, poses)),
        _add_mask_sequence(browser, carm, taken) if taken.numbers else None,
    ]
    for sequence in sequences[::2]:
        if sequence is not None:
            own(sequence, carm.node)  # the motion is the true pose's as well
    return Sweep(carm.node, browser, *sequences)


def _hang(carm: CArmNode, reference):
    """Put the C-arm and its true pose below a transform, which is where they are."""
    motion = nodes.add_node(carm.scene, "vtkMRMLLinearTransformNode", f"{carm.name} position")
    nodes.set_transform_to_parent(motion, nodes.transform_to_parent(carm.node))
    for node in (carm.node, reference):
        node.SetAndObserveTransformNodeID(motion.GetID())
        nodes.set_transform_to_parent(node, np.eye(4))
    return motion


def _add_mask_sequence(browser, carm: CArmNode, taken: _Frames):
    shown = add_masks(carm, taken.masks[0], taken.numbers)
    volumes = (_volume("vtkMRMLLabelMapVolumeNode", numbered, carm.camera) for numbered in taken.masks)
    return _add_sequence(browser, f"{carm.name} masks", shown, volumes)


def _add_sequence(browser, name: str, proxy, items):
    """A sequence of nodes, of which the browser shows one in `proxy`; that keeps its attributes and its place."""
    sequence = nodes.add_node(browser.GetScene(), "vtkMRMLSequenceNode", name)
    sequence.SetIndexName("frame")
    sequence.SetIndexUnit("")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
    for number, item in enumerate(items):
        for key in proxy.GetAttributeNames():
            item.SetAttribute(key, proxy.GetAttribute(key))  # a browser copies them with the contents
        sequence.SetDataNodeAtValue(item, str(number))
    browser.AddSynchronizedSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(proxy, sequence, False)
    browser.SetOverwriteProxyName(sequence, False)
    browser.SetSaveChanges(sequence, False)
    return sequence


def _volume(class_name: str, image: Tensor, camera: Camera):
    """A volume node outside of the scene."""
    node = getattr(slicer, class_name)()
    nodes.set_image(node, image.detach().cpu().numpy(), pixels_to_detector(camera))
    return node


def _transform(pose: Pose):
    node = slicer.vtkMRMLLinearTransformNode()
    nodes.set_transform_to_parent(node, pose.matrix.detach().cpu().double().numpy())
    return node
