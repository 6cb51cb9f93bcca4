"""Our views in the peers' numbers, by hand and by the peers' documented rules; no peer is needed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import Camera, CArm, Pose, Volume, project
from DiffDRRCore.geometry.converters import RTKProjection, from_diffdrr, from_nanodrr, from_rtk, lps_to_ras
from Testing.benchmarks.peers import views

CENTER = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
POINTS = torch.tensor([[0.0, 0, 0], [30, -20, 50], [-60, 45, -25], [12.5, 80, -70]], dtype=torch.float64) + CENTER
SIDES = [(0.0, 0.0), (90.0, 0.0), (45.0, 20.0), (-130.0, -35.0)]


def shot(primary: float, secondary: float, **options) -> tuple[Camera, Pose]:
    arm = CArm(1020.0, 850.0, CENTER, primary, secondary, **options)
    return arm.camera(120, 200, (2.0, 1.5)), arm.pose


def test_plastimatch_ap_by_hand():
    """The tube behind the patient (+P in LPS) at sad 850, the image's top towards the head."""
    numbers = views.plastimatch_view(*shot(0.0, 0.0), CENTER)
    np.testing.assert_allclose(numbers["nrm"], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(numbers["vup"], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(numbers["isocenter"], [-10, 20, 30], atol=1e-9)
    assert numbers["sad"] == pytest.approx([850.0])
    assert numbers["sid"] == [1020.0]
    assert numbers["dim"] == [120, 200]
    assert numbers["detector-size"] == [240.0, 300.0]
    assert numbers["image-center"] == pytest.approx([59.5, 99.5])


def by_plastimatch(numbers: dict, points: np.ndarray) -> np.ndarray:
    """(u, v) by the program's rule: source at isocenter + sad nrm, panel at sid from it, columns along nrm x vup."""
    normal, up, isocenter = (np.array(numbers[name]) for name in ("nrm", "vup", "isocenter"))
    offset = points - (isocenter + numbers["sad"][0] * normal)
    right = np.cross(up, normal)
    on_panel = offset * (numbers["sid"][0] / -(offset @ normal))[:, None]
    height, width = numbers["detector-size"]
    rows, columns = numbers["dim"]
    v0, u0 = numbers["image-center"]
    return np.c_[u0 + on_panel @ right / (width / columns), v0 - on_panel @ up / (height / rows)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("offset", [(0.0, 0.0), (12.0, -9.0)])
def test_plastimatch_sees_the_same(side, offset):
    camera, pose = shot(*side, roll=15.0, detector_offset=offset)
    numbers = views.plastimatch_view(camera, pose, CENTER)
    np.testing.assert_allclose(
        by_plastimatch(numbers, lps_to_ras(POINTS).numpy()), project(camera, pose, POINTS)[0], atol=1e-6
    )


@pytest.mark.parametrize("side", SIDES)
def test_all_peers_see_the_same(side):
    """What goes over the wire, read back by our tested converters, projects points to the same pixels."""
    camera, pose = shot(*side)
    view = json.loads(json.dumps(views.view(camera, pose, CENTER)))
    expected = project(camera, pose, POINTS)[0]
    height, width = view["height"], view["width"]
    nanodrr = {name: torch.tensor(view["nanodrr"][name], dtype=torch.float64) for name in ("k_inv", "rt_inv", "sdd")}
    np.testing.assert_allclose(project(*from_nanodrr(**nanodrr, height=height, width=width), POINTS)[0], expected)
    diffdrr = dict(view["diffdrr"], matrix=torch.tensor(view["diffdrr"]["matrix"], dtype=torch.float64))
    np.testing.assert_allclose(project(*from_diffdrr(**diffdrr, volume_center=CENTER), POINTS)[0], expected)
    rtk = project(*from_rtk(RTKProjection(**view["rtk"]), height, width, view["spacing"]), POINTS)[0]
    mirrored = torch.stack([width - 1 - rtk[:, 0], rtk[:, 1]], dim=-1)
    np.testing.assert_allclose(mirrored, expected)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_file_keeps_voxels_in_place(signs, tmp_path):
    affine = np.diag([2.0 * signs[0], 3.0 * signs[1], 5.0 * signs[2], 1.0])
    affine[:3, 3] = 7.0, -11.0, 13.0
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 100
    volume = Volume.from_attenuation(values, affine)
    image = sitk.ReadImage(str(views.write_volume(volume, tmp_path)))
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert image.GetSpacing() == (2, 3, 5)
    for k, j, i in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        ras = affine @ [i, j, k, 1]
        where = image.TransformPhysicalPointToIndex((-ras[0], -ras[1], ras[2]))
        assert image[where] == pytest.approx(float(values[k, j, i]))


def test_file_of_a_turned_grid_is_refused():
    turned = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with pytest.raises(ValueError, match="along the patient"):
        views.along_lps(np.zeros((2, 2, 2)), turned)
