"""What runs and trackings leave when a node of theirs is deleted: it goes as well, and what was moved stays in place.

Courses and sequences know whose they are (`tracking_run.own`); those of older scenes, and of others, are left alone.
Motions can be tracked again, images cannot be had again: those stay as long as their C-arm, whatever plays them.
"""

from __future__ import annotations

from collections.abc import Iterator

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.tracking_course import course_of, forget_course, is_sequence_of
from DiffDRRSlicerLib.scene.tracking_run import browsers, is_owned, owner_of


def remove_leftovers(scene) -> None:
    """Remove what is left of what is gone.

    Courses go with their C-arm, bone, patient or browser; a tracking's motions with their course; sequences of images
    and of masks with their C-arm alone; a run's browser when it plays nothing any more.
    """
    for course in _owned(scene, "vtkMRMLLinearTransformNode"):
        owner = owner_of(course)
        if owner is None or course_of(owner) is not course:
            nodes.remove_node(course)
        elif not any(browser.GetSequenceNode(course) is not None for browser in browsers(scene)):
            forget_course(owner)
    for sequence in _owned(scene, "vtkMRMLSequenceNode"):
        owner = owner_of(sequence)
        if owner is None or (is_sequence_of(owner, sequence) and course_of(owner) is None):
            for browser in browsers(scene):
                if browser.IsSynchronizedSequenceNodeID(sequence.GetID(), True):
                    browser.RemoveSynchronizedSequenceNode(sequence.GetID())
            nodes.remove_node(sequence)
    for browser in _owned(scene, "vtkMRMLSequenceBrowserNode"):
        if browser.GetNumberOfSynchronizedSequenceNodes(True) == 0:
            nodes.remove_node(browser)


def keep_place(course) -> None:
    """Before a course is removed: what it moves stays where it is. Nothing happens for other nodes."""
    owner = owner_of(course) if is_owned(course) else None
    if owner is not None and course.IsA("vtkMRMLTransformNode") and owner.GetParentTransformNode() is course:
        place, above = nodes.transform_to_world(owner), course.GetParentTransformNode()
        owner.SetAndObserveTransformNodeID(None if above is None else above.GetID())
        nodes.set_transform_to_world(owner, place)


def _owned(scene, kind: str) -> Iterator:
    found = [scene.GetNthNodeByClass(index, kind) for index in range(scene.GetNumberOfNodesByClass(kind))]
    return (node for node in found if is_owned(node))
