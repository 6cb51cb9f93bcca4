"""What a network tells of its errors, made true of views that were held out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2

from DiffDRRCore.learning.appearance.appearance import Appearance
from DiffDRRCore.learning.appearance.augmentation import Augmentation
from DiffDRRCore.learning.network.losses import pose_error
from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet
from DiffDRRCore.learning.network.targets import Target
from DiffDRRCore.learning.training.batches import batch
from DiffDRRCore.learning.training.validation import CHI_SQUARED, calibrated, squared_distances, targets_of
from Testing.core.learning import scene

pytest.importorskip("monai")


def test_nine_of_ten_poses_lie_in_the_ellipsoid():
    """However wrong the deviations were, by one factor and the bias of one layer alone."""
    subject = scene.subject()
    sampler, views = scene.sampler(), scene.views(20)
    target = Target.from_views(views.camera, views.pose)
    made = [batch(subject, sampler, Appearance.from_dict(), Augmentation({}), 0, n, count=10) for n in range(2)]
    batches = [(one, targets_of(subject)) for one in made]
    net = PoseNet(Architecture("resnet10", (32, 32), hidden=16), seed=0).eval()
    with torch.no_grad():
        net.deviation[-1].bias += 2.0
    found = calibrated(net, target, batches)
    assert math.isclose(CHI_SQUARED, chi2.ppf(0.9, 6), rel_tol=1e-4)
    inside = 0
    for one in made:
        outputs = found(one.input)
        pose = target.decode(one.views.camera, outputs.rotation, outputs.offsets)
        xi = pose_error(pose, one.views.pose).detach()
        squares = (xi / outputs.log_deviation.detach().exp()).square().sum(dim=-1)
        torch.testing.assert_close(squared_distances(found, target, one), squares, check_dtype=False)
        inside += int((squares <= chi2.ppf(0.9, 6)).sum())
    assert inside in (18, 19)
    changed = {name for name, value in found.state_dict().items() if not torch.equal(value, net.state_dict()[name])}
    assert changed == {"deviation.2.bias"}
