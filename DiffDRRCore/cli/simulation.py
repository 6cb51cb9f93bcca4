"""The `Setup` that the arguments of `simulate` make."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from DiffDRRCore.cli import arguments
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.files import read_text

if TYPE_CHECKING:
    from DiffDRRCore.physics.devices import Device
    from DiffDRRCore.physics.simulation.setup import Implant, Setup

_OF_TUBE = ("kvp", "filter", "anode_angle")
_OF_DEVICE = ("camera", "pose", "sod", "height", "width", "pixel_spacing")
_CONTRADICTIONS = {
    "dose": ("photons",),
    "blur": ("mtf",),
    "energy": ("spectrum", *_OF_TUBE),
    "spectrum": _OF_TUBE,
}
_SAME_NAMES = (
    *("energy", "dose", "photons", "noise", "swank", "detector", "csi_mm", "gain", "focal_spot", "samples", "scatter"),
    *("grid", "air_gap", "heel", "solid_angle", "aperture", "decomposition", "bone_contrast"),
)
_WHOLE = (".png", ".dcm")


def read_setup(options, suffix: str) -> Setup:
    """The setup that the arguments say. Raises DiffDRRError."""
    from DiffDRRCore.physics.simulation.setup import Setup

    for one, others in _CONTRADICTIONS.items():
        arguments.refuse_together(options, one, others)
    device = _device(options)
    fields = {**_files(options), **_geometry(options, device), **_beam(options, device)}
    labels = arguments.chosen_labels(options)
    bits = options.bits if options.bits is not None else (16 if suffix in _WHOLE else None)
    setup = Setup(
        **fields,
        labels=None if labels is None else tuple(labels),
        bits=bits,
        materials=dict(_pair(text, "--materials LABEL=MATERIAL") for text in options.materials),
        implants=_implants(options),
        landmarks=_landmarks(options),
        device=options.device,
    )
    setup.check()
    return setup


def _files(options) -> dict:
    paths = {name: getattr(options, name) for name in ("ct", "labelmap", "label_names")}
    if not options.ct.exists():
        raise DiffDRRError(f"There is no CT at '{options.ct}'.")
    return {"series": options.series} | {
        name: None if path is None else str(path.resolve()) for name, path in paths.items()
    }


def _device(options) -> Device | None:
    from DiffDRRCore.physics.devices import device

    if options.device_preset is None:
        if options.binning is not None:
            raise DiffDRRError("--binning needs --device-preset.")
        return None
    for name in _OF_DEVICE:
        arguments.refuse_together(options, "device_preset", (name,))
    return device(options.device_preset)


def _geometry(options, device: Device | None) -> dict:
    from DiffDRRCore.imaging.camera_file import camera_to_dict

    if device is not None:
        return _of_device(options, device)
    if options.sod is not None:
        arguments.check_carm(options)
    camera, pose = _camera_and_pose(options)
    if pose is None:
        arguments.check_between(options.sod, float(camera.source_to_detector))
    fields = {"camera": camera_to_dict(camera)}
    return fields | ({"pose": pose.matrix.double().tolist()} if pose is not None else _arm(options, options.sod))


def _camera_and_pose(options):
    """As `arguments.camera_and_pose`, but a C-arm stays one: None is its pose."""
    from DiffDRRCore.imaging.camera_file import read_camera

    if options.sod is None and (options.pose is not None or _camera_has_pose(options)):
        return arguments.camera_and_pose(options, None)
    if options.sod is None:
        arguments.check_carm(options)
        raise DiffDRRError("There is no pose: give --device-preset, --sod and the angles, or --pose FILE.")
    arguments.refuse_together(options, "pose", ("sod",))
    if options.camera is not None:
        arguments.refuse_together(options, "camera", ("height", "width", "pixel_spacing", "sdd", "view_from"))
        return read_camera(options.camera).camera, None
    camera, _ = arguments.camera_and_pose(_with_isocenter(options), None)
    return camera, None


def _with_isocenter(options):
    """What needs no CT to be read yet."""
    return argparse.Namespace(**{**vars(options), "isocenter": options.isocenter or (0.0, 0.0, 0.0)})


def _camera_has_pose(options) -> bool:
    from DiffDRRCore.imaging.camera_file import read_camera

    return options.camera is not None and read_camera(options.camera).pose is not None


def _of_device(options, device: Device) -> dict:
    from DiffDRRCore.imaging.camera_file import camera_to_dict

    side = options.view_from or "detector"
    camera = device.camera(options.binning or 1, side, options.sdd)
    arm = _arm(options, device.source_to_isocenter, device.rest)
    if not options.ignore_limits:
        at = device.carm((0, 0, 0), arm["primary"], arm["secondary"], arm["roll"], options.sdd, check=False)
        device.check(at, options.kvp)
    own = {"maker": device.maker, "model": device.name, "modality": device.modality}
    return {"camera": camera_to_dict(camera), **arm, **own}


def _arm(options, sod: float, rest=(0.0, 0.0)) -> dict:
    given = {name: getattr(options, name) for name in ("primary", "secondary", "roll")}
    start = {"primary": rest[0], "secondary": rest[1], "roll": 0.0}
    angles = {name: start[name] if value is None else value for name, value in given.items()}
    isocenter = None if options.isocenter is None else tuple(options.isocenter)
    return {"sod": sod, "isocenter": isocenter, **angles}


def _beam(options, device: Device | None) -> dict:
    fields = {name: getattr(options, name) for name in _SAME_NAMES}
    fields |= {"electronic": options.electronic_noise, "poisson": options.exact_poisson}
    fields["spectrum_file"] = None if options.spectrum is None else str(options.spectrum.resolve())
    fields["blur"] = options.blur if options.mtf is None else _mtf(options.mtf)
    fields["lag"] = tuple(map(tuple, options.lag or ()))
    fields["collimator"] = None if options.collimator is None else tuple(options.collimator)
    if device is not None and options.aperture is None and device.field_diameter is not None:
        fields["aperture"] = device.field_diameter / 2
    if device is not None and device.filtration:
        fields["filtration"] = dict(device.filtration)
    if options.filter is not None:
        fields["filtration"] = {name: _number(mm) for name, mm in (_pair(x, "--filter") for x in options.filter)}
    angle = options.anode_angle or (device.anode_angle if device is not None else None)
    fields |= {} if angle is None else {"anode_angle": angle}
    return fields | ({} if options.kvp is None else {"kvp": options.kvp})


def _implants(options) -> tuple[Implant, ...]:
    from DiffDRRCore.physics.simulation.setup import Implant

    poses = options.implant_pose or [None] * len(options.implant)
    if len(poses) != len(options.implant):
        raise DiffDRRError("Give --implant-pose once for each --implant, in the same order, or not at all.")
    frames = _for_each(options, "implant_frame", None)
    priorities = _for_each(options, "implant_priority", 1)
    implants = [_pair(text, "--implant FILE=MATERIAL", last=True) for text in options.implant]
    return tuple(
        Implant(str(Path(path).resolve()), material, None if pose is None else str(pose.resolve()), frame, priority)
        for (path, material), pose, frame, priority in zip(implants, poses, frames, priorities, strict=True)
    )


def _for_each(options, name: str, default) -> list:
    """A value for each implant."""
    given, count = getattr(options, name), len(options.implant)
    if given is None:
        return [default] * count
    if len(given) not in (1, count) or not count:
        flag = f"--{name.replace('_', '-')}"
        raise DiffDRRError(f"Give {flag} once, or once for each --implant in the same order, or not at all.")
    return given * count if len(given) == 1 else given


def _landmarks(options) -> dict[str, tuple[float, ...]]:
    from DiffDRRCore.datasets.points import read_points

    if options.landmarks is None:
        return {}
    return {name: tuple(point.tolist()) for name, point in read_points(options.landmarks).items()}


def _mtf(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(frequencies, values) of a table; lines that begin with # and a heading are passed over. Raises ReadError."""
    lines = read_text(path, "table of an MTF").splitlines()
    rows = [re.split(r"[,;\s]+", line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if rows and not _numbers(rows[0]):
        rows.pop(0)
    numbers = [_numbers(row) for row in rows]
    wrong = next((row for row, two in zip(rows, numbers, strict=True) if len(two) != 2), None)
    if wrong is not None or len(rows) < 2:
        problem = "has no two lines of them" if wrong is None else f"this is none: {' '.join(wrong)!r}"
        raise ReadError(f"'{path}' must have two numbers a line, a frequency (1/mm) and the MTF; {problem}.")
    return tuple(zip(*numbers, strict=True))


def _numbers(words: list[str]) -> list[float]:
    """Empty where a word is none."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def _pair(text: str, what: str, last: bool = False) -> tuple[str, str]:
    name, sign, value = text.rpartition("=") if last else text.partition("=")
    if not (sign and name.strip() and value.strip()):
        raise DiffDRRError(f"{what.split()[0]} is NAME=VALUE, for example Al=2.5 or 4=titanium, not {text!r}.")
    return name.strip(), value.strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DiffDRRError(f"--filter MATERIAL=MM has a thickness in mm, not {text!r}.") from error
