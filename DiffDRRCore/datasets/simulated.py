"""X-rays simulated from a CT, for demonstrations, tests and evaluations: the truth is known to the last digit.

The images are made by another route than the one a registration renders by: the exact voxel integrator at several times
the resolution, averaged down as intensities, with Poisson noise, and a gain and an offset that nobody tells the
registration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.datasets.dataset import Dataset, Subject, View, inside
from DiffDRRCore.datasets.phantom import phantom, phantom_landmarks
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.geometry import Camera, CArm, Pose, project
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.rendering import Renderer

PHANTOM = "phantom"


def moved_apart(volume: Volume, motions: Mapping[int | str, Pose]) -> list[Volume]:
    """The CT with some of its structures moved: each a volume of its own, and what is left where it was.

    Args:
        motions: for labels (numbers or names) the rigid motion [4, 4] of the structure (world mm).

    Where a structure was there is air, and where structures overlap their attenuations add up.
    """
    parts = []
    for label, motion in motions.items():
        bone = volume.select(label)
        parts.append(Volume.from_attenuation(bone.attenuation, motion.matrix.to(bone.ijk_to_ras) @ bone.ijk_to_ras))
    numbers = {volume.label_id(label) if isinstance(label, str) else label for label in motions}
    rest = volume.select(sorted(volume.present_labels - numbers))
    return [*parts, Volume.from_attenuation(rest.attenuation, rest.ijk_to_ras)]


def simulated_xray(
    volume: Volume | Sequence[Volume],
    camera: Camera,
    pose: Pose,
    photons: float = 10_000,
    gain: float = 0.7,
    offset: float = 3.0,
    oversampling: int = 4,
    seed: int = 0,
) -> XRay:
    """A noisy X-ray of a volume, in attenuation: gain * ln(photons / counts) + offset.

    Args:
        volume: one, or several whose line integrals add up (`moved_apart`).
        photons: mean number that reach a pixel with nothing in the way; at least half a count is left in each pixel.
        oversampling: rays along each side of a pixel.
        seed: of the Poisson noise.
    """
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    generator = torch.Generator(device=volumes[0].device).manual_seed(seed)
    fine = camera.resized(camera.height * oversampling, camera.width * oversampling)
    with torch.no_grad():
        integrals = sum(Renderer(one, integrator="siddon")(fine, pose) for one in volumes)
    transmitted = avg_pool2d(torch.exp(-integrals.double()), oversampling)[0, 0]
    counts = torch.poisson(photons * transmitted, generator=generator).clamp(min=0.5)
    image = gain * torch.log(photons / counts) + offset
    return XRay(image.float(), camera, pose, {"intensity": "attenuation", "simulated": True})


def points_in_bone(volume: Volume, count: int = 200, threshold: float = 150.0, seed: int = 0) -> Tensor:
    """Random voxel centres [N, 3] (RAS mm) above `threshold` HU, to measure registration errors at; N <= count."""
    kji = torch.nonzero(volume.hu > threshold)
    order = torch.randperm(len(kji), generator=torch.Generator().manual_seed(seed))
    ijk = kji[order[:count].to(kji.device)].flip(-1).double()
    return ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3]


class Simulated(Dataset):
    """One subject whose X-rays are made by `simulated_xray` with C-arms about the CT's centre.

    All of them show the same instant, so they are one group. A view is called by its angles where it has no name.

    Args:
        ct: path of a CT, or "phantom" for the built-in one, of that `shape` (K, J, I) and `spacing` (mm).
        labelmap, label_names: as `Volume.read` takes them.
        landmarks: file of named points in the CT (RAS mm); the phantom has its own.
        views: for each view the positioner angles "primary" (+ LAO), "secondary" (+ CRA) and "roll" in degrees, 0 where
            left out, and a "name" if wanted.
        size, field_mm: pixels and mm of each side of the detector.
        sdd, sod: distances in mm from the source to the detector and to the CT's centre.
        view_from: "source" or "detector", the side the images are seen from.
        photons, oversampling: see `simulated_xray`.
        seed: of the noise; each view has its own.

    Raises DiffDRRError for views of one name, or where shape and spacing are given for a CT that has its own.
    """

    title = "Simulated"

    def __init__(
        self,
        ct: str | Path = PHANTOM,
        labelmap: str | Path | None = None,
        label_names: str | Path | None = None,
        landmarks: str | Path | None = None,
        shape: Sequence[int] | None = None,
        spacing: float | None = None,
        views: Sequence[Mapping] = ({},),
        size: int = 128,
        field_mm: float = 400.0,
        sdd: float = 1020.0,
        sod: float = 850.0,
        view_from: str = "source",
        photons: float = 10_000,
        oversampling: int = 4,
        seed: int = 0,
    ):
        self.ct, self.labelmap, self.label_names, self.landmarks = ct, labelmap, label_names, landmarks
        self.grid = {name: value for name, value in (("shape", shape), ("spacing", spacing)) if value is not None}
        self.views = {_name(view): dict(view) for view in views}
        self.size, self.field_mm, self.sdd, self.sod, self.view_from = size, field_mm, sdd, sod, view_from
        self.photons, self.oversampling, self.seed = photons, oversampling, seed
        if len(self.views) < len(views):
            raise DiffDRRError("Two simulated views have the same name or angles: give each a name of its own.")
        if str(ct) != PHANTOM and self.grid:
            raise DiffDRRError("A shape and a spacing are for the phantom; a CT from a file has its own.")
        if str(ct) == PHANTOM and (labelmap or label_names or landmarks):
            raise DiffDRRError("The phantom has its own labels and landmarks: leave out those files.")

    @property
    def subject_names(self) -> tuple[str, ...]:
        """The CT's name."""
        return (Path(self.ct).name.split(".")[0],)

    def _subject(self, name: str) -> SimulatedSubject:
        return SimulatedSubject(name, self)


class SimulatedSubject(Subject):
    """The subject of a `Simulated`."""

    def __init__(self, name: str, settings: Simulated):
        self.name, self._settings = name, settings

    @cached_property
    def volume(self) -> Volume:
        """The CT or the phantom."""
        settings = self._settings
        if str(settings.ct) == PHANTOM:
            return phantom(**settings.grid)
        names = {} if settings.label_names is None else {"label_names": settings.label_names}
        return Volume.read(settings.ct, settings.labelmap, **names)

    @cached_property
    def landmarks(self) -> dict[str, Tensor]:
        """Those of the phantom that lie in its grid; those of the file."""
        if str(self._settings.ct) == PHANTOM:
            return _in_volume(phantom_landmarks(), self.volume)
        if self._settings.landmarks is None:
            return {}
        from DiffDRRCore.datasets.points import read_points

        return read_points(self._settings.landmarks)

    @property
    def view_names(self) -> tuple[str, ...]:
        """By name, or by angle."""
        return tuple(self._settings.views)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """All views together."""
        return (self.view_names,)

    def _view(self, name: str) -> View:
        settings = self._settings
        angles = (settings.views[name].get(angle, 0.0) for angle in ("primary", "secondary", "roll"))
        carm = CArm(settings.sdd, settings.sod, self.volume.center, *angles)
        pixel = settings.field_mm / settings.size
        camera = carm.camera(settings.size, settings.size, (pixel, pixel), settings.view_from)
        noise = {"photons": settings.photons, "seed": settings.seed + self.view_names.index(name)}
        xray = simulated_xray(self.volume, camera, carm.pose, oversampling=settings.oversampling, **noise)
        return View(name, xray, landmarks=self._seen(camera, carm.pose))

    def _seen(self, camera, pose) -> dict[str, Tensor]:
        """The landmarks that project into the image."""
        if not self.landmarks:
            return {}
        uv = project(camera, pose, torch.stack(list(self.landmarks.values())))[0]
        return inside(dict(zip(self.landmarks, uv, strict=True)), (camera.width, camera.height))


def _name(view: Mapping) -> str:
    if view.get("name"):
        return str(view["name"])
    angles = {angle: float(view.get(angle, 0.0)) for angle in ("primary", "secondary", "roll")}
    known = [f"{angle} {value:g}" for angle, value in angles.items() if value or angle != "roll"]
    return ", ".join(known)


def _in_volume(points: Mapping[str, Tensor], volume: Volume) -> dict[str, Tensor]:
    to_ijk = volume.ras_to_ijk
    ijk = {name: to_ijk[:3, :3] @ point + to_ijk[:3, 3] for name, point in points.items()}
    return {name: points[name] for name in inside(ijk, tuple(volume.shape)[::-1])}
