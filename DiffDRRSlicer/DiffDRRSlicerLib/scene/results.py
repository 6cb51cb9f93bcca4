"""What a registration in the scene found: numbers, warnings, a table, files."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Camera, Pose, RegistrationResult
from DiffDRRCore.files import check_folder, finite, replacing
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import PARAMETERS, UNITS, camera_deviations, reference_errors
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.body_results import BoneMotion, ViewFit
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.found_cameras import camera_rows
from DiffDRRSlicerLib.scene.landmarks import ReprojectionErrors, reprojection_errors
from DiffDRRSlicerLib.scene.minima import Minimum
from DiffDRRSlicerLib.scene.tables import add_rows, begin_table, node_of

FORMAT = "DiffDRRSlicer scene registration"
_SAME = 1e-6  # mm and direction cosines: rounding on the way through the scene
_COLUMNS = {"quantity": str, "value": str, "unit": str}
_ERROR_NAMES = {
    "mtre_mm": "target registration error",
    "mtre_in_plane_mm": "target registration error in the image plane",
    "mtre_depth_mm": "target registration error in depth",
    "rotation_deg": "rotation error",
}

Row = tuple[str, float | str, str]


@dataclass(frozen=True)
class View:
    """One C-arm of a result.

    Attributes:
        name: of the node.  camera: its camera.
        pose: camera_to_world as it stands in the scene.
        pose_in_ct: camera to the CT's own RAS coordinates, without the transforms above it; None where these are not
            rigid.
        reference: errors against the reference transform (`accuracy.reference_errors`), or None.
        landmarks: reprojection errors, or None.
        node_id: of the C-arm's transform node in the scene.
    """

    name: str
    camera: Camera
    pose: Pose
    pose_in_ct: Pose | None
    reference: dict[str, float] | None
    landmarks: ReprojectionErrors | None
    node_id: str


@dataclass(frozen=True)
class Outcome:
    """The result of a registration in the scene.

    Attributes:
        result: as the engine gives it, in the coordinates of `Anatomy.volume`.
        target: "carm" or "patient", what was moved.  ct_name, ct_id: of the CT's node.
        views: one a C-arm.
        ct_to_world: [4, 4] of all transforms above the CT, after the run.
        deviations: standard deviations of `accuracy.PARAMETERS`: degrees, then mm.
        warnings: reasons to doubt the result, in plain sentences.
        start: what there is to tell of where it began, as `rows`.
        bones: how each moved; the CT as one where there are none.  fits: how alike each X-ray and its DRR are.
        minima: where else it could have ended, the answer first; none where there is no other.
    """

    result: RegistrationResult
    target: str
    ct_name: str
    ct_id: str
    views: list[View]
    ct_to_world: nodes.Matrix
    deviations: list[float]
    warnings: list[str]
    start: tuple[Row, ...] = ()
    bones: tuple[BoneMotion, ...] = ()
    fits: tuple[ViewFit, ...] = ()
    minima: tuple[Minimum, ...] = ()

    @classmethod
    def of(
        cls,
        result: RegistrationResult,
        anatomy: Anatomy,
        carms: list[CArmNode],
        target: str,
        landmarks=None,
        references=None,
    ):
        """From a scene in which everything stands where it was found.

        Args:
            landmarks: for each C-arm (carm, CT lists, X-ray list or None), or None. Lists without a pair, or with a
                label twice, are not measured.
            references: for each C-arm the transform node that it is compared with or None for its own; None is None for
                each.
        """
        ct_to_world = nodes.parent_to_world(anatomy.ct)
        views = []
        for number, carm in enumerate(carms):
            in_ct = _pose_in_ct(carm, ct_to_world)
            errors = None if landmarks is None else _landmark_errors(*landmarks[number])
            reference = reference_errors(carm, anatomy, None if references is None else references[number])
            views.append(View(carm.name, carm.camera, carm.pose, in_ct, reference, errors, carm.node.GetID()))
        ct, deviations = anatomy.ct, camera_deviations(result)
        return cls(result, target, ct.GetName(), ct.GetID(), views, ct_to_world, deviations, list(result.doubts))

    @property
    def similarity(self) -> tuple[float, float]:
        """At the finest level: at the start, and where it ended; larger is better."""
        return self.result.initial_similarity, self.result.similarity

    @property
    def converged(self) -> bool:
        """Whether the finest level ended because steps became small."""
        return self.result.converged

    def holds(self, carm: CArmNode, ct) -> bool:
        """Whether it is still true: found for this C-arm and this CT node, and its C-arms, CT and bones stay."""
        if ct is None or ct.GetID() != self.ct_id or carm.node.GetID() not in [view.node_id for view in self.views]:
            return False
        stays = np.allclose(nodes.parent_to_world(ct), self.ct_to_world, rtol=0, atol=_SAME)
        bones = all(_lies(bone, carm.scene, self) for bone in self.bones if bone.node_id is not None)
        return stays and bones and all(_stands(view, carm.scene.GetNodeByID(view.node_id)) for view in self.views)

    def following(self, scene) -> Outcome:
        """The same with its bones called as they are in the scene now."""
        now = [None if bone.node_id is None else scene.GetNodeByID(bone.node_id) for bone in self.bones]
        names = [bone.name if node is None else node.GetName() for bone, node in zip(self.bones, now, strict=True)]
        if names == [bone.name for bone in self.bones]:
            return self
        bones = tuple(replace(bone, name=name) for bone, name in zip(self.bones, names, strict=True))
        return replace(self, bones=bones)

    def rows(self) -> Iterator[Row]:
        """(quantity, value, unit) of everything that a reader asks first."""
        before, after = self.similarity
        yield from self.start
        yield "similarity at the start", before, ""
        yield "similarity", after, ""
        yield "end", self.result.reason, ""
        for name, value, unit in zip(PARAMETERS, self.deviations, UNITS, strict=True):
            yield f"standard deviation, {name}", value, unit
        for number, view in enumerate(self.views):
            yield from _view_rows(view)
            if number < len(self.result.cameras):
                yield from camera_rows(view.name, self.result.cameras[number])
        for text in self.warnings:
            yield "warning", text, ""

    def to_dict(self) -> dict:
        """Plain values for JSON, with frames and units in the names."""
        return {
            "format": FORMAT,
            "version": 1,
            "frame": "RAS, mm; camera: x right as seen from the source, y down, z from source to detector",
            "ct": self.ct_name,
            "moved": self.target,
            "similarity_at_start": self.result.initial_similarity,
            "similarity": self.result.similarity,
            "converged": self.result.converged,
            "reason": self.result.reason,
            "start": [{"quantity": name, "value": value, "unit": unit} for name, value, unit in self.start],
            "warnings": self.warnings,
            "standard_deviations": dict(zip(_with_units(), self.deviations, strict=True)),
            "ct_to_world": self.ct_to_world.tolist(),
            "views": [_view_dict(view) for view in self.views],
            "bones": [asdict(bone) for bone in self.bones],
            "fits": [asdict(fit) for fit in self.fits],
            "engine": self.result.to_dict(),
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write registration.json and .csv, and for each C-arm its pose (.h5, .tfm) and projection matrix (.txt).

        "..._camera_to_world" is the pose in the scene's world; "..._camera_to_ct" the one in the CT's own coordinates,
        written where transforms above the CT make the two differ; "..._projection_world" and "..._projection_ct" are
        3 x 4 matrices from such points (RAS mm) to pixels. "..._motion" takes a bone from where the CT shows it to
        where it is. Returns the paths. Raises DiffDRRError where the folder cannot be written to.
        """
        folder = Path(folder)
        check_folder(folder)
        paths = [folder / "registration.json", folder / "registration.csv"]
        with replacing(paths[0]) as temporary:
            temporary.write_text(json.dumps(finite(self.to_dict()), indent=1, allow_nan=False), encoding="utf-8")
        with replacing(paths[1]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([tuple(_COLUMNS), *self.rows()])
        return paths + _save_views(folder, self.views, self.ct_to_world) + self._save_bones(folder)

    def _save_bones(self, folder: Path) -> list[Path]:
        """Where there are several; the motion of the CT as one is in the poses."""
        bones, paths = self.bones if len(self.bones) > 1 else (), []
        for name, bone in zip(_file_names(bones), bones, strict=True):
            for suffix in (".h5", ".tfm"):
                paths.append(folder / f"{name}_motion{suffix}")
                write_itk_transform(paths[-1], torch.tensor(bone.motion, dtype=torch.float64))
        return paths


def save_poses(folder: str | Path, carms: list[CArmNode], ct=None) -> list[Path]:
    """Write where C-arms stand, registered or not: the files of `Outcome.save` that are one for each C-arm.

    `ct`: volume node in whose coordinates the poses are written too, where transforms above it make them differ.
    Raises DiffDRRError where the folder cannot be written to.
    """
    folder = Path(folder)
    ct_to_world = np.eye(4) if ct is None else nodes.parent_to_world(ct)
    views = [
        View(carm.name, carm.camera, carm.pose, _pose_in_ct(carm, ct_to_world), None, None, carm.node.GetID())
        for carm in carms
    ]
    check_folder(folder)
    return _save_views(folder, views, ct_to_world)


def _save_views(folder: Path, views: list[View], ct_to_world: nodes.Matrix) -> list[Path]:
    paths = []
    for name, view in zip(_file_names(views), views, strict=True):
        poses = {"world": view.pose}
        if view.pose_in_ct is not None and not np.array_equal(ct_to_world, np.eye(4)):
            poses["ct"] = view.pose_in_ct
        for frame, pose in poses.items():
            for suffix in (".h5", ".tfm"):
                paths.append(folder / f"{name}_camera_to_{frame}{suffix}")
                write_itk_transform(paths[-1], pose.matrix)
            if not view.camera.parallel:
                paths.append(folder / f"{name}_projection_{frame}.txt")
                with replacing(paths[-1]) as temporary:
                    np.savetxt(temporary, projection_matrix(view.camera, pose), fmt="%.17g")
    return paths


def _lies(bone: BoneMotion, scene, outcome: Outcome) -> bool:
    """Whether a bone's node is there, and where the outcome says, below a CT whose place is the outcome's."""
    node = scene.GetNodeByID(bone.node_id)
    if node is None:
        return False
    ct = outcome.ct_to_world
    to_volume = np.linalg.inv(ct) if nodes.is_rigid(ct) else np.eye(4)
    motion = to_volume @ nodes.transform_to_world(node) @ np.linalg.inv(to_volume @ ct)
    return np.allclose(motion, bone.motion, rtol=0, atol=_SAME)


def _stands(view: View, node) -> bool:
    """Whether a C-arm's node is there, with the camera and where the view says."""
    if node is None:
        return False
    carm = CArmNode(node)
    same = camera_to_dict(carm.camera) == camera_to_dict(view.camera)
    return same and np.allclose(carm.pose.matrix.numpy(), view.pose.matrix.numpy(), rtol=0, atol=_SAME)


def _pose_in_ct(carm: CArmNode, ct_to_world: nodes.Matrix) -> Pose | None:
    """camera_to_ct, None where the transforms above the CT are not rigid."""
    inside = np.linalg.inv(ct_to_world) @ carm.pose.matrix.numpy()
    return Pose(torch.from_numpy(inside)) if nodes.is_rigid(inside) else None


def projection_matrix(camera: Camera, pose: Pose) -> nodes.Matrix:
    """[3, 4] from homogeneous points in the pose's world to homogeneous pixels. SceneError for a parallel beam."""
    if camera.parallel:
        raise SceneError("A parallel beam has no 3 x 4 perspective projection matrix.")
    return camera.K.detach().cpu().double().numpy() @ pose.inverse().matrix.numpy()[:3]


def _landmark_errors(carm: CArmNode, ct_lists, xray_list) -> ReprojectionErrors | None:
    several = ct_lists if isinstance(ct_lists, (list, tuple)) else [ct_lists]
    if any(one is None or one.GetScene() is None for one in (*several, xray_list)):
        return None
    try:
        errors = reprojection_errors(carm, ct_lists, xray_list)
    except SceneError:  # a label that is there twice
        return None
    return errors if errors.rows else None


def write_results_table(carm: CArmNode, outcome: Outcome | Iterable[Row]):
    """The table node of role "results" of a C-arm, filled with the rows of an outcome, or with these rows."""
    found = outcome.rows() if isinstance(outcome, Outcome) else outcome
    table = node_of(carm, "results", "vtkMRMLTableNode", "results")
    begin_table(table, _COLUMNS)
    rows = [(name, value if isinstance(value, str) else f"{value:.4g}", unit) for name, value, unit in found]
    add_rows(table, rows)
    return table


def read_results_table(carm: CArmNode) -> list[tuple[str, str, str]]:
    """(quantity, value, unit) as they stand in the C-arm's table of results; none without it."""
    node = carm.referred("results")
    content = None if node is None else node.GetTable()
    if content is None or content.GetNumberOfColumns() != len(_COLUMNS):
        return []
    count = len(_COLUMNS)
    return [
        tuple(content.GetValue(row, column).ToString() for column in range(count))
        for row in range(content.GetNumberOfRows())
    ]


def clear_results_table(carm: CArmNode) -> None:
    """Empty the C-arm's table of results, if there is one."""
    if carm.referred("results") is not None:
        begin_table(carm.referred("results"), _COLUMNS)


def _view_rows(view: View) -> Iterator[Row]:
    for key, name in _ERROR_NAMES.items():
        if view.reference is not None:
            yield f"{view.name}: {name}", view.reference[key], "deg" if key.endswith("deg") else "mm"
    if view.landmarks is not None:
        for row in view.landmarks.rows:
            yield f"{view.name}: landmark {row.label}", row.pixels, "pixels"
        yield f"{view.name}: landmarks, root mean square", view.landmarks.rms_pixels, "pixels"
        yield f"{view.name}: landmarks, root mean square at the anatomy", view.landmarks.rms_anatomy_mm, "mm"


def _view_dict(view: View) -> dict:
    parallel, in_ct = view.camera.parallel, view.pose_in_ct
    landmarks = None if view.landmarks is None else [vars(row) for row in view.landmarks.rows]
    return {
        "name": view.name,
        "camera": camera_to_dict(view.camera),
        "camera_to_world": view.pose.matrix.tolist(),
        "camera_to_ct": None if in_ct is None else in_ct.matrix.tolist(),
        "projection_world_to_pixels": None if parallel else projection_matrix(view.camera, view.pose).tolist(),
        "errors_against_reference": view.reference,
        "landmark_errors": landmarks,
    }


def _with_units() -> list[str]:
    return [f"{name.replace(' ', '_')}_{unit}" for name, unit in zip(PARAMETERS, UNITS, strict=True)]


def _file_names(views: Iterable[View | BoneMotion]) -> list[str]:
    """Names of C-arms or bones that every file system takes, none twice, whatever it makes of upper and lower case."""
    names: list[str] = []
    for view in views:
        first = name = re.sub(r"[^\w.-]+", "_", view.name).strip("._") or "view"
        for number in itertools.count(2):
            if name.lower() not in (other.lower() for other in names):
                break
            name = f"{first}_{number}"
        names.append(name)
    return names
