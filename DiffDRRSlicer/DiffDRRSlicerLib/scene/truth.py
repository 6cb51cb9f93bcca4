"""Where structures and implants are seen on a simulated X-ray, as a labelmap on its pixels."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from DiffDRRCore.physics import SimulatedImage
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.datasets import add_segmentation


def finding_masks(image: SimulatedImage) -> Generator[str, None, dict[str, Tensor]]:
    """{name: boolean [H, W]} of structures, then implants, those that are seen; yields what is done, one at a time."""
    found = {}
    for kind in (image.labels, image.objects):
        for name in kind:
            yield f"Looking for {name}"
            if bool(kind[name].any()):
                found[f"{name} (model)" if name in found else name] = kind[name]
    return found


def numbers_of(names, anatomy: Anatomy) -> dict[str, int]:
    """A number for each name: the structures' own, and the next free ones."""
    known = {name: number for number, name in anatomy.structures.items()} if anatomy.labels is not None else {}
    numbers, last = {}, max(known.values(), default=0)
    for name in names:
        last += name not in known
        numbers[name] = known.get(name, last)
    return numbers


def painted(masks: Mapping[str, Tensor], numbers: Mapping[str, int], image: SimulatedImage) -> Tensor:
    """One image of numbers, int16 [H, W] as `image`: implants over structures, and of each the smaller on top.

    What overlaps in an X-ray has one number only; the masks themselves have all of it.
    """
    order = sorted(masks, key=lambda name: (name not in image.labels, -int(masks[name].sum())))
    result = torch.zeros(image.counts.shape, dtype=torch.int16)
    for name in order:
        result[masks[name].cpu()] = numbers[name]
    return result


def add_masks(carm: CArmNode, numbered: Tensor, numbers: Mapping[str, int]):
    """The labelmap volume of role "segmentation" with an image of `painted`."""
    return add_segmentation(carm, numbered, {number: name for name, number in numbers.items()}, ["", carm.name])
