"""The JSON camera: hand-worked numbers, exact round trips, one sentence for each thing that can be wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import DiffDRRError, GeometryError, MissingGeometryError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import read_camera, write_camera

PHYSICAL = {"height": 480, "width": 640, "pixel_spacing": [0.25, 0.5], "source_to_detector": 1000.0}
MATRIX = {"height": 480, "width": 640, "K": [[-2000, 0, 300], [0, 4000, 200], [0, 0, 1]], "source_to_detector": 1000}


def write(path, content) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_physical_form_gives_the_intrinsics_worked_out_by_hand(tmp_path):
    write(tmp_path / "c.json", PHYSICAL)
    file = read_camera(tmp_path / "c.json")
    # rows are 0.25 mm apart, so 1000 mm are 4000 rows; columns 0.5 mm, so 2000 columns; centre of 640 x 480.
    assert file.camera.K.tolist() == [[2000, 0, 319.5], [0, 4000, 239.5], [0, 0, 1]]
    assert (file.camera.height, file.camera.width, file.camera.view_from) == (480, 640, "source")
    assert file.pose is None
    assert file.intensity is None


def test_detector_view_and_principal_point(tmp_path):
    write(tmp_path / "c.json", {**PHYSICAL, "view_from": "detector", "principal_point": [10.5, 20.25], "units": "mm"})
    assert read_camera(tmp_path / "c.json").camera.K.tolist() == [[-2000, 0, 10.5], [0, 4000, 20.25], [0, 0, 1]]


def test_the_matrix_form_with_either_length(tmp_path):
    write(tmp_path / "a.json", MATRIX)
    content = {key: value for key, value in MATRIX.items() if key != "source_to_detector"}
    write(tmp_path / "b.json", {**content, "pixel_spacing": [0.25, 0.5], "intensity": "attenuation"})
    a, b = read_camera(tmp_path / "a.json"), read_camera(tmp_path / "b.json")
    assert a.camera.pixel_spacing.tolist() == [0.25, 0.5]
    assert a.camera.view_from == "detector"
    assert float(b.camera.source_to_detector) == 1000
    assert b.intensity == "attenuation"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(500, 20000), st.floats(500, 20000), st.floats(-900, 900), st.floats(-900, 900), st.floats(-30, 30),
    st.floats(500, 2000), st.booleans(), st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)  # fmt: skip
def test_a_round_trip_keeps_every_bit(tmp_path, fx, fy, u0, v0, skew, distance, mirrored, turn):
    K = [[-fx if mirrored else fx, skew, u0], [0, fy, v0], [0, 0, 1]]
    camera = Camera.from_intrinsics(K, 31, 17, source_to_detector=distance)
    pose = Pose.exp(torch.tensor([*turn, 10.0, -700.0, 3.3], dtype=torch.float64))
    write_camera(tmp_path / "c.json", camera, pose, "transmission", {"note": [1, None]})
    file = read_camera(tmp_path / "c.json")
    assert torch.equal(file.camera.K, camera.K)
    assert torch.equal(file.camera.source_to_detector, camera.source_to_detector)
    assert torch.equal(file.pose.matrix, pose.matrix)
    assert (file.intensity, file.meta, file.camera.height, file.camera.width) == (
        "transmission", {"note": [1, None]}, 31, 17,
    )  # fmt: skip


def test_the_written_file_is_readable_by_people(tmp_path):
    write_camera(tmp_path / "c.json", Camera(480, 640, (0.25, 0.5), 1000.0, view_from="detector"))
    content = json.loads((tmp_path / "c.json").read_text())
    assert content == {
        "units": "mm", "height": 480, "width": 640, "pixel_spacing": [0.25, 0.5], "source_to_detector": 1000.0,
        "principal_point": [319.5, 239.5], "view_from": "detector",
    }  # fmt: skip


def test_a_parallel_camera_survives(tmp_path):
    camera = Camera.parallel_beam(4, 6, (0.5, 0.25), 1500.0, (1.0, 2.0), "detector")
    write_camera(tmp_path / "c.json", camera)
    again = read_camera(tmp_path / "c.json").camera
    assert again.parallel
    torch.testing.assert_close(again.K, camera.K, rtol=1e-15, atol=0)
    assert float(again.source_to_detector) == 1500


BAD = [
    ({**PHYSICAL, "source_to_detector": 1.0}, "source_to_detector = 1 mm.*looks like metres"),
    ({**PHYSICAL, "source_to_detector": 99.0, "pixel_spacing": [0.1, 0.1]}, "looks like centimetres"),
    ({**PHYSICAL, "pixel_spacing": [2.5e-4, 2.5e-4]}, "pixel_spacing.*looks like metres"),
    ({**PHYSICAL, "pixel_spacing": [250.0, 250.0]}, "pixel_spacing.*looks like micrometres"),
    ({**PHYSICAL, "source_to_detector": 1e9}, "source_to_detector"),
    ({**PHYSICAL, "sdd": 3}, "unknown key 'sdd'"),
    ({**PHYSICAL, "units": "m"}, "units is one of"),
    ({**PHYSICAL, "intensity": "bright"}, "intensity is one of"),
    ({**PHYSICAL, "view_from": "left"}, "view_from is one of"),
    ({**PHYSICAL, "view_from": ["source"]}, "view_from is one of"),
    ({**PHYSICAL, "meta": 3}, "meta must be"),
    ({**PHYSICAL, "height": 0}, "height must be a whole number"),
    ({**PHYSICAL, "height": 4.5}, "height must be a whole number"),
    ({**PHYSICAL, "height": True}, "height must be a whole number"),
    ({**PHYSICAL, "pixel_spacing": 0.3}, "pixel_spacing must be 2 numbers"),
    ({**PHYSICAL, "pixel_spacing": [0.3, "0.3"]}, "pixel_spacing must be 2 numbers"),
    ({**PHYSICAL, "pixel_spacing": [0.3, -0.3]}, "positive"),
    ({**PHYSICAL, "source_to_detector": None}, "source_to_detector must be a number"),
    ({**PHYSICAL, "principal_point": [1, 2, 3]}, "principal_point must be 2 numbers"),
    ({**MATRIX, "K": [[0, 0, 1], [0, 1, 1], [0, 0, 1]]}, "focal length"),
    ({**MATRIX, "K": [[1, 2], [3, 4]]}, "K must be 3 x 3 numbers"),
    ({**MATRIX, "K": [[2000, 0, 1], [5, 2000, 1], [0, 0, 1]]}, "upper triangular"),
    ({**MATRIX, "view_from": "source"}, "K says it already"),
    ({**MATRIX, "pixel_spacing": [0.25, 0.5]}, "K says it already"),
    ({**MATRIX, "parallel": True}, "by pixel_spacing, not by K"),
    ({**PHYSICAL, "pose": [[1, 0], [0, 1]]}, "pose must be 4 x 4 numbers"),
    ({**PHYSICAL, "pose": [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "mirror|reflect|determinant"),
    ({**PHYSICAL, "pose": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}, "rigid|rotation"),
    ('{"height": 480, "width": 640, "pixel_spacing": [NaN, 1], "source_to_detector": 1000}', "not finite"),
    ('{"height": 480, "width": 640, "pixel_spacing": [1, 1], "source_to_detector": Infinity}', "not finite"),
    ("[1, 2]", "one JSON object"),
    ("{", "not JSON"),
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), BAD)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, content, words):
    write(tmp_path / "bad.json", content)
    with pytest.raises(ReadError, match=words) as caught:
        read_camera(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("absent", "missing"),
    [
        (["height"], ("height",)),
        (["pixel_spacing"], ("pixel_spacing (mm)",)),
        (["width", "source_to_detector", "pixel_spacing"], ("width", "pixel_spacing (mm)", "source_to_detector (mm)")),
    ],
)
def test_missing_keys_are_named(tmp_path, absent, missing):
    write(tmp_path / "c.json", {key: value for key, value in PHYSICAL.items() if key not in absent})
    with pytest.raises(MissingGeometryError) as caught:
        read_camera(tmp_path / "c.json")
    assert caught.value.missing == missing
    assert all(name in str(caught.value) for name in missing)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ReadError, match="Cannot read the camera file"):
        read_camera(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    with pytest.raises(ReadError, match="no camera file: it is not text"):
        read_camera(tmp_path / "binary.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    camera = Camera(4, 6, (0.5, 0.5), 1000.0)
    write_camera(tmp_path / "c.json", camera)
    before = (tmp_path / "c.json").read_text()
    with pytest.raises(DiffDRRError, match="JSON cannot hold"):
        write_camera(tmp_path / "c.json", camera, meta={"bad": math.nan})
    with pytest.raises(GeometryError, match="one camera"):
        write_camera(tmp_path / "c.json", Camera(4, 6, (0.5, 0.5), torch.tensor([1000.0, 900.0])))
    assert (tmp_path / "c.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
