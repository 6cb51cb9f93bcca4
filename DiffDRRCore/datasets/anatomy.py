"""The phantom's anatomy: which solids make which structure, where, in RAS mm.

Lower thorax to hips of an adult; the origin lies before L4. +x is the patient's right. `side` is +1 on the right and
-1 on the left; the two sides differ on purpose, so that no mirrored pose explains an image as well as the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, radians, sin

import numpy as np

from DiffDRRCore.datasets.solids import Cup, Drum, Ellipsoid, Point, Rod, Solid, chain

FAT, MUSCLE, LUNG, GAS, LIVER, KIDNEY, BLADDER = -95.0, 50.0, -820.0, -980.0, 65.0, 35.0, 8.0
CORTEX, MARROW, VERTEBRA, DISC = 1150.0, 120.0, 220.0, 85.0
LABELS = {
    1: "lung_right",
    2: "lung_left",
    3: "vertebrae",
    4: "sacrum",
    5: "ribs_right",
    6: "ribs_left",
    7: "hip_right",
    8: "hip_left",
    9: "femur_right",
    10: "femur_left",
}
_NUMBERS = {name: number for number, name in LABELS.items()}
# z of the middle of each vertebral body, from below
_VERTEBRAE = {
    "L5": -32,
    "L4": 2,
    "L3": 35,
    "L2": 67,
    "L1": 98,
    "T12": 127,
    "T11": 154,
    "T10": 180,
    "T9": 205,
    "T8": 229,
}
_FEMUR_BOTTOM = -420.0


@dataclass(frozen=True)
class Structure:
    """Solids of one material: `hu` throughout, or, where `shell` > 0 mm, cortex of that thickness around `hu`."""

    solids: list[Solid]
    hu: float
    shell: float = 0.0
    label: str | None = None

    @property
    def number(self) -> int:
        """The label's number; 0 for an unlabelled structure."""
        return _NUMBERS.get(self.label, 0)


@dataclass
class Anatomy:
    """`structures` in the order in which they replace each other, and `landmarks` in RAS mm."""

    structures: list[Structure] = field(default_factory=list)
    landmarks: dict[str, Point] = field(default_factory=dict)


def build_anatomy(seed: int = 0) -> Anatomy:
    """The anatomy of one patient; other seeds give patients who differ by a few millimetres."""
    generator = np.random.default_rng(seed)
    body = Anatomy()

    def vary(scale: float) -> float:
        return float(np.clip(generator.standard_normal(), -2, 2)) * scale

    _organs(body, vary)
    for side in (1, -1):
        _ribs(body, side, vary)
    _spine(body, vary)
    _sacrum(body)
    for side in (1, -1):
        _hip_and_femur(body, side, vary)
    return body


def _organs(body: Anatomy, vary: Callable[[float], float]) -> None:
    soft = [
        ([Ellipsoid((66 + vary(3), 22, 118 + vary(4)), (66, 66, 62)), Ellipsoid((8, 42, 128), (58, 42, 36))], LIVER),
        ([Ellipsoid((58, -34, 62 + vary(4)), (25, 22, 50))], KIDNEY),
        ([Ellipsoid((-60, -34, 78 + vary(4)), (25, 22, 52))], KIDNEY),
        ([Ellipsoid((3, 46, -122), (36, 28, 26 + vary(3)))], BLADDER),
    ]
    gas = [Ellipsoid((-66 + vary(4), 54, 124), (34, 22, 22)), Ellipsoid((-88, 30, 60 + vary(6)), (13, 11, 26))]
    gas += [Ellipsoid((92, 28, -8), (16, 13, 24)), Ellipsoid((24 + vary(5), 64, 46), (24, 10, 9))]
    gas += [Ellipsoid((-30, 60, -20 + vary(6)), (15, 10, 12)), Ellipsoid((-12, -42, -104), (9, 10, 20))]
    body.structures += [Structure(solids, hu) for solids, hu in soft]
    # The lungs reach down to the diaphragm, whose domes the liver and the stomach push up from below.
    for side, name, lift in ((1, "lung_right", 10.0), (-1, "lung_left", 0.0)):
        lung = Ellipsoid((side * 70.0, -8.0, 245.0), (60.0, 82.0, 140.0))
        dome = Ellipsoid((side * 66.0, 14.0, 94.0 + lift), (66.0, 78.0, 64.0))
        body.structures += [Structure([lung], LUNG, label=name), Structure([dome], LIVER if side > 0 else MUSCLE)]
    body.structures.append(Structure([Ellipsoid((-30.0, 40.0, 232.0), (58.0, 46.0, 60.0))], MUSCLE))
    body.structures.append(Structure(gas, GAS))


def spine_center(z: float) -> tuple[float, float]:
    """(x, y) of the vertebral bodies' middle at height z: lordosis and a slight bend to the left."""
    return -10.0 * sin((z + 40) / 70), -30.0 + 13.0 * cos((z - 8) / 62) - 0.06 * max(z - 100, 0)


def _spine(body: Anatomy, vary: Callable[[float], float]) -> None:
    solids: list[Solid] = []
    discs: list[Solid] = []
    for index, (name, height) in enumerate(_VERTEBRAE.items()):
        z = height + vary(0.8)
        x, y = spine_center(z)
        below, above = spine_center(z - 10), spine_center(z + 10)
        tilt = (below[1] - above[1]) / 20
        size = 1.0 - 0.028 * index
        solids += _vertebra((x, y, z), size, tilt, ribs=name.startswith("T"))
        discs.append(Ellipsoid((*spine_center(z + 16.5), z + 16.5), (23 * size, 17 * size, 6.0), tilt))
        body.landmarks[f"{name}_center"] = (x, y, z)
        body.landmarks[f"{name}_spinous_process"] = (x, y - 60 * size, z - 16 * size)
    body.structures.append(Structure(discs, DISC))
    body.structures.append(Structure(solids, VERTEBRA, 1.6, "vertebrae"))


def _vertebra(center: Point, size: float, tilt: float, ribs: bool) -> list[Solid]:
    def at(x: float, y: float, z: float) -> Point:
        return center[0] + size * x, center[1] + size * y, center[2] + size * z

    solids: list[Solid] = [Drum(center, (25 * size, 18 * size), 13.5 * size, tilt)]
    span, back = (30, -44) if ribs else (42, -34)
    for side in (1, -1):
        solids.append(Rod(at(13 * side, -12, 4), at(16 * side, -32, 2), (5.5 * size, 6 * size)))
        solids.append(Rod(at(16 * side, -32, 2), at(span * side, back, 4), (4.5 * size, 3 * size)))
        solids.append(Rod(at(16 * side, -33, 10), at(17 * side, -36, -20), (6.0 * size, 5.5 * size)))
        solids.append(Rod(at(16 * side, -33, 1), at(0, -42, -5), (4.5 * size, 4 * size)))
    solids.append(Rod(at(0, -40, -4), at(0, -60, -16), (4.5 * size, 5.5 * size)))
    return solids


def _ribs(body: Anatomy, side: int, vary: Callable[[float], float]) -> None:
    solids: list[Solid] = []
    for name, reach in (("T12", 62), ("T11", 88), ("T10", 128), ("T9", 142), ("T8", 150)):
        z = _VERTEBRAE[name] + (4.0 if side > 0 else 1.0) + vary(1.5)
        x, y = spine_center(z)
        head, neck = (x + side * 18, y - 16, z + 4), (x + side * 36, y - 38, z + 2)
        drop, turn = reach * 0.75, range(26, reach + 1, 6)
        arc = [
            (
                side * (132 - 0.08 * (z - 120)) * sin(radians(angle)),
                -4 - (88 - 0.05 * (z - 120)) * cos(radians(angle)),
                z - drop * ((angle - 20) / (reach - 20)) ** 1.3,
            )
            for angle in turn
        ]
        solids += chain([head, neck, *arc], [4.5, 4.5, *(5.5 for _ in arc)])
        body.landmarks[f"rib_{name[1:]}_tip_{_side(side)}"] = arc[-1]
    body.structures.append(Structure(solids, 250.0, 1.5, f"ribs_{_side(side)}"))


def _sacrum(body: Anatomy) -> None:
    x, y = spine_center(-50.0)
    solids: list[Solid] = [Drum((x, y - 5, -58), (27, 17), 10, 0.45)]
    for level, (width, back, z) in enumerate(((27, -14, -66), (25, -26, -84), (21, -36, -102), (16, -41, -120))):
        solids.append(Ellipsoid((x * (1 - level / 4), y + back, z), (width, 12.5 - level, 15.5), 0.5))
        for side in (1, -1):
            ala = (side * (42.0 - 7.5 * level), y + back - 2, z + 4)
            solids.append(Ellipsoid(ala, (21.0 - 3 * level, 12.0 - level, 11.5), 0.5))
    solids += chain([(0, y - 41, -126), (0, y - 36, -142), (0, y - 26, -154)], [8.0, 6.0, 4.0])
    body.landmarks["sacral_promontory"] = (x, y + 12.0, -52.0)
    body.structures.append(Structure(solids, 200.0, 1.6, "sacrum"))


def _hip_and_femur(body: Anatomy, side: int, vary: Callable[[float], float]) -> None:
    # The left hip stands higher and its femur is turned out: a pelvis as patients bring it.
    lift, spread = (0.0, 0.0) if side > 0 else (9.0, 7.0)
    head = (side * (87.0 + vary(1)), 4.0, -118.0 + lift + vary(1))

    def at(x: float, y: float, z: float) -> Point:
        return side * x, y, z + lift

    hip = [*_ilium(at), Cup(head, (25.5, 34.0), (side * 0.80, 0.30, -0.52), 8.0)]
    symphysis, tuberosity = at(9, 44, -132 - lift), at(60, -34, -166)
    hip += chain([at(72, 24, -108), at(44, 44, -112), at(20, 48, -118), symphysis], [11, 7.5, 8, 8.5])
    hip += chain([symphysis, at(20, 34, -146), at(42, 2, -163), tuberosity], [8.0, 6.5, 6.5, 11])
    hip += chain([at(74, -20, -112), at(68, -32, -138), tuberosity], [15, 12, 14])
    hip.append(Rod(at(72, -32, -120), at(52, -44, -128), (7.0, 3.0)))
    name = _side(side)
    body.structures.append(Structure(hip, 180.0, 2.0, f"hip_{name}"))
    body.landmarks[f"asis_{name}"] = at(124, 46, -34)
    body.landmarks[f"ischial_tuberosity_{name}"] = tuberosity
    if side > 0:
        body.landmarks["pubic_symphysis"] = (0.0, 44.0, -132.0)
    _femur(body, side, head, spread)


def _ilium(at: Callable[[float, float, float], Point]) -> list[Solid]:
    """The wing: a fan of thin rods from above the acetabulum to the crest, which has a thicker edge."""
    root = [at(80, -22, -88), at(84, -6, -84), at(88, 12, -86), at(92, 24, -96)]
    crest = [at(40, -72, -62), at(44, -74, -36), at(64, -66, -8), at(92, -40, 16), at(118, -4, 22)]
    crest += [at(128, 26, 6), at(126, 44, -22), at(124, 46, -34), at(108, 44, -58), at(100, 36, -80)]
    fan = [Rod(_along(root, t), _along(crest, t), (7.0, 3.4)) for t in np.linspace(0, 1, 72)]
    rim = chain(crest, [6.5, 6, 5, 5, 5.5, 5, 5.5, 6, 5, 7])
    return [*fan, *rim, Rod(at(62, -48, -52), at(50, -62, -42), (9.0, 8.0)), *chain(root, [12, 11, 11, 11])]


def _femur(body: Anatomy, side: int, head: Point, spread: float) -> None:
    def at(x: float, y: float, z: float) -> Point:
        return head[0] + side * x, head[1] + y, head[2] + z

    name, y = _side(side), -14.0 - spread
    bones: list[Solid] = [Ellipsoid(head, (23.0, 23.0, 23.0)), Rod(head, at(46, y, -30), (15.0, 15.0))]
    bones += [Ellipsoid(at(54, y - 4, -20), (13.0, 17.0, 19.0)), Ellipsoid(at(36, y - 12, -54), (11.0, 11.0, 13.0))]
    shaft = at(48, y, -36), at(45 + spread / 4, y, -72), at(20 + spread, 0, _FEMUR_BOTTOM - head[2])
    bones += chain(shaft, [19.0, 15.0, 14.0])
    body.structures.append(Structure(bones[:4], 260.0, 1.8, f"femur_{name}"))
    body.structures.append(Structure(bones[4:], MARROW, 5.0, f"femur_{name}"))
    body.landmarks[f"femoral_head_{name}"] = head
    body.landmarks[f"greater_trochanter_{name}"] = at(54, y - 4, -20)


def _side(side: int) -> str:
    return "right" if side > 0 else "left"


def _along(points: list[Point], t: float) -> Point:
    """The point at the fraction t of the way along a polyline, by number of corners."""
    place = np.linspace(0, 1, len(points))
    return tuple(float(np.interp(t, place, column)) for column in zip(*points, strict=True))
