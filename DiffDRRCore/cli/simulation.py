"""The arguments of `simulate` and the `Setup` that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from DiffDRRCore.cli import arguments
from DiffDRRCore.errors import DiffDRRError

if TYPE_CHECKING:
    from DiffDRRCore.physics.devices import Device
    from DiffDRRCore.physics.simulation.setup import Implant, Setup

_DETECTORS = ("csi", "ideal", "counting")
_OF_DEVICE = ("camera", "pose", "sod", "height", "width", "pixel_spacing")
_WHOLE = (".png", ".dcm")


def add_beam(parser: argparse.ArgumentParser) -> None:
    """Tube, dose, detector."""
    group = parser.add_argument_group("beam and detector")
    group.add_argument("--kvp", type=float, help="tube voltage, kV (40 to 150), not mean keV; default: 80")
    group.add_argument(
        "--filter",
        nargs="+",
        metavar="MATERIAL=MM",
        help="all filters, mm; default: the device's, or Al=2.5",
    )
    group.add_argument("--anode-angle", type=float, help="degrees; default: the device's, or 12")
    group.add_argument("--dose", type=float, help="air kerma at the detector in the open field, uGy; default: 1")
    group.add_argument("--photons", type=float, help="photons per pixel in the open field, in place of --dose")
    group.add_argument("--noise", action=argparse.BooleanOptionalAction, default=True, help="default: on")
    group.add_argument("--electronic-noise", type=float, default=0.0, help="standard deviation, keV or photons a pixel")
    group.add_argument("--detector", choices=_DETECTORS, default="csi", help="default: csi (flat panel)")
    group.add_argument("--csi-mm", type=float, default=0.6, help="thickness of the CsI, mm; default: 0.6")
    group.add_argument("--bits", type=int, help="bit depth; default: 16 for .png and .dcm, else none")
    group.add_argument("--gain", type=float, help="counts per keV or photon; default: open field at 0.8 of the bits")


def add_effects(parser: argparse.ArgumentParser) -> None:
    """Blur, scatter, heel, collimation; all off."""
    group = parser.add_argument_group("effects (each off by default)")
    group.add_argument("--focal-spot", type=float, default=0.0, help="full width at half maximum, mm")
    group.add_argument("--blur", type=float, metavar="F", help="spatial frequency (1/mm) of half the detector's MTF")
    group.add_argument("--scatter", action="store_true", help="scattered radiation (convolution model)")
    group.add_argument("--grid", action="store_true", help="anti-scatter grid; with --scatter")
    group.add_argument("--air-gap", type=float, help="patient to detector, mm; default: what each view has")
    group.add_argument("--heel", action="store_true", help="heel effect, the anode at the lower edge of the image")
    group.add_argument(
        "--collimator", type=float, nargs=4, metavar=("TOP", "BOTTOM", "LEFT", "RIGHT"), help="covered, mm at detector"
    )
    group.add_argument("--aperture", type=float, help="radius of a round field, mm; default: the device's")


def add_contents(parser: argparse.ArgumentParser) -> None:
    """What is in the beam."""
    group = parser.add_argument_group("in the beam")
    group.add_argument("--materials", nargs="+", metavar="LABEL=MATERIAL", default=[], help="of labels")
    group.add_argument(
        "--decomposition", choices=("continuous", "thresholds"), default="continuous", help="HU to materials"
    )
    group.add_argument("--bone-contrast", type=float, default=1.0, help="factor on what is above 100 HU; default: 1")
    group.add_argument(
        "--implant", action="append", metavar="FILE=MATERIAL", default=[], help="mesh (.stl, .vtk, ...; mm); repeatable"
    )
    group.add_argument(
        "--implant-pose", action="append", type=Path, metavar="FILE", help="object to world (.tfm, .h5), one an implant"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Devices as data."""
    group = parser.add_argument_group("a device in place of camera numbers")
    group.add_argument("--device-preset", metavar="NAME", help="for example cios, mobile-9in, angiography-frontal")
    group.add_argument("--binning", type=int, help="so many detector pixels a side joined in one; default: 1")
    group.add_argument("--ignore-limits", action="store_true", help="of the device's motion and kVp")


def read_setup(options, suffix: str) -> Setup:
    """The setup that the arguments say. Raises DiffDRRError."""
    from DiffDRRCore.physics.simulation.setup import Setup

    arguments.refuse_together(options, "dose", ("photons",))
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
    camera, pose = _camera_and_pose(options)
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
    fields = {"noise": options.noise, "electronic": options.electronic_noise, "dose": options.dose}
    names = ("photons", "detector", "csi_mm", "gain", "focal_spot", "blur", "scatter", "grid", "air_gap", "heel")
    fields |= {name: getattr(options, name) for name in (*names, "decomposition", "bone_contrast")}
    fields["collimator"] = None if options.collimator is None else tuple(options.collimator)
    fields["aperture"] = options.aperture
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
    implants = [_pair(text, "--implant FILE=MATERIAL", last=True) for text in options.implant]
    return tuple(
        Implant(str(Path(path).resolve()), material, None if pose is None else str(pose.resolve()))
        for (path, material), pose in zip(implants, poses, strict=True)
    )


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
