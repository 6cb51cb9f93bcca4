"""The part of the module's logic that has bones move on their own."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene


class BonesLogic:
    """Methods of `DiffDRRSlicerLogic`. A bone is a linear transform node: its motion from where the CT shows it."""

    def addBone(self, ct, labels, structures, name=None, color=None):
        """A transform node for structures that move as one, with their surface and a copy of their segments below it.

        Registrations of this CT with these labels find it on its own from then on, and DRRs show it where it is.

        :param structures: a name or a list of them, as the labelmap's colour table or the segmentation has them.
        :param color: red, green, blue, 0 to 1.
        """
        return scene.body_parts.add_body(scene.anatomy.Anatomy(ct, labels), structures, name, color).node

    def bones(self, ct, labels) -> list:
        """The transform nodes of the bones of a CT and its labels."""
        return [body.node for body in scene.bodies.BodyNode.of(scene.anatomy.Anatomy(ct, labels))]

    def removeBone(self, bone) -> None:
        """Remove a bone's transform, surface and copied segments; the labels stay, and are shown as before."""
        scene.body_parts.remove_body(scene.bodies.BodyNode(bone))

    def setBone(self, bone, **settings) -> None:
        """Change `name`, `color` (red, green, blue, 0 to 1), `visible` or `locked` (a registration leaves it there)."""
        body = scene.bodies.BodyNode(bone)
        for name, value in settings.items():
            if name not in ("name", "color", "visible", "locked"):
                raise scene.errors.SceneError(f"A bone has no '{name}'; set name, color, visible or locked.")
            setattr(body, name, value)

    def setRest(self, ct, rest) -> None:
        """What all that is in no bone does: it "stays", moves with the "first" bone, or is "left out" of DRRs."""
        scene.bodies.set_rest(ct, rest)

    def setView(self, carm, **settings) -> None:
        """How a C-arm's X-ray counts: fields of `scene.view_settings.ViewSettings`.

        use (with the one that is chosen in the panel), weight, free (not calibrated to the others), degrees and mm (how
        far a free one may be: standard deviations, 0 for no limit), most_degrees and most_mm (no farther; 0 for no
        bound). What of its camera is to be found: source_to_detector, principal_point, radial (standard deviations in
        mm, 0 for what is known); the C-arm gets the camera that `register` finds.
        """
        scene.view_settings.set_view(scene.carm.CArmNode(carm), **settings)

    def addJoint(self, first, second, center=None, **settings):
        """What is known of how two bones stand to each other; a node that registrations of the two follow.

        :param center: a list of points whose middle is the joint's centre; None is the middle between the bones.
        :param settings: deviations and bounds (six each: degrees about and mm along the axes of the second bone's
            motion as the first one sees it, None for free), axes ([3][3], columns in the CT), weight.
        """
        one, other = scene.bodies.BodyNode(first), scene.bodies.BodyNode(second)
        return scene.joints.add_joint(one.anatomy, one, other, center, **settings).node

    def joints(self, ct, labels) -> list:
        """The nodes of the joints between the bones of a CT and its labels."""
        return [joint.node for joint in scene.joints.JointNode.of(scene.anatomy.Anatomy(ct, labels))]

    def setJoint(self, joint, **settings) -> None:
        """Change what `addJoint` takes: center, deviations, bounds, axes, weight."""
        node = scene.joints.JointNode(joint)
        if "center" in settings:
            node.center = settings.pop("center")
        node.change(**settings)

    def removeJoint(self, joint) -> None:
        """Remove it."""
        scene.nodes.remove_node(scene.joints.JointNode(joint).node)

    def attachPoints(self, markups, bone) -> None:
        """Have a list of points on the CT go where a bone goes; `register` uses it as landmarks of that bone."""
        body = scene.bodies.BodyNode(bone)
        scene.bone_landmarks.attach(markups, body, body.anatomy)

    def detachPoints(self, markups) -> None:
        """Have it go with the CT again."""
        body = scene.bone_landmarks.owner(markups)
        if body is not None:
            scene.bone_landmarks.detach(markups, body.anatomy)

    def goTo(self, outcome, number) -> None:
        """Move everything to one of `outcome.minima`, which `register` gives where there are several; 0 is the answer.

        Another `register` refines from there.
        """
        if not 0 <= number < len(outcome.minima):
            raise scene.errors.SceneError(f"There are {len(outcome.minima)} answers to go to, not number {number}.")
        outcome.minima[number].apply(slicer.mrmlScene)

    def showErrorMap(self, ct, labels=None, structures=None) -> list:
        """Colour the bones, or the CT's bone, by the expected error of the last registration; the model nodes."""
        return scene.error_map.show_error_map(scene.anatomy.Anatomy(ct, labels), structures)

    def hideErrorMap(self, ct, labels=None) -> None:
        """Show them in their own colours again."""
        scene.error_map.hide_error_map(scene.anatomy.Anatomy(ct, labels))

    def expectedErrors(self, points, ct, labels=None, bone=None):
        """[N] mm to be expected at points [N, 3] (the CT's own RAS), by the last registration of it or of `bone`."""
        body = None if bone is None else scene.bodies.BodyNode(bone)
        return scene.error_map.expected_errors(scene.anatomy.Anatomy(ct, labels), points, body)
