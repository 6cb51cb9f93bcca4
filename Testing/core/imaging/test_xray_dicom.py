"""Reading DICOM X-rays: files written here with pydicom, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from DiffDRRCore.errors import MissingGeometryError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.imaging.xray import XRay

STORAGE = {
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
}
GEOMETRY = {"DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 800, "ImagerPixelSpacing": [0.25, 0.5],
            "PositionerPrimaryAngle": 0, "PositionerSecondaryAngle": 0}  # fmt: skip
PIXELS = np.array([[0, 1, 2, 3], [10, 20, 30, 40], [100, 200, 1000, 4095]], dtype=np.uint16)
CAMERA = Camera(3, 4, (0.3, 0.3), 1000.0)


@pytest.fixture
def write(tmp_path):
    """write(pixels, modality, **attributes) -> path; None removes an attribute."""

    def write_file(pixels=PIXELS, modality="XA", bits=None, compress=False, **attributes):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = STORAGE[modality], generate_uid(), modality
        samples = pixels.shape[-1] if attributes.get("SamplesPerPixel") == 3 else 1
        shape = pixels.shape[:-1] if samples == 3 else pixels.shape
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = shape[-2], shape[-1], samples
        if len(shape) == 3:
            dataset.NumberOfFrames = shape[0]
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = 8 * pixels.itemsize
        dataset.BitsStored = bits or dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        for name, value in {**GEOMETRY, **attributes}.items():
            if value is not None:
                setattr(dataset, name, value)
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        if compress:
            dataset.compress(RLELossless)
        dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
        return tmp_path / "x.dcm"

    return write_file


def test_xa_gives_camera_and_pose(write):
    xray = XRay.read(write())
    assert xray.image.dtype == torch.float32
    assert np.array_equal(xray.image.numpy(), PIXELS)
    # 1200 mm / 0.25 mm rows, 1200 / 0.5 columns; radiological display, so the columns run against camera x.
    assert xray.camera.K.tolist() == [[-2400, 0, 1.5], [0, 4800, 1], [0, 0, 1]]
    assert xray.pose.translation.tolist() == pytest.approx([0, -800, 0])
    assert xray.pose.rotation[:, 2].tolist() == pytest.approx([0, 1, 0])  # beam to anterior
    assert (xray.intensity, xray.meta["pixel_spacing_source"]) == ("transmission", "ImagerPixelSpacing")
    assert "isocentre assumed at the RAS origin" in xray.meta["pose_source"]


@pytest.mark.parametrize(
    ("angles", "detector_towards"),
    [((30, 0), (-0.5, 3**0.5 / 2, 0)), ((0, 20), (0, np.cos(np.radians(20)), np.sin(np.radians(20))))],
)
def test_lao_turns_the_detector_left_and_cra_to_the_head(write, angles, detector_towards):
    path = write(PositionerPrimaryAngle=angles[0], PositionerSecondaryAngle=angles[1])
    assert XRay.read(path).pose.rotation[:, 2].tolist() == pytest.approx(list(detector_towards))


# PixelSpacing at the object times the magnification is the spacing at the detector.
SPACINGS = [
    ({"PixelSpacing": [0.2, 0.3], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.3, 0.45)),  # SID / SOD = 1.5
    ({"PixelSpacing": [0.2, 0.3], "PixelSpacingCalibrationType": "FIDUCIAL",
      "EstimatedRadiographicMagnificationFactor": 1.25}, (0.25, 0.375)),
    ({"PixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 1.25}, (0.25, 0.375)),
    ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.7, 0.8],
      "EstimatedRadiographicMagnificationFactor": 1.25}, (0.7, 0.8)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "expected"), SPACINGS)
def test_pixel_spacing_is_carried_to_the_detector(write, attributes, expected):
    camera = XRay.read(write(**{"ImagerPixelSpacing": None, **attributes})).camera
    assert camera.pixel_spacing.tolist() == pytest.approx(list(expected))


def test_pixel_spacing_of_unknown_depth_is_warned_of(write):
    with pytest.warns(UserWarning, match="taken as measured at the detector"):
        xray = XRay.read(write(ImagerPixelSpacing=None, PixelSpacing=[0.2, 0.3]))
    assert xray.camera.pixel_spacing.tolist() == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize(
    ("absent", "missing"),
    [
        ({"ImagerPixelSpacing": None}, ("ImagerPixelSpacing (mm)",)),
        ({"ImagerPixelSpacing": [0, 0]}, ("ImagerPixelSpacing (mm)",)),
        ({"DistanceSourceToDetector": None}, ("DistanceSourceToDetector (mm)",)),
        ({"ImagerPixelSpacing": None, "DistanceSourceToDetector": None},
         ("DistanceSourceToDetector (mm)", "ImagerPixelSpacing (mm)")),
    ],
)  # fmt: skip
def test_missing_geometry_is_named_and_a_camera_replaces_it(write, absent, missing):
    path = write(**absent)
    with pytest.raises(MissingGeometryError, match="camera=") as caught:
        XRay.read(path)
    assert caught.value.missing == missing
    xray = XRay.read(path, camera=CAMERA)
    assert xray.camera is CAMERA
    assert xray.pose.translation.tolist() == pytest.approx([0, -800, 0])


def test_a_missing_pose_is_no_error_but_named(write):
    xray = XRay.read(write(PositionerPrimaryAngle=None, DistanceSourceToPatient=None))
    assert xray.pose is None
    assert set(xray.meta["pose_missing"]) == {"PositionerPrimaryAngle", "DistanceSourceToPatient"}


def test_a_malformed_value_that_is_only_reported_does_no_harm(write):
    path = write(KVP=70)
    path.write_bytes(path.read_bytes().replace(b"\x18\x00\x60\x00DS\x04\x0070.0", b"\x18\x00\x60\x00DS\x04\x00xyz "))
    assert pydicom.dcmread(path).get_item("KVP").value.strip() == b"xyz"
    assert "kvp" not in XRay.read(path).meta
    assert XRay.read(write(KVP=70)).meta["kvp"] == 70


@pytest.mark.parametrize("value", [{"DistanceSourceToDetector": 1.2}, {"ImagerPixelSpacing": [250, 250]}])
def test_wrong_units_in_the_header_are_caught(write, value):
    with pytest.raises(ReadError, match="looks like"):
        XRay.read(write(**value))


# (modality, photometric, sign) -> (intensity, whether the stored values are turned over)
MEANINGS = [
    ("XA", "MONOCHROME2", None, "transmission", False),
    ("RF", "MONOCHROME1", None, "transmission", True),
    ("DX", "MONOCHROME2", None, "attenuation", False),
    ("CR", "MONOCHROME1", None, "attenuation", True),
    ("DX", "MONOCHROME1", 1, "transmission", False),
    ("DX", "MONOCHROME2", -1, "attenuation", False),
    ("XA", "MONOCHROME2", -1, "attenuation", False),
]


@pytest.mark.parametrize(("modality", "photometric", "sign", "intensity", "inverted"), MEANINGS)
def test_what_is_bright(write, modality, photometric, sign, intensity, inverted):
    path = write(modality=modality, bits=12, PhotometricInterpretation=photometric, PixelIntensityRelationshipSign=sign)
    xray = XRay.read(path)
    assert xray.intensity == intensity
    assert np.array_equal(xray.image.numpy(), 4095 - PIXELS if inverted else PIXELS)


def test_rescale_applies_and_a_falling_one_turns_the_sign(write):
    path = write(bits=12, RescaleSlope=-2, RescaleIntercept=8190, PixelIntensityRelationshipSign=1)
    xray = XRay.read(path)
    assert np.array_equal(xray.image.numpy(), 8190 - 2.0 * PIXELS)
    assert xray.intensity == "attenuation"


def test_log_values_are_linear_after_their_modality_lut_and_flagged_without(write):
    assert XRay.read(write(PixelIntensityRelationship="LOG")).meta["logarithmic"] is True
    item = Dataset()
    table = (np.arange(4096, dtype=np.uint16) * 3).astype(np.uint16)
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "US", table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    xray = XRay.read(write(PixelIntensityRelationship="LOG", bits=12, ModalityLUTSequence=Sequence([item])))
    assert np.array_equal(xray.image.numpy(), 3.0 * PIXELS)
    assert xray.meta["logarithmic"] is False


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_8_and_16_bits_signed_and_unsigned(write, dtype, compress):
    info = np.iinfo(dtype)
    pixels = np.array([[info.min, info.max, 0], [1, 2, 77]], dtype=dtype)
    assert np.array_equal(XRay.read(write(pixels, compress=compress)).image.numpy(), pixels)


def test_bits_above_the_stored_ones_do_not_count(write):
    overlay = PIXELS | np.uint16(0xA000)
    assert np.array_equal(XRay.read(write(overlay, bits=12)).image.numpy(), PIXELS)
    negative = np.array([[-2048, -1, 5]], dtype=np.int16)
    assert np.array_equal(XRay.read(write(negative & np.int16(0x0FFF), bits=12)).image.numpy(), negative)


RUN = np.stack([PIXELS, PIXELS // 2, PIXELS + 7]).astype(np.uint16)


@pytest.mark.parametrize("compress", [False, True])
def test_frames(write, compress):
    path = write(RUN, compress=compress)
    with pytest.raises(ReadError, match=r'3 frames; choose one of 0 to 2.*"mean", "max" or "min"'):
        XRay.read(path)
    with pytest.raises(ReadError, match="no frame 3"):
        XRay.read(path, frame=3)
    assert np.array_equal(XRay.read(path, frame=1).image.numpy(), RUN[1])
    for name in ("mean", "max", "min"):
        expected = getattr(RUN.astype(np.float64), name)(axis=0)
        np.testing.assert_allclose(XRay.read(path, frame=name).image.numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize(("increment", "primaries"), [(2.5, (10, 12.5, 15)), ([0, 1, 7], (10, 11, 17))])
def test_angles_of_a_run_follow_the_increments(write, increment, primaries):
    path = write(RUN, PositionerPrimaryAngle=10, PositionerPrimaryAngleIncrement=increment)
    for frame, primary in enumerate(primaries):
        beam = XRay.read(path, frame=frame).pose.rotation[:, 2]
        angle = np.radians(primary)
        assert beam.tolist() == pytest.approx([-np.sin(angle), np.cos(angle), 0])
    mean = XRay.read(path, frame="mean")
    assert mean.pose is None
    assert "moves" in mean.meta["pose_missing"][0]
    assert XRay.read(write(RUN, PositionerPrimaryAngleIncrement=[0, 0, 0]), frame="mean").pose is not None


def test_enhanced_multiframe_attributes_are_found_in_the_functional_groups(write):
    def group(**sequences):
        item = Dataset()
        for name, attributes in sequences.items():
            inner = Dataset()
            for key, value in attributes.items():
                setattr(inner, key, value)
            setattr(item, name, Sequence([inner]))
        return item

    shared = group(FramePixelDataPropertiesSequence={"ImagerPixelSpacing": [0.4, 0.4]})
    frames = [group(PositionerPositionSequence={"PositionerPrimaryAngle": a, "PositionerSecondaryAngle": 0})
              for a in (0, 45, 90)]  # fmt: skip
    path = write(RUN, ImagerPixelSpacing=None, PositionerPrimaryAngle=None, PositionerSecondaryAngle=None,
                 DistanceSourceToPatient=None, DistanceSourceToIsocenter=700,
                 SharedFunctionalGroupsSequence=Sequence([shared]),
                 PerFrameFunctionalGroupsSequence=Sequence(frames))  # fmt: skip
    xray = XRay.read(path, frame=2)
    assert xray.camera.pixel_spacing.tolist() == pytest.approx([0.4, 0.4])
    assert xray.pose.translation.tolist() == pytest.approx([700, 0, 0])  # LAO 90: from the right to the left


@pytest.mark.parametrize(
    ("orientation", "primary", "view_from", "columns_to", "rows_to"),
    [
        (["L", "F"], 0, "detector", (-1, 0, 0), (0, 0, -1)),
        (["R", "F"], 0, "source", (1, 0, 0), (0, 0, -1)),
        (["R", "H"], 0, "detector", (1, 0, 0), (0, 0, 1)),
        (["F", "L"], 0, "source", (0, 0, -1), (-1, 0, 0)),
        (["P", "F"], 90, "detector", (0, -1, 0), (0, 0, -1)),
        (["A", "F"], 90, "source", (0, 1, 0), (0, 0, -1)),
    ],
)
def test_patient_orientation_decides_view_and_roll(write, orientation, primary, view_from, columns_to, rows_to):
    xray = XRay.read(write(PatientOrientation=orientation, PositionerPrimaryAngle=primary))
    assert xray.camera.view_from == view_from
    side = 1 if view_from == "source" else -1
    assert (side * xray.pose.rotation[:, 0]).tolist() == pytest.approx(list(columns_to), abs=1e-9)
    assert xray.pose.rotation[:, 1].tolist() == pytest.approx(list(rows_to), abs=1e-9)


def test_nonsense_orientations_are_not_used(write):
    for orientation in (["A", "P"], ["X", "F"], ["L"], ["", ""]):
        xray = XRay.read(write(PatientOrientation=orientation))
        assert xray.camera.view_from == "detector"
        assert "assumed" in xray.meta["view_from_source"]


# A detector of 100 x 80 elements of 0.5 mm, 50 x 40 mm; image pixels are 2 x 2 elements (1 mm), 3 x 4 of them.
DETECTOR = {"ImagerPixelSpacing": [1.0, 1.0], "DetectorElementSpacing": [0.5, 0.5], "FieldOfViewOrigin": [46, 34],
            "FieldOfViewRotation": 0, "FieldOfViewHorizontalFlip": "NO"}  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "point"),
    [
        # The field's corner lies at (23, 17) mm (down, right); its centre at (24.5, 19); the detector's at (25, 20):
        # 0.5 mm further down and 1 mm further right than the image's centre (1.5, 1).
        ({"PhysicalDetectorSize": [50, 40]}, (2.5, 1.5)),
        ({"DetectorActiveOrigin": [10, 10], "DetectorActiveDimensions": [40, 30]}, (2.5, 1.5)),
        ({"PositionOfIsocenterProjection": [49.5, 39.5]}, (2.5, 1.5)),
        ({"PhysicalDetectorSize": [50, 40], "FieldOfViewHorizontalFlip": "YES"}, (0.5, 1.5)),
        # Turned by 90 degrees the field was 4 mm high and 3 mm wide, centre (25, 18.5): detector (0, +1.5), which a
        # clockwise turn carries from right to down.
        ({"PhysicalDetectorSize": [50, 40], "FieldOfViewRotation": 90}, (1.5, 2.5)),
        ({"FieldOfViewOrigin": None, "PhysicalDetectorSize": [50, 40]}, (1.5, 1)),
        ({}, (1.5, 1)),
    ],
)
def test_the_principal_point_follows_the_field_of_view(write, attributes, point):
    camera = XRay.read(write(**{**DETECTOR, **attributes})).camera
    assert camera.principal_point.tolist() == pytest.approx(list(point))


def test_colour_and_unreadable_files(write, tmp_path):
    colour = np.zeros((3, 4, 3), dtype=np.uint8)
    with pytest.raises(ReadError, match="colour"):
        XRay.read(write(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    with pytest.raises(ReadError, match="Rows"):
        XRay.read(_without(write(), "Rows"))
    with pytest.raises(ReadError, match="no image"):
        XRay.read(_without(write(), "PixelData"))
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(ReadError, match="not a DICOM file"):
        XRay.read(tmp_path / "text.dcm")
    data = write().read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:-5])
    with pytest.raises(ReadError, match=r"cut\.dcm"):
        XRay.read(tmp_path / "cut.dcm")


@pytest.mark.parametrize("frame", [0, "mean"])
@pytest.mark.parametrize("attributes", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 10**9}])
def test_a_header_that_asks_for_gigabytes_is_refused_at_once(write, attributes, frame):
    with pytest.raises(ReadError, match="damaged"):
        XRay.read(write(**attributes), frame)


def test_a_json_camera_replaces_the_header_pose_included(write, tmp_path):
    pose = Pose.exp(torch.tensor([0.1, 0.2, 0.3, 4.0, 5.0, 6.0], dtype=torch.float64))
    write_camera(tmp_path / "given.json", CAMERA, pose, "attenuation", {"calibrated": "today"})
    xray = XRay.read(write(), camera=tmp_path / "given.json")
    assert torch.equal(xray.camera.K, CAMERA.K)
    assert torch.equal(xray.pose.matrix, pose.matrix)
    assert (xray.intensity, xray.meta["calibrated"]) == ("attenuation", "today")
    xray.write(tmp_path / "again.nrrd")
    assert XRay.read(tmp_path / "again.nrrd").meta == xray.meta


def _without(path, keyword):
    dataset = pydicom.dcmread(path)
    del dataset[keyword]
    dataset.save_as(path)
    return path
