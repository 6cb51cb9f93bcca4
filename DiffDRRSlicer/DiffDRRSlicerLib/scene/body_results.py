"""What a registration found for each bone and each X-ray: numbers, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore import Pose, RegistrationResult, XRay
from DiffDRRCore.registration import FoundBody
from DiffDRRSlicerLib.scene import nodes, reassembly
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.tables import add_rows, begin_table, node_of

BONES, VIEWS = "bones", "views"  # roles of a C-arm's tables
_ERRORS = ("expected error median, mm", "expected error worst, mm")
_BONE_COLUMNS: dict[str, type] = {
    "bone": str,
    "moved": str,
    "turn, deg": float,
    "shift, mm": float,
    **{f"turn about {axis}, deg": float for axis in "RAS"},
    **{f"shift {axis}, mm": float for axis in "RAS"},
    **{f"deviation about {axis}, deg": float for axis in "RAS"},
    **{f"deviation {axis}, mm": float for axis in "RAS"},
    **dict.fromkeys(_ERRORS, float),
}
_VIEW_COLUMNS: dict[str, type] = {
    "X-ray": str,
    "similarity": float,
    "residual, %": float,
    "C-arm": str,
    "camera": str,
}
_OF = "DiffDRR.Bones"  # attribute of a table: for each row whether it is a bone's
_BONE = "DiffDRR.bone"  # role of the bone of row 0, 1, ...
_REMOVED = " (removed)"
_SIZE = 128  # pixels, where nobody says how fine the finest level is


@dataclass(frozen=True)
class BoneMotion:
    """How a bone stands, and how sure that is.

    Attributes:
        name: of the bone, of the CT as one, or of all that is in no bone.  locked: whether it was held.
        node_id: of the bone's transform node; None for what is no bone.
        motion: [4][4] in the coordinates of `Anatomy.volume`, from where the CT shows it to where it is: of a bone with
            respect to the CT, of the CT as one with the C-arms left where they were.
        turn: degrees, of the whole rotation.
        turns: degrees about the CT's R, A and S axes, in this order, about the pivot; shift: mm, of the pivot. From
            where the CT shows it to where it is, both with respect to the CT.
        deviations: six standard deviations of how the C-arms see it, about and along R, A, S: degrees, then mm.
        median, worst: mm, of the expected error (root mean square) at the points of its surface.
    """

    name: str
    locked: bool
    motion: list[list[float]]
    turn: float
    turns: tuple[float, ...]
    shift: tuple[float, ...]
    deviations: tuple[float, ...]
    median: float
    worst: float
    node_id: str | None = None


@dataclass(frozen=True)
class ViewFit:
    """How alike an X-ray and its DRR are.

    Attributes:
        name: of the C-arm.  similarity: by the measure of the registration.
        residual: the root mean square of what gain and offset of the DRR leave of the X-ray, in per cent of its
            contrast (standard deviation).
        free: whether the C-arm moved on its own.  camera: what was found of it, in words.
    """

    name: str
    similarity: float
    residual: float
    free: bool
    camera: str = ""


def bone_motions(result: RegistrationResult, groups: Sequence[Group], anatomy: Anatomy) -> tuple[BoneMotion, ...]:
    """A row for each bone and for all else, from a scene in which everything stands where it was found."""
    rows = []
    for found, group in zip(result.bodies, groups, strict=bool(groups)):
        rows += [_row(found, group.body.locked, bone, anatomy, group.body.name) for bone in group.members]
        rows += [_row(found, group.body.locked, None, anatomy, group.body.name)] if not group.members else []
    return tuple(rows) if groups else (_row(result.bodies[0], False, None, anatomy, anatomy.ct.GetName()),)


def _row(found: FoundBody, locked: bool, bone: BodyNode | None, anatomy: Anatomy, name: str) -> BoneMotion:
    errors = found.target_error(torch.from_numpy(surface_points(bone, anatomy))).numpy()
    motion = found.motion if bone is None else bone.pose(anatomy)
    turns, shift = turns_and_shift(motion, found.about)
    deviations = tuple(found.standard_deviations.tolist())
    turn = float(torch.rad2deg(motion.log()[:3].norm()))
    spread = float(np.median(errors)), float(errors.max())
    name, node_id = (name, None) if bone is None else (bone.name, bone.node.GetID())
    return BoneMotion(name, locked, motion.matrix.tolist(), turn, turns, shift, deviations, *spread, node_id)


def turns_and_shift(motion: Pose, about: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Degrees about R, then A, then S, each about the axes of the CT through `about`; and where that goes, mm."""
    angles = motion.to_parameters("euler_angles", convention="ZYX", degrees=True)[0].tolist()
    moved = motion.transform(about[None])[0] - about
    return tuple(angles[::-1]), tuple(moved.tolist())


def surface_points(bone: BodyNode | None, anatomy: Anatomy) -> nodes.Matrix:
    """[N, 3] points of a bone's surface, or else of the CT's bone, in the coordinates of `anatomy.volume`."""
    from DiffDRRSlicerLib.scene.accuracy import bone_points

    mesh = None if bone is None or bone.surface is None else bone.surface.GetPolyData()
    if mesh is None or mesh.GetNumberOfPoints() == 0:
        return bone_points(anatomy)
    return in_volume(anatomy, vtk_to_numpy(mesh.GetPoints().GetData()))


def in_volume(anatomy: Anatomy, points) -> nodes.Matrix:
    """Points in the coordinates that the CT is stored in, in those of `anatomy.volume`."""
    if not anatomy.is_scaled:
        return np.asarray(points, dtype=float)
    return nodes.transformed(nodes.parent_to_world(anatomy.ct), points)


def view_fits(
    anatomy: Anatomy,
    carms: Sequence[CArmNode],
    xrays: Sequence[XRay],
    masks: Sequence,
    structures,
    options: dict[str, Any],
) -> tuple[ViewFit, ...]:
    """How alike each X-ray and its DRR are now, at the size of the registration's finest level.

    Args:
        xrays: as the registration has them.  masks: [H, W] of the pixels that count, or None.
        options: of the registration: "similarity", "sizes".
    """
    fits = []
    longest = max(options.get("sizes") or (_SIZE,))
    for carm, xray, mask in zip(carms, xrays, masks, strict=True):
        share = min(1.0, longest / max(xray.camera.height, xray.camera.width))
        height, width = (max(1, round(side * share)) for side in (xray.camera.height, xray.camera.width))
        small = xray.resampled(height, width)
        weight = torch.ones(xray.image.shape) if mask is None else torch.as_tensor(np.asarray(mask)).float()
        weight = XRay(weight, xray.camera).resampled(height, width).image.clamp(min=0)
        with torch.no_grad():
            image = reassembly.rendered(anatomy, small.camera, anatomy.pose_in_volume(carm.pose), structures).float()
            fixed = small.image.to(image)
            score = options["similarity"](image[None, None], fixed[None, None], weight.to(image)[None, None])
        free = "free_views" in options and options["free_views"][len(fits)] is not None
        fits.append(ViewFit(carm.name, float(score), 100 * _residual(image, fixed, weight), free))
    return tuple(fits)


def _residual(image: Tensor, fixed: Tensor, weight: Tensor) -> float:
    """The share of the standard deviation of `fixed` that gain and offset of `image` do not explain."""
    root = weight.double().clamp(min=0).sqrt().flatten()
    design = torch.stack([image.double().flatten(), torch.ones_like(root)], dim=1) * root[:, None]
    wanted = fixed.double().flatten() * root
    left = wanted - design @ torch.linalg.lstsq(design, wanted[:, None], driver="gelsd").solution[:, 0]
    mean = (wanted * root).sum() / root.square().sum()
    contrast = (wanted - mean * root).norm()
    return float(left.norm() / contrast) if contrast > 0 else 1.0


def write_tables(carm: CArmNode, bones: Sequence[BoneMotion], fits: Sequence[ViewFit]) -> None:
    """Fill the table nodes of roles "bones" and "views" of a C-arm."""
    table = node_of(carm, BONES, "vtkMRMLTableNode", BONES)
    begin_table(table, _BONE_COLUMNS)
    add_rows(table, [_values(bone) for bone in bones])
    _refer_to_bones(table, bones)
    table = node_of(carm, VIEWS, "vtkMRMLTableNode", VIEWS)
    begin_table(table, _VIEW_COLUMNS)
    rows = [(one.name, one.similarity, one.residual, "free" if one.free else "fixed", one.camera) for one in fits]
    add_rows(table, rows)


def _refer_to_bones(table, bones: Sequence[BoneMotion]) -> None:
    """References, that scenes keep even where IDs change."""
    for row, bone in enumerate(bones):
        table.SetNodeReferenceID(f"{_BONE}{row}", bone.node_id)
    nodes.write_json(table, _OF, [bone.node_id is not None for bone in bones])


def follow_bones(carm: CArmNode) -> None:
    """Call bones in the table as they are called now, and say of which ones there are no more; quick a second time."""
    table = carm.referred(BONES)
    rows = [] if table is None else nodes.read_json(table, _OF, [])
    content = None if table is None else table.GetTable()
    if content is None or content.GetNumberOfRows() != len(rows) or content.GetColumnByName("bone") is None:
        return
    changed = False
    for row, is_bone in enumerate(rows):
        if not is_bone:
            continue
        before = content.GetValueByName(row, "bone").ToString()
        bone = table.GetNodeReference(f"{_BONE}{row}")
        gone = before if before.endswith(_REMOVED) else before + _REMOVED
        now = gone if bone is None else bone.GetName()
        if now != before:
            content.GetColumnByName("bone").SetValue(row, now)
            changed = True
    if changed:
        content.Modified()
        table.Modified()


def _values(bone: BoneMotion) -> tuple:
    numbers = *bone.turns, *bone.shift, *bone.deviations
    whole = bone.turn, float(np.linalg.norm(bone.shift))
    return bone.name, "held" if bone.locked else "free", *whole, *numbers, bone.median, bone.worst


def clear_tables(carm: CArmNode) -> None:
    """Empty them, where there are any."""
    for role, columns in ((BONES, _BONE_COLUMNS), (VIEWS, _VIEW_COLUMNS)):
        if carm.referred(role) is not None:
            begin_table(carm.referred(role), columns)


def read_table(carm: CArmNode, role: str) -> list[dict[str, Any]]:
    """{column: value} of each row of one of the two tables; none where it is not there, or another one."""
    node = carm.referred(role)
    content, columns = None if node is None else node.GetTable(), _BONE_COLUMNS if role == BONES else _VIEW_COLUMNS
    if content is None or any(content.GetColumnByName(name) is None for name in columns):
        return []
    convert = {float: lambda value: value.ToDouble(), str: lambda value: value.ToString()}
    return [
        {name: convert[kind](content.GetValueByName(row, name)) for name, kind in columns.items()}
        for row in range(content.GetNumberOfRows())
    ]
