"""The X-ray camera: a source and a flat detector.

Camera frame, right-handed: origin at the source, z towards the detector, y along the image rows' downward direction,
x = y cross z, which points right as seen from the source (Hartley and Zisserman; OpenCV). Pixel (u, v) is (column,
row); integers are pixel centres and (0, 0) is the centre of the first pixel (ITK, Slicer).
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.tensors import as_components, as_tensor, promote

_SIDES = {"source": 1.0, "detector": -1.0}


class Camera:
    """Intrinsics and size of an X-ray image; a point (x, y, z) of the camera frame lands on the pixel K (x/z, y/z, 1).

    Args:
        height, width: image size in pixels.
        pixel_spacing: (row_mm, col_mm), distance between rows and between columns, at the detector.
        source_to_detector: SDD in mm.
        principal_point: (u0, v0) in pixels, where the ray normal to the detector lands; None is the image's centre.
        view_from: "source", or "detector" for an image whose columns run along -x (radiological display): K[0, 0] < 0.

    Every number may be a tensor with a gradient and with leading batch dimensions; a pair may be one tensor [..., 2] or
    two of shape [...]. A camera is not changed once it is made.

    Attributes:
        K: [..., 3, 3] in pixels.  source_to_detector: [...] in mm.  height, width: int.
        parallel: whether all rays are parallel to z (then the pixel is K (x, y, 1), with x and y in mm).

    Raises:
        GeometryError: empty image, focal length zero or not finite, SDD not positive.
    """

    def __init__(
        self,
        height: int,
        width: int,
        pixel_spacing,
        source_to_detector,
        principal_point=None,
        view_from: str = "source",
    ):
        distance = as_tensor(source_to_detector)
        K = _intrinsics(height, width, distance, pixel_spacing, principal_point, view_from)
        self._set(K, height, width, distance, parallel=False)

    def _set(self, K: Tensor, height: int, width: int, source_to_detector: Tensor, parallel: bool) -> None:
        _check(K.detach(), height, width, source_to_detector.detach())
        self.K, self.source_to_detector = promote(K, source_to_detector)
        self.height, self.width, self.parallel = int(height), int(width), parallel

    @classmethod
    def _of(cls, K: Tensor, height: int, width: int, source_to_detector: Tensor, parallel: bool) -> Camera:
        camera = cls.__new__(cls)
        camera._set(K, height, width, source_to_detector, parallel)
        return camera

    @classmethod
    def from_intrinsics(cls, K, height: int, width: int, pixel_spacing=None, source_to_detector=None) -> Camera:
        """A camera of a matrix K [..., 3, 3] in pixels (K[2] = 0 0 1; a negative K[0, 0] is kept, and skew).

        K alone does not say how far the detector is: give `source_to_detector` (mm), or `pixel_spacing` (row_mm,
        col_mm), from which the SDD is the mean of |fx| col_mm and fy row_mm. Raises GeometryError where both or neither
        is given, or where the two estimates of the SDD differ by more than 5 %.
        """
        K = as_tensor(K)
        if (pixel_spacing is None) == (source_to_detector is None):
            raise GeometryError("Give either pixel_spacing or source_to_detector beside K, and not both.")
        if source_to_detector is None:
            source_to_detector = _distance_from_spacing(K, pixel_spacing)
        return cls._of(K, height, width, as_tensor(source_to_detector), parallel=False)

    @classmethod
    def parallel_beam(
        cls, height: int, width: int, pixel_spacing, source_to_detector, principal_point=None, view_from: str = "source"
    ) -> Camera:
        """A camera whose rays all run along z, from the plane z = 0 to the plane z = source_to_detector."""
        one = torch.ones((), dtype=torch.float64)
        K = _intrinsics(height, width, one, pixel_spacing, principal_point, view_from)
        return cls._of(K, height, width, as_tensor(source_to_detector), parallel=True)

    @property
    def pixel_spacing(self) -> Tensor:
        """(row_mm, col_mm) [..., 2] at the detector."""
        focal = torch.stack([self.K[..., 1, 1], self.K[..., 0, 0]], dim=-1).abs()
        return 1 / focal if self.parallel else self.source_to_detector[..., None] / focal

    @property
    def principal_point(self) -> Tensor:
        """(u0, v0) [..., 2] in pixels."""
        return self.K[..., :2, 2]

    @property
    def view_from(self) -> str:
        """From which side the stored image shows the patient: "source" or "detector"."""
        return "detector" if bool((self.K[..., 0, 0] < 0).all()) else "source"

    def resized(self, height: int, width: int) -> Camera:
        """The same detector area cut into height x width pixels."""
        rows, columns = height / self.height, width / self.width
        scale = [[columns, 0.0, (columns - 1) / 2], [0.0, rows, (rows - 1) / 2], [0.0, 0.0, 1.0]]
        return self._with_image_map(scale, height, width)

    def cropped(self, top: int, bottom: int, left: int, right: int) -> Camera:
        """The camera of the image without so many rows and columns at its four sides (negative numbers add some)."""
        shift = [[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]
        return self._with_image_map(shift, self.height - top - bottom, self.width - left - right)

    def flipped(self) -> Camera:
        """The camera of the left-right mirrored image: the same rays, seen from the other side."""
        mirror = [[-1.0, 0.0, self.width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        return self._with_image_map(mirror, self.height, self.width)

    def _with_image_map(self, matrix: list[list[float]], height: int, width: int) -> Camera:
        image_map = torch.tensor(matrix, dtype=self.K.dtype, device=self.K.device)
        return Camera._of(image_map @ self.K, height, width, self.source_to_detector, self.parallel)

    def detached(self) -> Camera:
        """The same camera without its graph."""
        if not (self.K.requires_grad or self.source_to_detector.requires_grad):
            return self
        return Camera._of(self.K.detach(), self.height, self.width, self.source_to_detector.detach(), self.parallel)

    def to(self, *args, **kwargs) -> Camera:
        """As `torch.Tensor.to`."""
        K, distance = self.K.to(*args, **kwargs), self.source_to_detector.to(*args, **kwargs)
        return Camera._of(K, self.height, self.width, distance, self.parallel)

    def __repr__(self) -> str:
        kind = "parallel, " if self.parallel else ""
        distance = self.source_to_detector.detach().tolist()
        return f"Camera({kind}{self.height} x {self.width}, K={self.K.detach().tolist()}, SDD={distance} mm)"


def _intrinsics(height, width, scale: Tensor, pixel_spacing, principal_point, view_from: str) -> Tensor:
    """K with focal lengths scale / pixel size, in the common dtype and batch shape of what it is made of."""
    if view_from not in _SIDES:
        raise GeometryError(f"view_from is 'source' or 'detector', got {view_from!r}.")
    _check_size(height, width)
    spacing = as_components(pixel_spacing)
    point = as_components(((width - 1) / 2, (height - 1) / 2) if principal_point is None else principal_point)
    for name, pair in (("pixel_spacing", spacing), ("principal_point", point)):
        if pair.shape[-1:] != (2,):
            raise GeometryError(f"{name} is a pair of numbers, got shape {list(pair.shape)}.")
    if not bool((spacing.detach() > 0).all()):
        raise GeometryError(f"Pixel spacing must be positive (mm), got {spacing.detach().tolist()}.")
    scale, spacing, point = promote(scale, spacing, point)
    fx, fy = _SIDES[view_from] * scale / spacing[..., 1], scale / spacing[..., 0]
    fx, fy, u0, v0 = torch.broadcast_tensors(fx, fy, point[..., 0], point[..., 1])
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [torch.stack(row, dim=-1) for row in ((fx, zero, u0), (zero, fy, v0), (zero, zero, one))]
    return torch.stack(rows, dim=-2)


def _distance_from_spacing(K: Tensor, pixel_spacing) -> Tensor:
    K, spacing = promote(K, as_components(pixel_spacing))
    by_columns = K[..., 0, 0].abs() * spacing[..., 1]
    by_rows = K[..., 1, 1].abs() * spacing[..., 0]
    distance = (by_columns + by_rows) / 2
    if bool(((by_columns - by_rows).detach().abs() > 0.05 * distance.detach()).any()):
        raise GeometryError(
            "K and pixel_spacing contradict each other: focal length x spacing is "
            f"{by_columns.detach().tolist()} mm by columns but {by_rows.detach().tolist()} mm by rows."
        )
    return distance


def _check_size(height, width) -> None:
    for size in (height, width):
        if not isinstance(size, numbers.Real) or size < 1 or size % 1 != 0:
            raise GeometryError(f"An image has at least one row and one column, whole ones, got {height} x {width}.")


def _check(K: Tensor, height: int, width: int, source_to_detector: Tensor) -> None:
    _check_size(height, width)
    if not bool((torch.isfinite(source_to_detector) & (source_to_detector > 0)).all()):
        raise GeometryError(f"Source-to-detector distance must be positive (mm), got {source_to_detector.tolist()}.")
    if K.shape[-2:] != (3, 3):
        raise GeometryError(f"K is a 3 x 3 matrix (or a batch of them), got shape {list(K.shape)}.")
    if not bool(torch.isfinite(K).all()):
        raise GeometryError("K has entries that are not finite numbers.")
    lower = torch.stack([K[..., 1, 0], K[..., 2, 0], K[..., 2, 1], K[..., 2, 2] - 1], dim=-1)
    if bool((lower.abs() > 1e-6).any()):
        raise GeometryError("K must be upper triangular with K[2, 2] = 1.")
    if bool((K[..., 0, 0] == 0).any() or (K[..., 1, 1] <= 0).any()):
        raise GeometryError(
            "The focal lengths of K must not be zero, and K[1, 1] must be positive "
            "(an image seen from the detector has K[0, 0] < 0; rotate an upside-down image's pose by 180 degrees)."
        )
