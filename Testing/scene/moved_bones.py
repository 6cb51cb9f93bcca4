"""X-rays of two bones of which one has moved, in the scene, and where registrations leave the nodes."""

from __future__ import annotations

import numpy as np
import torch

from DiffDRRCore import CArm, Pose, Renderer, Volume
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.body_parts import add_body
from DiffDRRSlicerLib.scene.registration import SceneRegistration
from DiffDRRSlicerLib.scene.xrays import add_xray
from Testing.scene import bones, kit

QUICK = {"sizes": (32, 48), "search": 0}
MOVED = Pose.exp(torch.tensor([0.06, -0.05, 0.04, 3.0, -2.0, 4.0]).double())
OFF = Pose.exp(torch.tensor([0.03, 0.02, -0.03, 2.0, 3.0, -2.0]).double())


class Case:
    """A CT below a turned transform, with X-rays of it in which the right bone has moved."""

    def __init__(self, scene, primaries=(0.0, 80.0), motions=None):
        self.scene = scene
        above = kit.add_transform(scene, kit.rigid(np.random.default_rng(11)), name="above")
        self.anatomy = Anatomy(bones.add_ct(scene, above), bones.add_labelmap(scene, above))
        self.motions = {0: Pose.identity(), 1: Pose.identity(), 2: MOVED} if motions is None else motions
        self.truths, self.carms = [], []
        for primary in primaries:
            arm = CArm(1000.0, 600.0, self.anatomy.center, primary, 5.0)
            camera = arm.camera(48, 52, (6.5, 6.5), view_from="detector")
            self.truths.append(arm.pose)
            name = f"View {primary:g}"
            image = self.image(camera, self.anatomy.pose_in_volume(arm.pose))
            self.carms.append(add_xray(scene, image, camera, arm.pose, {"intensity": "attenuation"}, name, 600.0))

    def image(self, camera, pose):
        """Bones added up, by moving their grids."""
        hu, labels = (torch.from_numpy(one) for one in bones.voxels())
        total = 0.0
        for number, motion in self.motions.items():
            part = torch.where(labels == number, hu.float(), torch.tensor(-1000.0))
            grid = motion.matrix.numpy() @ bones.grid()
            total = total + Renderer(Volume(part, grid), integrator="siddon")(camera, pose)[0, 0]
        return total

    def make_bones(self, *names):
        return [add_body(self.anatomy, [name]) for name in names or bones.NAMES.values()]

    def run(self, carms=None, **options):
        run = SceneRegistration(self.anatomy, carms or self.carms, **{**QUICK, "find_collimator": False, **options})
        return list(run.steps()), run

    def error(self, body, view=0, number=2) -> float:
        """mm, mean, of the bone's voxels in the camera against the truth; by plain matrices."""
        points = kit.apply(bones.grid(), np.argwhere(bones.voxels()[1] == number)[:, ::-1])
        placed = kit.apply(nodes.transform_to_world(body.node), points)
        found = kit.apply(np.linalg.inv(self.carms[view].pose.matrix.numpy()), placed)
        truth = kit.apply(self.first @ self.motions[number].matrix.numpy(), points)
        truth = kit.apply(np.linalg.inv(self.truths[view].matrix.numpy()), truth)
        return float(np.linalg.norm(found - truth, axis=1).mean())

    @property
    def first(self):
        return kit.rigid(np.random.default_rng(11))
