"""What a tracking gives to the scene: for each node that moves, a transform above it that a browser plays.

    course  (linear transform, an item of the sequence "... motion", or of "... motion unsmoothed")
    '-- C-arm, bone or patient   (the identity as long as nobody moves it)

The node itself is not played, because a browser would overwrite its attributes with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import slicer

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.tracking_run import XRayRun, fill_sequence, own, play

SMOOTHED, UNSMOOTHED = "motion", "motion unsmoothed"
_COURSE = "DiffDRRCourse"  # roles of the references of a node that moves: not a C-arm's belongings
_SEQUENCES = {SMOOTHED: "DiffDRRCourse.Smoothed", UNSMOOTHED: "DiffDRRCourse.Unsmoothed"}
_CARRIER = "DiffDRRCourse.Carrier"  # what had moved the node with the frames before it was tracked
_STILL = 1e-7  # mm and direction cosines

Places = list[nodes.Matrix]


def recorded(run: XRayRun, moving: Sequence, puts: Sequence[Callable[[], None]]) -> list[Places]:
    """[node][frame] matrices, to what the node's course will hang below, with all put to each frame by `puts`."""
    anchors = [_anchor(node, run.browser) for node in moving]
    places: list[Places] = [[] for _ in moving]
    for put in puts:
        put()
        for node, anchor, kept in zip(moving, anchors, places, strict=True):
            above = np.eye(4) if anchor is None else nodes.transform_to_world(anchor)
            kept.append(np.linalg.solve(above, nodes.transform_to_world(node)))
    return places


def write_courses(run: XRayRun, moving: Sequence, variants: Mapping[str, list[Places]], shown: str) -> list:
    """Hang what moves below transforms that the run's browser plays; returns the nodes that have one.

    Args:
        moving: transform nodes.  variants: what `recorded` gave for "motion" and "motion unsmoothed", all frames.
        shown: the variant that is played.

    A node that stands still gets none; what an earlier tracking gave is replaced.
    """
    anchors = [_anchor(node, run.browser) for node in moving]
    written = []
    for number, (node, anchor) in enumerate(zip(moving, anchors, strict=True)):
        places = {kind: matrices[number] for kind, matrices in variants.items()}
        carrier = carrier_of(node, run)
        node.SetNodeReferenceID(_CARRIER, None if carrier is None else carrier.GetID())
        _take_out(node, anchor)
        first = places[shown][run.frame]
        if all(np.allclose(matrix, first, rtol=0, atol=_STILL) for one in places.values() for matrix in one):
            nodes.set_transform_to_parent(node, first)
            continue
        _hang(run, node, anchor, places, shown)
        written.append(node)
    return written


def show_variant(run: XRayRun, moving: Sequence, kind: str) -> None:
    """Play the courses of these nodes smoothed or not; nothing happens where they are played so."""
    for node in moving:
        course, sequence = course_of(node), sequence_of(node, kind)
        playing = None if course is None else run.browser.GetSequenceNode(course)
        if sequence is None or playing is None or playing is sequence:
            continue
        run.browser.RemoveSynchronizedSequenceNode(playing.GetID())
        play(run.browser, sequence, course)


def moved_nodes(run: XRayRun) -> list:
    """The nodes below courses that the run's browser plays, in the scene's order."""
    scene = run.browser.GetScene()
    transforms = (
        scene.GetNthNodeByClass(index, "vtkMRMLLinearTransformNode")
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode"))
    )
    return [node for node in transforms if course_of(node) is not None and run.plays(course_of(node))]


def course_of(node):
    """The transform above a node that a tracking has put there, or None."""
    return node.GetNodeReference(_COURSE)


def carrier_of(node, run: XRayRun):
    """The transform that moves a node with the frames without any tracking, as a sweep moves its C-arm; or None.

    Where a course has taken its place, the one that was there before.
    """
    kept = node.GetNodeReference(_CARRIER)
    if kept is not None and run.plays(kept):
        return kept
    above = node.GetParentTransformNode()
    while above is not None and (above is course_of(node) or not run.plays(above)):
        above = above.GetParentTransformNode()
    return above


def sequence_of(node, kind: str = SMOOTHED):
    """The sequence of a node's places, "motion" or "motion unsmoothed"; or None."""
    return node.GetNodeReference(_SEQUENCES[kind])


def drop_moves(run: XRayRun) -> None:
    """Put the nodes back to their courses, from where somebody has moved them since."""
    for node in moved_nodes(run):
        if node.GetParentTransformNode() is course_of(node):
            nodes.set_transform_to_parent(node, np.eye(4))


def remove_courses(run: XRayRun, but: Sequence = ()) -> None:
    """Forget what a tracking found, of all nodes but these; all stays where it is now.

    What moved with the frames by itself before, such as a sweep's C-arm, does so again from there.
    """
    kept = {node.GetID() for node in but}
    for node in moved_nodes(run):
        if node.GetID() not in kept:
            place, carrier = nodes.transform_to_world(node), carrier_of(node, run)
            _take_out(node, carrier or _anchor(node, run.browser))
            node.SetNodeReferenceID(_CARRIER, None)
            nodes.set_transform_to_world(node, place)


def is_sequence_of(node, sequence) -> bool:
    """Whether a sequence is one of a node's courses, played or not."""
    return any(sequence_of(node, kind) is sequence for kind in _SEQUENCES)


def forget_course(node) -> None:
    """Remove a node's course, which no browser plays any more; it stays where it is."""
    place, above = nodes.transform_to_world(node), course_of(node).GetParentTransformNode()
    _take_out(node, above)
    nodes.set_transform_to_world(node, place)


def _anchor(node, browser):
    """The first transform above a node that does not move with the frames; None for the world."""
    above = node.GetParentTransformNode()
    while above is not None and (browser.GetSequenceNode(above) is not None or above is course_of(node)):
        above = above.GetParentTransformNode()
    return above


def _take_out(node, anchor) -> None:
    """From below its course, which is removed."""
    old = [course_of(node), *(sequence_of(node, kind) for kind in _SEQUENCES)]
    if old[0] is not None or node.GetParentTransformNode() is not anchor:
        node.SetAndObserveTransformNodeID(None if anchor is None else anchor.GetID())
    for sequence in old[1:]:
        _stop(node.GetScene(), sequence)
    for one in old:
        nodes.remove_node(one)


def _stop(scene, sequence) -> None:
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")
        if sequence is not None and browser.IsSynchronizedSequenceNodeID(sequence.GetID(), True):
            browser.RemoveSynchronizedSequenceNode(sequence.GetID())


def _hang(run: XRayRun, node, anchor, places: Mapping[str, Places], shown: str) -> None:
    course = nodes.add_node(node.GetScene(), "vtkMRMLLinearTransformNode", f"{node.GetName()} course", anchor)
    own(course, node)
    node.SetNodeReferenceID(_COURSE, course.GetID())
    for kind, matrices in places.items():
        sequence = nodes.add_node(node.GetScene(), "vtkMRMLSequenceNode", f"{node.GetName()} {kind}")
        own(sequence, node)
        fill_sequence(sequence, course, dict(zip(run.values, map(_transform, matrices), strict=True)))
        node.SetNodeReferenceID(_SEQUENCES[kind], sequence.GetID())
    nodes.set_transform_to_parent(course, places[shown][run.frame])
    nodes.set_transform_to_parent(node, np.eye(4))
    node.SetAndObserveTransformNodeID(course.GetID())
    play(run.browser, sequence_of(node, shown), course)


def _transform(matrix: nodes.Matrix):
    node = slicer.vtkMRMLLinearTransformNode()
    nodes.set_transform_to_parent(node, matrix)
    return node
