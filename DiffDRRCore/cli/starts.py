"""Where `register` starts, as the command line says it. Heavy imports wait until the command runs."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning

if TYPE_CHECKING:
    from DiffDRRCore import Pose, Volume, XRay
    from DiffDRRCore.registration import GlobalSearch

_CARM = ("sod", "primary", "secondary", "roll")
_SEARCH = ("search_primary", "search_secondary", "search_roll", "search_sod", "search_isocenter", "search_count")
# The options that each kind of start takes.
_OPTIONS = {
    "model": ("model", "warp", "invert_warp"),
    "header": ("isocenter", "sod"),
    "fixed": ("initial", *_CARM, "isocenter"),
    "landmarks": ("landmarks_3d", "landmarks_2d"),
    "previous": ("previous",),
    "search": (*_SEARCH, "isocenter"),
}
KINDS = tuple(_OPTIONS)
_IMPLIED = ("model", "landmarks", "previous", "search")  # the kinds whose options say all by themselves
_SHARED = {"warp", "invert_warp", "isocenter"}  # options that do not tell the kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--init, and what each kind of start is made of."""
    group = parser.add_argument_group("start (see above)")
    group.add_argument(
        "--init",
        choices=KINDS,
        help="model: --model; header: the X-ray's own pose (with --sod where the header lacks it); fixed: --initial, "
        "or --sod and angles; landmarks: --landmarks-3d and --landmarks-2d; previous: --previous; search: nothing is "
        "known but ranges",
    )
    group.add_argument("--model", type=Path, help="network that `train` or `finetune` wrote: model.safetensors")
    group.add_argument(
        "--warp", type=Path, help="rigid ITK transform between the CT and the template that the network was trained in"
    )
    group.add_argument(
        "--invert-warp",
        action="store_const",
        const=True,
        help="the warp takes the template's points to the CT's, not the CT's to the template's",
    )
    group.add_argument("--initial", type=Path, action="append", help="start pose, once per X-ray: .json, .tfm, .h5")
    group.add_argument("--landmarks-3d", type=Path, help="points in the CT: .mrk.json, .fcsv, or .csv of R, A, S in mm")
    group.add_argument(
        "--landmarks-2d",
        type=Path,
        action="append",
        help="the same points by name in the X-ray: .csv or .json of u, v in pixels; once per X-ray, or once for the "
        "first, whose pose the others then follow",
    )
    group.add_argument(
        "--previous", type=Path, help="earlier registration of these X-rays: the folder of its results, or result.json"
    )
    arguments.add_carm(group)
    _add_search(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    """Ranges of --init search."""
    group = parser.add_argument_group("search for the start over ranges of the first X-ray's C-arm (--init search)")
    for name, unit, text in (
        ("primary", "DEG", "positioner primary angle; default: -90 90"),
        ("secondary", "DEG", "positioner secondary angle; default: -40 40"),
        ("roll", "DEG", "about the beam; default: -20 20"),
        ("sod", "MM", "source to isocentre; default: 0.6 to 0.9 of source to detector"),
    ):
        group.add_argument(f"--search-{name}", type=float, nargs=2, metavar=(f"{unit}_FROM", f"{unit}_TO"), help=text)
    group.add_argument(
        "--search-isocenter",
        type=float,
        metavar="MM",
        help="how far the isocentre may lie off the CT's centre (or off --isocenter) along each axis; default: 50",
    )
    group.add_argument("--search-count", type=int, metavar="N", help="directions to look from; default: 512")


def check(options: argparse.Namespace) -> None:
    """Raise DiffDRRError for options that contradict each other, or of which one is missing."""
    kind = _kind(options)
    arguments.refuse_together(options, "initial", (*_CARM, "isocenter"))
    arguments.check_carm(options)
    count = len(options.xrays)
    one_each(options.initial, count, "--initial")
    for value in options.search_sod or ():
        if math.isfinite(value):
            arguments.check_mm("--search-sod", value)
    if options.landmarks_2d is not None and len(options.landmarks_2d) > 1:
        one_each(options.landmarks_2d, count, "--landmarks-2d")
    if kind is None:
        for name in ("warp", "invert_warp"):
            if getattr(options, name) is not None:
                raise DiffDRRError(f"{_flag(name)} belongs to a network: give --model FILE as well, or leave it out.")
        return
    if options.invert_warp and options.warp is None:
        raise DiffDRRError("--invert-warp needs --warp FILE.")
    lacking = {
        "model": options.model is None and "--model FILE, the trained network",
        "fixed": options.initial is None and options.sod is None and "--initial FILE, or --sod and the angles",
        "landmarks": None in (options.landmarks_3d, options.landmarks_2d) and "--landmarks-3d and --landmarks-2d",
        "previous": options.previous is None and "--previous FILE, the result.json of an earlier run",
    }.get(kind)
    if lacking:
        raise DiffDRRError(f"A start by {kind} needs {lacking}.")
    _check_there(options)
    if kind == "search":
        _search(options)


def _check_there(options) -> None:
    """Before anything is loaded."""
    names = ("model", "warp", "landmarks_3d", "previous")
    for path in (*(getattr(options, name) for name in names), *(options.initial or ()), *(options.landmarks_2d or ())):
        if path is not None and not path.exists():
            raise DiffDRRError(f"There is no file '{path}'.")
    if options.previous is not None:
        arguments.result_file(options.previous)


def start_poses(options: argparse.Namespace, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    """One camera_to_world per X-ray, which are as `preprocess` gives them. Raises DiffDRRError."""
    kind = _kind(options)
    if kind is None:
        files = one_each(options.initial, len(xrays), "--initial")
        return [
            _default(n, xray, file, options, volume) for n, (xray, file) in enumerate(zip(xrays, files, strict=True))
        ]
    return _MAKERS[kind](options, volume, xrays)


def one_each(values: list | None, count: int, name: str) -> list:
    """One value for each X-ray; None for each where there is none at all."""
    if values is None:
        return [None] * count
    if len(values) != count:
        raise DiffDRRError(f"There are {count} X-rays but {len(values)} times {name}: give it once per X-ray.")
    return values


def _kind(options) -> str | None:
    """What --init says, or the files that are given; None for the order of `register` without it."""
    given = [name for names in _OPTIONS.values() for name in names if getattr(options, name) is not None]
    implied = [kind for kind in _IMPLIED if set(_OPTIONS[kind]) & set(given) - _SHARED]
    kind = options.init or (implied[0] if implied else None)
    if kind is None:
        return None
    for name in given:
        if name not in _OPTIONS[kind]:
            first = f"--init {kind}" if options.init else _flag(next(n for n in _OPTIONS[kind] if n in given))
            raise DiffDRRError(f"{first} and {_flag(name)} contradict each other: a registration has one start.")
    return kind


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(place: int, xray: XRay, initial: Path | None, options, volume: Volume) -> Pose:
    """The order in the text of `register`."""
    if initial is not None:
        return arguments.read_pose(initial, view=place)
    if options.sod is not None:
        return arguments.carm_pose(options, float(xray.camera.source_to_detector), volume)
    return _own(place, xray, options, volume)


def _own(place: int, xray: XRay, options, volume: Volume) -> Pose:
    """The X-ray's own pose; one of positioner angles has its isocentre brought to where the patient is."""
    if xray.pose is None:
        lacks = ", ".join(xray.meta.get("pose_missing", ()))
        lacks = f" (its header lacks {lacks})" if lacks else ""
        completed = ", --init header and --sod" if xray.meta.get("pose_angles") else ""
        raise DiffDRRError(
            f"X-ray {place + 1} has no pose to start from{lacks}: give --initial FILE, or --sod and the angles"
            f"{completed}, or another --init."
        )
    if "pose_source" not in xray.meta:
        return xray.pose
    isocenter = volume.center if options.isocenter is None else options.isocenter
    return xray.pose.retract([0.0, 0.0, 0.0, *map(float, isocenter)])


def _by_model(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    from DiffDRRCore.learning import PoseModel

    model = PoseModel.read(options.model, options.device, options.warp, bool(options.invert_warp))
    return model.starts(volume, xrays)


def _by_header(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    return [
        _own(place, xray, options, volume) if options.sod is None else _completed(place, xray, options, volume)
        for place, xray in enumerate(xrays)
    ]


def _completed(place: int, xray: XRay, options, volume: Volume) -> Pose:
    """The header's angles with the distance of --sod, said on standard error."""
    if xray.pose is not None:
        raise DiffDRRError(
            f"X-ray {place + 1} has a pose of its own, so --init header needs no --sod: leave it out, or say --init "
            "fixed."
        )
    angles = xray.meta.get("pose_angles")
    if angles is None:
        return _own(place, xray, options, volume)  # says what lacks
    primary, secondary = angles
    said = argparse.Namespace(**{**vars(options), "primary": primary, "secondary": secondary, "roll": 0.0})
    center = "the CT's centre" if options.isocenter is None else "--isocenter"
    print(
        f"start of X-ray {place + 1}: angles {primary:g} and {secondary:g} degrees from the header, source to "
        f"isocentre {options.sod:g} mm from --sod, the isocentre at {center}, the image upright",
        file=sys.stderr,
    )
    return arguments.carm_pose(said, float(xray.camera.source_to_detector), volume)


def _fixed(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    if options.initial is None:
        return [arguments.carm_pose(options, float(xray.camera.source_to_detector), volume) for xray in xrays]
    return [arguments.read_pose(file, view) for view, file in enumerate(options.initial)]


def _by_landmarks(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    from DiffDRRCore.datasets.points import read_image_points, read_points
    from DiffDRRCore.registration.starts.starts import start_poses

    points, files = read_points(options.landmarks_3d), options.landmarks_2d
    poses = [
        _fitted(xray, file, points, read_image_points(file), _prior(place, xray, options, volume))
        for place, (xray, file) in enumerate(zip(xrays, files, strict=False))
    ]
    return poses if len(poses) == len(xrays) else start_poses(volume, xrays, poses[0])


def _prior(place: int, xray: XRay, options, volume: Volume) -> Pose | None:
    """What tells the poses apart that three landmarks allow."""
    return None if xray.pose is None else _own(place, xray, options, volume)


def _fitted(xray: XRay, file: Path, points: dict[str, Any], clicks: dict[str, Any], prior: Pose | None) -> Pose:
    """By the landmarks of the same name. Clicks are in the pixels of the file: a crop moves them."""
    import torch

    from DiffDRRCore.registration.landmarks import pose_from_landmarks

    names = [name for name in points if name in clicks]
    if len(names) < 3:
        raise DiffDRRError(
            f"'{file}' has only {len(names)} of the CT's landmarks by name: four are needed, or three. It lacks "
            f"{_listed(set(points) - set(clicks))}; the CT's landmarks lack {_listed(set(clicks) - set(points))}."
        )
    top, _, left, _ = xray.meta.get("preprocessing", {}).get("crop", (0, 0, 0, 0))
    pixels = torch.stack([clicks[name] for name in names]) - torch.tensor([left, top], dtype=torch.float64)
    fit = pose_from_landmarks(torch.stack([points[name] for name in names]), pixels, xray.camera, prior)
    wrong = [name for name, agrees in zip(names, fit.inliers.tolist(), strict=True) if not agrees]
    if wrong:
        warnings.warn(
            f"'{file}': {', '.join(wrong)} does not fit the other landmarks and was left out.",
            DiffDRRWarning,
            stacklevel=2,
        )
    return fit.pose


def _listed(names: set[str]) -> str:
    shown = [f"'{name}'" for name in sorted(names)]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "") or "none"


def _previous(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    from DiffDRRCore.registration.result import RegistrationResult

    poses = RegistrationResult.load(arguments.result_file(options.previous)).poses
    if len(poses) != len(xrays):
        raise DiffDRRError(f"'{options.previous}' holds {len(poses)} views, but there are {len(xrays)} X-rays.")
    return list(poses)


def _by_search(options, volume: Volume, xrays: list[XRay]) -> list[Pose]:
    """The best place; what it cost, and the other optima, are said on standard error."""
    search = _search(options)
    with output.SearchBar(quiet=options.json) as bar:
        found = bar.following(search.searching(volume, xrays))
    others = ", ".join(f"{other['similarity']:.3f}" for other in found.alternatives) or "none"
    print(f"search: {found.cost}; similarity {found.similarity:.3f}, other optima: {others}", file=sys.stderr)
    return list(found.poses)


def _search(options) -> GlobalSearch:
    """By the registration's similarity where a search can. Raises DiffDRRError for ranges that cannot be."""
    from DiffDRRCore.registration.global_search import GlobalSearch
    from DiffDRRCore.similarity import SIMILARITIES, LeastSquaresSimilarity

    given = {name.removeprefix("search_"): getattr(options, name) for name in _SEARCH}
    given |= {"about": options.isocenter, "labels": arguments.chosen_labels(options), "seed": options.seed}
    if issubclass(SIMILARITIES[options.similarity], LeastSquaresSimilarity):
        given["similarity"] = options.similarity
    return GlobalSearch(**{name: value for name, value in given.items() if value is not None})


_MAKERS = {
    "model": _by_model,
    "header": _by_header,
    "fixed": _fixed,
    "landmarks": _by_landmarks,
    "previous": _previous,
    "search": _by_search,
}
