"""X-ray images with their geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.imaging.camera_file import INTENSITIES
from DiffDRRCore.imaging.distortion import Distortion, unexposed
from DiffDRRCore.imaging.resampling import resample
from DiffDRRCore.imaging.xray_reading import UNDISTORTED, read_parts
from DiffDRRCore.imaging.xray_writing import write_image


class XRay:
    """An X-ray image, the camera that took it and, where known, where that camera stood.

    Nothing is changed in place: every method returns a new XRay.

    Args:
        image: [H, W]; floating tensors and arrays keep their dtype, integers become float32.
        camera: one `Camera` of H x W pixels.
        pose: camera_to_world (RAS mm), one `Pose`, or None where it is not known.
        meta: plain values that JSON can hold. meta["intensity"] says what a large value means: "transmission" (more
            X-rays arrived: air is bright) or "attenuation" (more matter: bone is bright). meta["logarithmic"] is True
            where the values are proportional to the logarithm of the X-ray intensity.

    Raises:
        XRayError: image not 2D, empty, not finite or not of the camera's size; a batch of cameras or poses.
    """

    def __init__(self, image, camera: Camera, pose: Pose | None = None, meta: dict[str, Any] | None = None):
        self.image: Tensor = _image(image)
        self.camera, self.pose, self.meta = camera, pose, dict(meta or {})
        _check(self.image, camera, pose, self.meta)

    @classmethod
    def read(cls, path: str | Path, frame: int | str | None = None, camera: Camera | str | Path | None = None) -> XRay:
        """Read an X-ray from DICOM (XA, RF, DX, CR) or from PNG, TIFF, NIfTI, NRRD, MetaImage with a JSON camera.

        The image is float32 in the file's own units (Modality LUT applied); see `xray_dicom` for what is bright. The
        pose of a DICOM file comes from its positioner angles, with the isocentre at the RAS origin, because no tag says
        where the patient lies: meta["pose_source"] says so, and a registration corrects it.

        Where the JSON camera has a "distortion", or is a calibration file with one, the image is undistorted: the X-ray
        is that of an ideal detector, as `camera` describes it, meta["undistorted"] holds the distortion that was
        undone, and `write` writes the image as it is then. Give a `Camera` to read the image as it was recorded.

        Args:
            path: the image file.
            frame: of a multi-frame file, an index from 0, or "mean", "max" or "min" over all frames.
            camera: a `Camera`, or the path of a JSON camera or a calibration file, in place of the header or of
                `<stem>.json` beside the image. Its view_from counts too; a pose in the JSON wins over the header's
                angles.

        Raises:
            ReadError: not an image, damaged, a colour image, no such frame, or a frame must be chosen.
            MissingGeometryError: geometry that is needed and not there, by name in `.missing`.
        """
        return cls(*read_parts(Path(path), frame, camera))

    def write(self, path: str | Path) -> None:
        """Write the image, and beside it its camera, pose and meta as `<stem>.json`; `read` gives all of it back.

        The suffix says the format: .nii, .nii.gz, .nrrd, .mha and .tif keep the values exactly (.tif as float32);
        .png needs whole numbers in 0..65535. Raises XRayError for anything else.
        """
        write_image(Path(path), self.image, self.camera, self.pose, self.meta)

    def cropped(self, top: int, bottom: int, left: int, right: int) -> XRay:
        """Without so many rows and columns at its four sides. Raises XRayError where nothing is left."""
        sides = {"top": top, "bottom": bottom, "left": left, "right": right}
        if any(isinstance(value, bool) or value != int(value) or value < 0 for value in sides.values()):
            raise XRayError(f"A crop is in whole pixels, 0 or more, got {sides}.")
        top, bottom, left, right = (int(value) for value in sides.values())
        height, width = self.image.shape
        if top + bottom >= height or left + right >= width:
            raise XRayError(f"The crop {sides} leaves nothing of an image of {height} x {width} pixels.")
        image = self.image[top : height - bottom, left : width - right]
        return XRay(image, self.camera.cropped(top, bottom, left, right), self.pose, self.meta)

    def resampled(self, height: int | Camera, width: int | None = None) -> XRay:
        """On another pixel grid: `resampled(height, width)` of the same area, or `resampled(camera)`: `resample`."""
        new_camera = height if isinstance(height, Camera) else self.camera.resized(height, width)
        return XRay(resample(self.image, self.camera, new_camera), new_camera, self.pose, self.meta)

    def with_image(self, image, **meta: Any) -> XRay:
        """With other pixels of the same camera; keywords replace entries of meta."""
        return XRay(image, self.camera, self.pose, {**self.meta, **meta})

    def undistorted(self, distortion: Distortion, camera: Camera | None = None) -> XRay:
        """As an ideal detector would give it, with that distortion undone; `camera` is then the image's.

        Where the recorded image has no pixel, the value is the one of least X-rays. meta["undistorted"] keeps the
        distortion. Raises XRayError where a distortion was undone before.
        """
        if UNDISTORTED in self.meta:
            raise XRayError("The distortion of this X-ray is undone already: read the image as it was recorded.")
        image = distortion.undistorted(self.image, unexposed(self.image, self.meta.get("intensity")))
        meta = {**self.meta, UNDISTORTED: distortion.to_dict()}
        return XRay(image, camera or self.camera, self.pose, meta)

    def with_pose(self, pose: Pose | None) -> XRay:
        """With another pose."""
        return XRay(self.image, self.camera, pose, self.meta)

    def to(self, device: str | torch.device) -> XRay:
        """On another device: image, camera and pose."""
        pose = None if self.pose is None else self.pose.to(device)
        return XRay(self.image.to(device), self.camera.to(device), pose, self.meta)

    @property
    def intensity(self) -> str:
        """meta["intensity"]. Raises XRayError where it is not said."""
        if "intensity" not in self.meta:
            raise XRayError(
                'The X-ray does not say what is bright: set meta["intensity"] to "transmission" (air is bright) '
                'or "attenuation" (bone is bright).'
            )
        return self.meta["intensity"]

    def __repr__(self) -> str:
        height, width = self.image.shape
        known = "with" if self.pose is not None else "without"
        intensity = self.meta.get("intensity", "intensity unknown")
        return f"XRay({height} x {width}, {self.image.dtype}, {known} a pose, {intensity})"


def _image(image) -> Tensor:
    if isinstance(image, Tensor) and not image.is_floating_point():
        return image.to(torch.float32)
    tensor = as_tensor(image)
    is_float = isinstance(image, Tensor) or getattr(getattr(image, "dtype", None), "kind", "") == "f"
    return tensor if is_float else tensor.to(torch.float32)


def _check(image: Tensor, camera: Camera, pose: Pose | None, meta: dict[str, Any]) -> None:
    if image.dim() != 2 or image.numel() == 0:
        raise XRayError(f"An X-ray is an image [H, W] with at least one pixel, got shape {list(image.shape)}.")
    if not bool(torch.isfinite(image.detach()).all()):
        raise XRayError("The X-ray has pixels that are NaN or infinite; replace them first.")
    if camera.K.dim() != 2 or (pose is not None and pose.matrix.dim() != 2):
        raise XRayError("An X-ray has one camera and one pose, not a batch: make one XRay for each.")
    if tuple(image.shape) != (camera.height, camera.width):
        raise XRayError(
            f"The image has {image.shape[0]} x {image.shape[1]} pixels but its camera {camera.height} x {camera.width}."
        )
    if meta.get("intensity", INTENSITIES[0]) not in INTENSITIES:
        raise XRayError(f"meta['intensity'] is one of {list(INTENSITIES)}, not {meta['intensity']!r}.")
