"""The registration of one frame of a run, by the one engine."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.registration.masks.region import box_of_matter, crop_to_points
from DiffDRRCore.registration.problem.bodies import Body
from DiffDRRCore.registration.problem.checks import checked_options
from DiffDRRCore.registration.tracking.fits import Fit
from DiffDRRCore.registration.tracking.frame_registration import FrameRegistration
from DiffDRRCore.registration.tracking.frames import Run
from DiffDRRCore.similarity import similarity

WHOLE = "CT"
_NEAR_SIZES, _NEAR_LOCAL_SIZES = (64, 128), (96, 128)  # from a predicted start
_NEAR_PIXELS = 1024  # at all levels but the last
_TOLERANCE = 0.02  # mm
_BY_VIEW = ("weights", "view_weights", "free_views", "free_cameras")


class SingleFrames:
    """Registers frames of a run from motions of the bodies.

    Args:
        bodies: None is the CT as one.
        margin: mm on the detector by which X-rays are cut beyond the bodies' shadow; None leaves them whole.
        options: of `Registration`.

    Raises RegistrationError for options that do not go with a sequence.
    """

    def __init__(self, volume: Volume, run: Run, bodies: Sequence[Body] | None, margin: float | None, options: dict):
        checked_options({**options, "bodies": bodies})
        if options.get("landmarks") is not None:
            raise RegistrationError("Landmarks belong to one frame: register that frame, and give it as a keyframe.")
        weighted = options.get("weights") is not None and not isinstance(options["weights"], str)
        if margin is not None and (not margin > 0 or weighted):
            raise RegistrationError("margin is a positive number of mm, and does not go with weights.")
        for name in _BY_VIEW:
            value = options.get(name)
            if isinstance(value, (list, tuple)) and len(value) != run.views:
                raise RegistrationError(f"There are {run.views} views but {len(value)} {name}; give one per view.")
        self.volume, self.run, self.bodies, self._margin = volume, run, bodies, margin
        self._options = {name: value for name, value in options.items() if name != "search"}
        self._search = options.get("search", 128)
        self.carms = Pose.identity().matrix.repeat(len(run.numbers), run.views, 1, 1)  # of each frame, by its place
        self._boxes: list[Tensor] | None = None

    @property
    def names(self) -> list[str]:
        """Of the bodies."""
        return [WHOLE] if self.bodies is None else [body.name for body in self.bodies]

    @property
    def start(self) -> Tensor:
        """[B, 4, 4] where bodies are said to be."""
        bodies = self.bodies or [Body(WHOLE)]
        known = [Pose.identity() if body.motion is None else body.motion for body in bodies]
        return torch.stack([pose.matrix.detach().double().cpu() for pose in known])

    @property
    def free(self) -> list[int]:
        """Numbers of the views whose C-arm may move on its own."""
        return [view for view, limits in enumerate(self._options.get("free_views") or ()) if limits is not None]

    def fitting(self, frame: int, motions: Tensor, carms: Tensor, wide: bool = False) -> Generator[object, None, Fit]:
        """The frame (by its place) from motions [B, 4, 4] and C-arms [V, 4, 4]; yields between pieces.

        Returns what was found. With `wide` at all levels and with a search around the start. Raises RegistrationError
        as `Registration`.
        """
        views = self.run.seen(frame)
        xrays = [self._cropped(self.run.rows[frame][view], carms[view], motions) for view in views]
        starts = Pose._rigid(carms[list(views)])
        options = self._chosen(views, wide)
        if self.bodies is None:
            initial = Pose._rigid(motions[0]).inverse() @ starts
        else:
            initial = starts
            moved = zip(self.bodies, motions, strict=True)
            options["bodies"] = [replace(body, motion=Pose._rigid(matrix)) for body, matrix in moved]
        registration = yield from FrameRegistration.preparing(self.volume, xrays, list(initial), **options)
        registration.trusts_last_step = not wide and "tolerance" not in self._options
        yield from registration.work()
        return self._fit((yield from registration.finding()), views, motions, carms.clone())

    def _chosen(self, views: tuple[int, ...], wide: bool) -> dict:
        """Options of a registration of these views."""
        options = {"tolerance": _TOLERANCE, "second": None, **self._options, "search": self._search if wide else 0}
        for name in _BY_VIEW:
            if isinstance(options.get(name), (list, tuple)):
                options[name] = [options[name][view] for view in views]
        if not wide:
            options = {**_near(options.get("similarity", "zncc")), **options}
        return options

    def _fit(self, found: dict, views: tuple[int, ...], motions: Tensor, carms: Tensor) -> Fit:
        bodies = found["bodies"]
        if self.bodies is None:
            moved = (motions[0] @ bodies[0].motion.matrix)[None]
            carms[list(views)] = motions[0] @ found["carms"].matrix
        else:
            moved = torch.stack([body.motion.matrix for body in bodies])
            carms[list(views)] = found["carms"].matrix
        return Fit(
            moved,
            torch.stack([body.covariance for body in bodies]),
            torch.stack([body.about for body in bodies]),
            found["similarity"],
            None if found["converged"] else found["reason"],
            carms,
            views,
        )

    def _cropped(self, xray, carm: Tensor, motions: Tensor):
        if self._margin is None:
            return xray
        if self._boxes is None:
            self._boxes = [box_of_matter(self._part(number)) for number in range(len(motions))]
        points = torch.cat([Pose._rigid(m).transform(box) for m, box in zip(motions, self._boxes, strict=True)])
        return crop_to_points(xray, points, Pose._rigid(carm), self._margin)

    def _part(self, number: int) -> Volume:
        labels = self._options.get("labels") if self.bodies is None else self.bodies[number].labels
        return self.volume if labels is None else self.volume.select(list(labels))


def _near(measure) -> dict:
    """Options of a registration that starts next to its end."""
    measure = similarity(measure)
    sizes = _NEAR_LOCAL_SIZES if getattr(measure, "local", False) else _NEAR_SIZES
    return {"sizes": sizes, "pixels": _NEAR_PIXELS if getattr(measure, "pointwise", False) else None}
