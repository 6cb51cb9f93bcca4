"""Sample data in Slicer's Sample Data module: a chest CT of Slicer's own catalogue, and a fluoroscopy made of it."""

from __future__ import annotations

from pathlib import Path

CATEGORY, TITLE = "DiffDRRSlicer", "2D/3D registration"
CT = "CTChest"  # its name in Slicer's catalogue, which knows where it is and what its checksum is
CT_NAME, FLUOROSCOPY_NAME = "Chest CT for registration", "Chest CT with simulated fluoroscopy"
_SOURCE_TO_DETECTOR, _SOURCE_TO_ISOCENTER = 1020.0, 750.0  # mm
_PIXELS, _SPACING = 320, 1.25  # mm at the detector
_SHOT = {"primary": 8.0, "secondary": -5.0, "roll": 2.0}  # degrees, where the X-ray is taken
_SETTINGS = {"filtration": {"Al": 3.0}, "dose": 5.0, "focal_spot": 0.6, "blur": 1.3}
_SHIFT = (6.0, -10.0, 8.0)  # mm, of the isocentre from the CT's centre


def register(resources_folder: str | Path) -> None:
    """List the samples in the Sample Data module; call it when the application has started up.

    Nothing is listed where that module is switched off, or has no such CT any more.
    """
    try:
        import SampleData
    except ImportError:
        return
    logic = SampleData.SampleDataLogic()
    ct = logic.sourceForSampleName(CT)
    if ct is None:
        return
    if hasattr(logic, "registerCustomSampleDataCategory"):  # Slicer 5.12 and newer
        logic.registerCustomSampleDataCategory(CATEGORY, TITLE)
    icons = Path(resources_folder) / "Icons"
    files = {"uris": ct.uris, "fileNames": ct.fileNames, "nodeNames": ct.nodeNames, "checksums": ct.checksums}
    for name, icon, downloader in ((CT_NAME, "SampleCT.png", None), (FLUOROSCOPY_NAME, "SampleXRay.png", download)):
        logic.registerCustomSampleDataSource(
            CATEGORY, name, **files, thumbnailFileName=str(icons / icon), customDownloader=downloader
        )


def download(source) -> list:
    """What the button of the simulated fluoroscopy does: load the CT, unless it is there, and make an X-ray of it.

    Packages are installed first where they are missing, after asking. Returns [CT volume node, C-arm transform node].
    What goes wrong is shown to the user, then raised.

    Args:
        source: the SampleDataSource of the button; the CT is found by name.
    """
    import SampleData
    import slicer

    from DiffDRRSlicerLib import install

    with slicer.util.tryWithErrorDisplay("The sample fluoroscopy could not be made.", waitCursor=True):
        install.install()
        ct = slicer.util.getFirstNodeByClassByName("vtkMRMLScalarVolumeNode", CT, slicer.mrmlScene)
        ct = ct or SampleData.SampleDataLogic().downloadSample(CT)
        return [ct, simulate(slicer.mrmlScene, ct).node]


def simulate(scene, ct):
    """A simulated fluoroscopy of a CT volume node, seen from a place that the C-arm then leaves. Returns its CArmNode.

    The X-ray is taken obliquely and off the centre; the C-arm is left posterior-anterior at the CT's centre, so that
    there is something to register. The place where it was taken is kept as the X-ray's reference.
    """
    from DiffDRRCore import CArm
    from DiffDRRSlicerLib.scene.anatomy import Anatomy
    from DiffDRRSlicerLib.scene.simulation import Scanned, simulate_xray
    from DiffDRRSlicerLib.scene.simulation_settings import Settings

    anatomy = Anatomy(ct)
    scanned = Scanned(anatomy, Settings(**_SETTINGS))
    center = anatomy.center
    arm = CArm(_SOURCE_TO_DETECTOR, _SOURCE_TO_ISOCENTER, center + _SHIFT, **_SHOT)
    camera = arm.camera(_PIXELS, _PIXELS, (_SPACING, _SPACING), view_from="detector")
    name = "Simulated fluoroscopy"
    carm = simulate_xray(scene, scanned, camera, arm.pose, source_to_isocenter=_SOURCE_TO_ISOCENTER, name=name)
    carm.move_arm(primary=0.0, secondary=0.0, roll=0.0, isocenter=center)
    carm.look_at(center)
    return carm
