"""ITK transform files as Slicer means them: from parent, in LPS."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRCore.geometry.itk_transform import read_itk_transform, write_itk_transform

POINTS_RAS = np.array([[0.0, 0, 0], [10, 20, 30], [-55.5, 120, -7], [300, -200, 45]])
SUFFIXES = (".tfm", ".txt", ".h5")

# 90 degrees about S (R to A, A to -R), then a shift by (10, 20, 30): a node's MatrixTransformToParent in Slicer.
TO_PARENT = np.array([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
# By hand: from parent is p -> R^T (p - t): R^T = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]] and -R^T t = (-20, 10, -30) in RAS.
# In LPS the matrix keeps its upper left 2 x 2 block, and the shift becomes (20, -10, -30).
FILE_MATRIX = [0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
FILE_TRANSLATION = [20.0, -10.0, -30.0]


def affine_file(path, matrix, translation, center=(0.0, 0.0, 0.0)):
    transform = sitk.AffineTransform(3)
    transform.SetCenter(center)
    transform.SetMatrix(matrix)
    transform.SetTranslation(translation)
    sitk.WriteTransform(transform, str(path))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_by_hand_worked_numbers(tmp_path, suffix):
    path = tmp_path / f"pose{suffix}"
    write_itk_transform(path, TO_PARENT)
    transform = sitk.ReadTransform(str(path)).Downcast()
    assert isinstance(transform, sitk.AffineTransform)
    assert transform.GetMatrix() == pytest.approx(FILE_MATRIX)
    assert transform.GetTranslation() == pytest.approx(FILE_TRANSLATION)
    assert transform.GetCenter() == (0.0, 0.0, 0.0)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_by_hand_worked_numbers(tmp_path, suffix):
    path = affine_file(tmp_path / f"pose{suffix}", FILE_MATRIX, FILE_TRANSLATION)
    np.testing.assert_allclose(read_itk_transform(path), TO_PARENT, atol=1e-12)


def test_file_written_by_slicer(tmp_path):
    """slicer-core 5.13.31053.0: vtkMRMLTransformStorageNode wrote this for the MatrixTransformToParent below."""
    to_parent = _affine((0.4, -1.1, 0.7), (123.4, -567.8, 91.2), (1.0, 1.0, 1.0))
    path = tmp_path / "Slicer.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 0.273847282008857 0.3143645628788652 -0.9089458662331554 -0.6902553816036919 0.7223533725327981 "
        "0.041870196532064335 0.6697426179537198 0.6159387362363826 0.41480633903066705 -61.80758120226292 "
        "-499.1483209377426 -304.91411349912585\nFixedParameters: 2.1316282072803006e-14 0 0\n"
    )
    np.testing.assert_allclose(read_itk_transform(path), to_parent, atol=1e-9)
    write_itk_transform(tmp_path / "ours.tfm", to_parent)
    ours, theirs = (sitk.ReadTransform(str(file)).GetParameters() for file in (tmp_path / "ours.tfm", path))
    assert ours == pytest.approx(theirs, abs=1e-9)


affine = st.builds(
    lambda rotvec, shift, scale: _affine(rotvec, shift, scale),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(-2000, 2000)] * 3),
    st.tuples(*[st.floats(0.5, 2)] * 3),
)


def _affine(rotvec, shift, scale) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix() * scale
    matrix[:3, 3] = shift
    return matrix


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(to_parent=affine, suffix=st.sampled_from(SUFFIXES))
def test_simpleitk_takes_lps_points_from_the_parent(tmp_path, to_parent, suffix):
    path = tmp_path / f"any{suffix}"
    write_itk_transform(path, to_parent)
    transform = sitk.ReadTransform(str(path))
    for point in POINTS_RAS:
        in_parent = to_parent[:3, :3] @ point + to_parent[:3, 3]
        lps = transform.TransformPoint((in_parent * [-1, -1, 1]).tolist())
        np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], point, atol=1e-8)
    np.testing.assert_allclose(read_itk_transform(path), to_parent, rtol=0, atol=1e-9)


def test_other_linear_types_and_centres(tmp_path):
    """Euler angles about a centre c: x -> R (x - c) + c + t, as the ITK Software Guide has it."""
    euler = sitk.Euler3DTransform((10.0, -20.0, 30.0), 0.1, 0.2, -0.3, (1.0, 2.0, 3.0))
    composite = sitk.CompositeTransform([sitk.TranslationTransform(3, (5.0, 6.0, 7.0)), euler])
    for name, transform in {"euler": euler, "composite": composite}.items():
        path = tmp_path / f"{name}.h5"
        sitk.WriteTransform(transform, str(path))
        to_parent = read_itk_transform(path).numpy()
        for point in POINTS_RAS:
            taken = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
            np.testing.assert_allclose(to_parent[:3, :3] @ taken + to_parent[:3, 3], point, atol=1e-9)


def test_a_pose_tensor_with_gradient_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    write_itk_transform(tmp_path / "pose.h5", torch.tensor(TO_PARENT, dtype=torch.float32, requires_grad=True))
    np.testing.assert_allclose(read_itk_transform(tmp_path / "pose.h5"), TO_PARENT, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), GeometryError, "4 x 4"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), GeometryError, "singular"),
        (np.full((4, 4), np.nan), GeometryError, "not finite"),
        (np.ones((4, 4)), GeometryError, "last row"),
    ],
)
def test_bad_matrices_leave_the_old_file(tmp_path, matrix, error, message):
    path = tmp_path / "pose.tfm"
    path.write_text("old")
    with pytest.raises(error, match=message):
        write_itk_transform(path, matrix)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(DiffDRRError, match=r"\.tfm, \.txt, \.h5"):
        write_itk_transform(tmp_path / "pose.json", TO_PARENT)
    assert not list(tmp_path.iterdir())


def test_unreadable_files(tmp_path):
    with pytest.raises(ReadError, match="no transform file"):
        read_itk_transform(tmp_path / "absent.tfm")
    for name, content in {"empty.tfm": "", "words.txt": "not a transform", "cut.h5": "\x89HDF"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ReadError, match=name):
            read_itk_transform(tmp_path / name)


def test_unusable_transforms(tmp_path):
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    with pytest.raises(ReadError, match="linear 3D"):
        read_itk_transform(tmp_path / "flat.tfm")
    spline = sitk.BSplineTransformInitializer(sitk.Image(8, 8, 8, sitk.sitkUInt8), [2, 2, 2])
    sitk.WriteTransform(spline, str(tmp_path / "spline.h5"))
    with pytest.raises(ReadError, match="linear 3D"):
        read_itk_transform(tmp_path / "spline.h5")
    path = affine_file(tmp_path / "singular.tfm", [1.0, 0, 0, 0, 1, 0, 0, 0, 0], [0.0, 0, 0])
    with pytest.raises(ReadError, match="singular"):
        read_itk_transform(path)
