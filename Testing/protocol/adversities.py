"""X-rays that a CT does not explain: metal, hands, contrast agent, a cast, blades; with the truth beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore import Camera, Pose, Volume, XRay
from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere
from DiffDRRCore.imaging.preprocessing import FLOOR
from DiffDRRCore.physics import Settings, Simulator
from DiffDRRCore.physics.simulation.objects import BeamObject

SETTINGS = Settings(kvp=80.0, scatter=True, grid=True, focal_spot=0.6, blur=2.0, samples=2)
METALS = ("ball", "wire", "screw", "plate", "markers", "nail")


def simulator(volume: Volume, camera: Camera, settings: Settings = SETTINGS) -> Simulator:
    """Of a CT, with noise, scatter and blur; objects by `changed`."""
    made = Simulator(
        volume,
        settings.spectrum(),
        settings.detector_model(),
        exposure=settings.exposure(),
        effects=settings.effects(),
    )
    return settings.gained(made, camera)


def taken(plain: Simulator, camera: Camera, pose: Pose, objects: Sequence[BeamObject] = (), seed: int = 0):
    """The X-ray in line integrals, and bool [H, W]: where the objects are seen (rendered alone)."""
    image = plain.changed(objects=tuple(objects))(camera, pose, seed=seed)
    masks = list(image.objects.values())
    truth = torch.stack(masks).any(dim=0) if masks else torch.zeros(camera.height, camera.width, dtype=torch.bool)
    values = -torch.log((image.counts / image.i0).clamp(min=FLOOR))  # scatter makes air brighter than the open field
    return XRay(values.float(), camera, pose, {"intensity": "attenuation", "logarithmic": True}), truth


def metal(kind: str, center: Tensor, rng: torch.Generator, reach: float = 60.0) -> list[BeamObject]:
    """Metal within `reach` mm of a world point: a steel ball or wire, a titanium screw, plate or nail, or beads."""
    at = center + reach * (2 * torch.rand(3, generator=rng, dtype=torch.float64) - 1)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0]
    low, size = axes.tolist(), float(torch.rand(1, generator=rng))
    steel, titanium = "stainless steel 316L", "Ti6Al4V"
    if kind == "ball":
        return [BeamObject(Sphere(at.tolist(), 3.0 + 9.0 * size), steel)]
    if kind == "wire":
        return [BeamObject(Cylinder(at.tolist(), low[0], 0.8 + 0.6 * size, 140.0), steel)]
    if kind == "screw":
        return [BeamObject(Cylinder(at.tolist(), low[0], 2.0 + 1.5 * size, 40.0 + 40 * size), titanium)]
    if kind == "plate":
        return [BeamObject(Box(at.tolist(), (120.0, 14.0, 3.0 + 2 * size), low), (steel, titanium)[size > 0.5])]
    if kind == "nail":
        return [BeamObject(Cylinder(at.tolist(), low[0], 4.5 + 2 * size, 200.0), titanium)]
    places = center + reach * (2 * torch.rand(12, 3, generator=rng, dtype=torch.float64) - 1)
    return [BeamObject(Sphere(place.tolist(), 1.5), steel, name=f"bead {n}") for n, place in enumerate(places)]


def tool(center: Tensor, pose: Pose) -> list[BeamObject]:
    """A steel retractor, 40 mm wide, reaching into the middle of the image from its side."""
    across, down = pose.rotation[..., :, 0].flatten(), pose.rotation[..., :, 1].flatten()
    along = torch.nn.functional.normalize(across + 0.4 * down, dim=0)
    side = torch.linalg.cross(pose.rotation[..., :, 2].flatten(), along)
    axes = torch.stack([along, side, torch.linalg.cross(along, side)]).tolist()
    return [BeamObject(Box((center + 120 * along).tolist(), (200.0, 40.0, 4.0), axes), "stainless steel 316L")]


def hand(center: Tensor, pose: Pose) -> list[BeamObject]:
    """A hand before the patient: a palm of soft tissue, and fingers with bones."""
    across, down, depth = (pose.rotation[..., :, n].flatten() for n in range(3))
    place = center - 150 * depth + 40 * across
    parts = [BeamObject(Box(place.tolist(), (70.0, 80.0, 25.0), torch.stack([across, down, depth]).tolist()), "muscle")]
    for n in range(4):
        middle = (place + (n - 1.5) * 18 * across - 75 * down).tolist()
        parts.append(BeamObject(Cylinder(middle, down.tolist(), 8.0, 80.0), "muscle", priority=2, name=f"finger {n}"))
        bone = Cylinder(middle, down.tolist(), 4.0, 75.0)
        parts.append(BeamObject(bone, "cortical bone", priority=3, name=f"phalanx {n}"))
    return parts


def vessels(center: Tensor, rng: torch.Generator) -> list[BeamObject]:
    """A tree of vessels full of contrast agent (300 mg/ml iodine, half diluted): a trunk and eight branches."""
    parts = [Cylinder(center.tolist(), (0.1, 0.1, 1.0), 7.0, 200.0)]
    for _ in range(8):
        start = center + torch.tensor([0.0, 0.0, 160.0], dtype=torch.float64) * (torch.rand(1, generator=rng) - 0.5)
        way = torch.nn.functional.normalize(torch.randn(3, generator=rng, dtype=torch.float64), dim=0)
        parts.append(Cylinder((start + 35 * way).tolist(), way.tolist(), 3.0, 80.0))
    return [BeamObject(one, "blood with 150 mg/ml iodine", name=f"vessel {n}") for n, one in enumerate(parts)]


def cast(center: Tensor, axis: Sequence[float] = (0.0, 0.0, 1.0), radius: float = 190.0) -> list[BeamObject]:
    """A plaster shell 8 mm thick of 16 staves about an axis through `center`, with a gap as casts have when split."""
    gypsum = _gypsum()
    along = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    parts, count = [], 16
    for n in range(count - 1):
        angle = 2 * math.pi * (n + 0.5) / count
        out = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        axes = torch.stack([torch.linalg.cross(along, out), along, out]).tolist()
        width = 2 * radius * math.tan(math.pi / count)
        box = Box((center + radius * out).tolist(), (width, 300.0, 8.0), axes)
        parts.append(BeamObject(box, gypsum, name=f"stave {n}"))
    return parts


def _gypsum():
    from DiffDRRCore.physics import Material

    return Material("plaster", 1.5, {"Ca": 0.2328, "S": 0.1862, "O": 0.5576, "H": 0.0234})


def turned_field(height: int, width: int, degrees: float, share: float = 0.75, shift=(0.0, 0.0)) -> Tensor:
    """bool [H, W]: a square of blades, turned, `share` of the shorter side wide, `shift` pixels off the centre."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    x, y = columns - shift[0], rows[:, None] - shift[1]
    angle, half = math.radians(degrees), share * min(height, width) / 2
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return (u.abs() < half) & (v.abs() < half)


def round_field(height: int, width: int, share: float = 0.9, shift=(0.0, 0.0)) -> Tensor:
    """bool [H, W]: a disk, `share` of the shorter side wide, `shift` pixels off the centre."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    return torch.hypot(columns - shift[0], rows[:, None] - shift[1]) < share * min(height, width) / 2


def collimated(xray: XRay, field: Tensor, scatter: float = 0.003, seed: int = 0) -> XRay:
    """An X-ray of line integrals behind blades: outside the field only `scatter` of the open beam, with noise."""
    noise = 1 + 0.05 * torch.randn(field.shape, generator=torch.Generator().manual_seed(seed))
    covered = -torch.log(scatter * noise.clamp(min=0.1)).to(xray.image.dtype)
    return xray.with_image(torch.where(field, xray.image, covered))
