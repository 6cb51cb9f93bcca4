"""The part of the module's logic that follows bones through runs of X-rays."""

from __future__ import annotations

from pathlib import Path

import slicer

from DiffDRRSlicerLib import scene


class TrackingLogic:
    """Methods of `DiffDRRSlicerLogic`. A run is a sequence that a browser plays into the C-arm's X-ray.

    Frames are called by their place in the browser, from 0. Wherever a C-arm is asked for, a list of them is a run of
    several views, which one browser plays together.
    """

    def useRun(self, carm, images, partners=()):
        """Make a run's images the X-rays of a C-arm, as its camera sees them; the sequence browser node.

        :param images: a sequence node, a volume of many slices, or the path of a file with many frames or of a folder
            of numbered images; of the size of the C-arm's X-ray.
        :param partners: C-arm nodes of the same run, played by one browser, frame by frame.
        """
        others = [scene.carm.CArmNode(one) for one in partners]
        find_file = getattr(slicer, "dicomDatabase", None) and slicer.dicomDatabase.fileForInstance
        return scene.tracking_run.use_run(scene.carm.CArmNode(carm), images, others, find_file).browser

    def setKeyframe(self, carm, ct, labels=None, frame=None) -> None:
        """Remember where C-arms and bones stand now as a keyframe of the run.

        :param frame: which the browser shows then; None is the one that is shown.
        """
        run = self._run(carm)
        if frame is not None:
            run.show(frame)
        scene.tracking_keys.set_keyframe(run, scene.anatomy.Anatomy(ct, labels))

    def removeKeyframe(self, carm, ct, frame, labels=None) -> None:
        """Forget a keyframe."""
        scene.tracking_keys.remove_keyframe(self._run(carm), scene.anatomy.Anatomy(ct, labels), frame)

    def keyframes(self, carm) -> list[int]:
        """Numbers of the run's frames that are keyframes."""
        return scene.tracking_keys.keyframes(self._run(carm))

    def track(self, carm, ct, labels=None, progress=None, **options):
        """Follow the bones, or the CT as one, through a run; its browser then moves them over the frames.

        It begins at the keyframes, and without any where all stands now, in the frame that is shown.

        :param progress: called with each step's progress; returning False cancels, and keeps the frames so far.
        :param options: of `scene.tracking.SceneTracking`: first, last, step (frames), target ("carm", "patient" or
            "bodies"), smooth, bodies (none: all bones; []: the CT as one), similarity, structures, acceleration, ...
        :return: the `DiffDRRCore.registration.tracking.TrackingResult`: motions, unsmoothed, lost, interpolated, ...;
            None where it was cancelled before the first frame.
        """
        carms = [scene.carm.CArmNode(one) for one in (carm if isinstance(carm, (list, tuple)) else [carm])]
        run = scene.tracking.SceneTracking(scene.anatomy.Anatomy(ct, labels), carms, **options)
        return scene.tracking.tracked(run.steps(), run, progress)

    def motionSequence(self, node, smooth=True):
        """The sequence of linear transforms that moves a C-arm, a bone or the patient over the frames, or None."""
        return scene.tracking_course.sequence_of(node, scene.tracking_results.variant(smooth))

    def showSmoothed(self, carm, smooth=True) -> None:
        """Play the smoothed motions, or those as they were found."""
        run = self._run(carm)
        moved = scene.tracking_course.moved_nodes(run)
        scene.tracking_course.show_variant(run, moved, scene.tracking_results.variant(smooth))

    def saveTracking(self, path, carm, smooth=True, interpolated=True) -> Path:
        """Write the motions of the last tracking: a table (.csv), Autoscoper's .tra, or everything (.json).

        They take bones from the CT (its own RAS, mm) to where they are with the C-arms as they stood at the start.

        :param interpolated: whether lost frames are written too, with a motion that comes from the others.
        """
        return scene.tracking_results.save_tracking(self._run(carm), path, smooth, interpolated)

    def jointAngles(
        self, carm, ct, labels, proximal, distal, side="right", points=(None, None), smooth=True, path=None
    ):
        """How one bone moved on another in the last tracking, after Grood and Suntay; table and plots are kept.

        :param proximal: name of a tracked bone, on which `distal` moves.
        :param side: of the patient, "right" or "left".
        :param points: a list of four points of each bone: distal and proximal end of the long axis, left, right;
            without them the CT's axes at the distal bone's pivot.
        :param path: of a .csv to write them to.
        :return: (numbers of the frames, `DiffDRRCore.geometry.joints.JointMotion` of as many degrees and mm each).
        """
        of, anatomy, run = scene.tracking_joints, scene.anatomy.Anatomy(ct, labels), self._run(carm)
        joint = of.Joint(proximal, distal, of.Side(side), tuple(points))
        frames, motion = of.joint_course(run, anatomy, joint, smooth)
        of.show_joint(run, joint, frames, motion)
        if path is not None:
            of.save_joint(run, anatomy, joint, path, smooth)
        return frames, motion

    @staticmethod
    def _run(carm):
        carms = carm if isinstance(carm, (list, tuple)) else [carm]
        return scene.tracking_run.require_run([scene.carm.CArmNode(one) for one in carms])
