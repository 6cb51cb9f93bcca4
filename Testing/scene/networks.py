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
    """What it says: `pose` is camera_to_world in the volume's coordinates. `asked` keeps whether candidates were."""

    def __init__(self, pose: Pose, error: str = "", doubt: str = ""):
        self.pose, self.error, self.doubt, self.asked = pose, error, doubt, []


def answering(monkeypatch, *answers: Answer) -> None:
    """Have `PoseModel.read` give a network that says these for the X-rays in turn; its signatures are the real ones."""
    from DiffDRRCore.learning import inference

    real = inference.PoseModel
    assert "path" in inspect.signature(real.read).parameters
    assert list(inspect.signature(real.predict).parameters) == ["self", "volume", "xray", "candidates"]

    class PoseModel:
        @classmethod
        def read(cls, path):
            assert isinstance(path, Path)
            return cls()

        def __init__(self):
            self.turn = 0

        def predict(self, volume, xray, candidates=True):
            assert isinstance(volume, Volume) and isinstance(xray, XRay)
            assert xray.meta["intensity"] == "attenuation"
            answer = answers[min(self.turn, len(answers) - 1)]
            self.turn += 1
            answer.asked.append(candidates)
            if answer.error:
                raise LearningError(answer.error)
            if answer.doubt:
                warnings.warn(answer.doubt, DiffDRRWarning, stacklevel=2)
            angles, shifts = torch.tensor(DEVIATIONS[:3]).double().deg2rad(), torch.tensor(DEVIATIONS[3:]).double()
            axes = torch.block_diag(answer.pose.rotation, answer.pose.rotation)
            covariance = axes @ torch.cat([angles, shifts]).square().diag() @ axes.T
            return inference.PosePrediction(answer.pose, covariance, volume.center, 0.75, "network", [])

        def starts(self, volume, xrays):
            own = [xray.pose for xray in xrays]
            first = self.predict(volume, xrays[0]).pose
            return [first @ own[0].inverse() @ one for one in own]

    monkeypatch.setattr(inference, "PoseModel", PoseModel)
