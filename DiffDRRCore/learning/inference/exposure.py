"""The part of an X-ray that the beam reached, as networks are taught to look at it: the rest is 0 to them."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.imaging.exposure import upright_field
from DiffDRRCore.imaging.xray import XRay

_LEAST = 0.01  # of the image


def exposed(xray: XRay, mask: Tensor | None = None) -> Tensor:
    """Where the beam reached the detector: bool [H, W] on the CPU, of an X-ray of attenuation.

    Args:
        mask: what is known of it, [H, W] of bool or of numbers (above 0.5); None looks for blades along the image's
            sides and for a round field, and finds none in an image that was cropped to its field.

    Raises LearningError for a mask of another size, or one that leaves nothing.
    """
    if mask is None:
        return upright_field(xray)
    mask = as_tensor(mask).detach().cpu()
    mask = mask if mask.dtype == torch.bool else mask > 0.5
    if mask.shape != xray.image.shape:
        raise LearningError(f"The mask has {list(mask.shape)} pixels, but the X-ray {list(xray.image.shape)}.")
    if float(mask.double().mean()) < _LEAST:
        raise LearningError("The mask leaves next to nothing of the X-ray; it is True where the beam was.")
    return mask
