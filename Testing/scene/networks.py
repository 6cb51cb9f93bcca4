"""A network that says what it is told to, in the words of `DiffDRRCore.learning.inference`."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import torch

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.errors import DiffDRRWarning, LearningError

DEVIATIONS = (0.5, 1.0, 1.5, 3.0, 2.0, 12.0)  # degrees and mm along the camera's axes


class Answer:
    """What it says: `pose` is camera_to_world in the volume's coordinates.

    `asked` keeps whether candidates were, `masks` the pixels that it was to look at.
    """

    def __init__(self, pose: Pose, error: str = "", doubt: str = ""):
        self.pose, self.error, self.doubt, self.asked, self.masks = pose, error, doubt, [], []


def answering(monkeypatch, *answers: Answer) -> None:
    """Have `PoseModel.read` give a network that says these for the X-rays in turn; its signatures are the real ones."""
    from DiffDRRCore import learning
    from DiffDRRCore.learning.inference import pose_model

    real = learning.PoseModel
    assert "path" in inspect.signature(real.read).parameters
    assert list(inspect.signature(real.predict).parameters) == ["self", "volume", "xray", "candidates", "mask"]
    assert list(inspect.signature(real.starts).parameters) == ["self", "volume", "xrays", "masks", "predictions"]

    class PoseModel:
        @classmethod
        def read(cls, path, device="cpu", warp=None, invert_warp=False):
            assert isinstance(path, Path) and warp is None and not invert_warp
            return cls()

        def __init__(self):
            self.turn = 0

        def predict(self, volume, xray, candidates=True, mask=None):
            assert isinstance(volume, Volume) and isinstance(xray, XRay)
            assert mask is None or (mask.dtype == torch.bool and mask.shape == xray.image.shape)
            assert xray.meta["intensity"] == "attenuation"
            answer = answers[min(self.turn, len(answers) - 1)]
            self.turn += 1
            answer.asked.append(candidates)
            answer.masks.append(mask)
            if answer.error:
                raise LearningError(answer.error)
            if answer.doubt:
                warnings.warn(answer.doubt, DiffDRRWarning, stacklevel=2)
            angles, shifts = torch.tensor(DEVIATIONS[:3]).double().deg2rad(), torch.tensor(DEVIATIONS[3:]).double()
            axes = torch.block_diag(answer.pose.rotation, answer.pose.rotation)
            covariance = axes @ torch.cat([angles, shifts]).square().diag() @ axes.T
            return pose_model.PosePrediction(answer.pose, covariance, volume.center, 0.75, "network", [])

        def starts(self, volume, xrays, masks=None, predictions=None):
            own = [xray.pose for xray in xrays]
            assert len(predictions) == len(masks) == len(xrays)
            first = predictions[0].pose
            return [first @ own[0].inverse() @ one for one in own]

    monkeypatch.setattr(learning, "PoseModel", PoseModel)
