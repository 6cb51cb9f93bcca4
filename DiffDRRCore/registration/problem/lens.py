"""A camera whose numbers are not known, as a displacement of the pixels of the known one."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera

NAMES = ("source-to-detector distance", "principal point right", "principal point down", "radial distortion")
COUNT = len(NAMES)


class Lens:
    """Where in the nominal camera's image the rays lie that a camera with other numbers sees.

    The numbers n [..., 4] are changes in mm: of the source-to-detector distance D at the same pixel size, of the
    principal point along the camera's x and y, and the outward displacement of the image's corner by distortion. With
    c the nominal principal point, A = K[:2, :2], p the pixel, r its distance from c and R the corner's, the ray of p is
    the nominal ray of

        c + (p + n_3 / R (r / R)^2 (p - c) - c - A (n_1, n_2) / D) / (1 + n_0 / D)

    Args:
        camera: nominal, with a point source, of any size: the numbers are the same for all sizes.
    """

    def __init__(self, camera: Camera):
        K = camera.K.detach().double().cpu()
        self._center, self._focal = K[:2, 2], K[:2, :2]
        self._distance = float(camera.source_to_detector)
        self._from_pixels = torch.linalg.inv(K)
        inverse = torch.linalg.inv(self._focal)
        corners = torch.tensor([[x, y] for x in (-0.5, camera.width - 0.5) for y in (-0.5, camera.height - 0.5)])
        arms = (corners.double() - self._center) @ (inverse.T * self._distance)
        self._to_mm, self._corner = inverse * self._distance, float(arms.norm(dim=-1).max())

    def seen(self, numbers: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Nominal pixels [B, N, 2] of pixels [N, 2], and their derivatives [B, N, 2, 4] by the numbers [B, 4]."""
        distance, shift, radial = numbers[:, None, :1], numbers[:, 1:3], numbers[:, None, 3:]
        arm = uv.double().cpu() - self._center
        square = (arm @ self._to_mm.T).square().sum(-1, keepdim=True) / self._corner**2
        bent = square * arm / self._corner
        scale = 1 / (1 + distance / self._distance)
        away = scale * (arm + radial * bent - (shift @ self._focal.T)[:, None] / self._distance)
        slope = torch.zeros(*away.shape, COUNT, dtype=away.dtype)
        slope[..., 0] = -scale * away / self._distance
        slope[..., 1:3] = -scale[..., None] * self._focal / self._distance
        slope[..., 3] = scale * bent
        return self._center + away, slope

    def turns(self, uv: Tensor) -> Tensor:
        """[B, N, 2, 3]: the rotation about the source, in camera axes, by which a ray moves per pixel right and down.

        A ray d that changes by e, at right angles or not, turns by d x e / |d|^2.
        """
        pixels = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
        rays = pixels @ self._from_pixels.T
        along = self._from_pixels[:, :2].T.expand(*rays.shape[:-1], 2, 3)
        return torch.linalg.cross(rays[..., None, :].expand_as(along), along) / rays.square().sum(-1)[..., None, None]

    def camera(self, camera: Camera, numbers: Tensor) -> Camera:
        """The nominal camera of any size with those numbers [4], but for the distortion."""
        K, D = camera.K.detach().double().cpu().clone(), float(camera.source_to_detector)
        K[:2, 2] += K[:2, :2] @ numbers[1:3] / D
        K[:2, :2] *= 1 + float(numbers[0]) / D
        return Camera.from_intrinsics(K, camera.height, camera.width, source_to_detector=D + float(numbers[0]))


def by_pixel(jacobian: Tensor, pivot: Tensor, source: Tensor, rotation: Tensor, turns: Tensor) -> Tensor:
    """d image / d pixel [B, 2, N] from d image / d xi [B, 6, N] of a motion of the camera about the pivot.

    A turn w about the source s is xi = (w, w x (pivot - s)), so its slope is J_w + (pivot - s) x J_v.

    Args:
        pivot: [3] or [B, 3].  source: [B, 3].  rotation: [B, 3, 3], camera_to_world.  turns: of `Lens.turns`.
    """
    by_turn, by_shift = jacobian[:, :3], jacobian[:, 3:]
    arm = (pivot - source).to(jacobian)[..., None].expand_as(by_shift)
    about_source = by_turn + torch.linalg.cross(arm, by_shift, dim=1)
    in_camera = rotation.mT.to(jacobian) @ about_source
    return torch.einsum("bnkc,bcn->bkn", turns.to(jacobian).expand(len(jacobian), -1, -1, -1), in_camera)
