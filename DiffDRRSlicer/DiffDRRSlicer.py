"""DiffDRRSlicer: lay a CT over an X-ray, in 3D Slicer.

The four classes that Slicer looks for. What they do is in DiffDRRSlicerLib (`panel` for widgets, `scene` for nodes) and
in DiffDRRCore (rendering and registration, without Slicer). Nothing here loads torch before it is used.
"""

import importlib.util
import logging
import sys
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.bones_logic import BonesLogic
from DiffDRRSlicerLib.calibration_logic import CalibrationLogic
from DiffDRRSlicerLib.dataset_logic import DatasetLogic
from DiffDRRSlicerLib.learning_logic import LearningLogic
from DiffDRRSlicerLib.names import choose_first
from DiffDRRSlicerLib.parameters import DiffDRRSlicerParameterNode
from DiffDRRSlicerLib.tracking_logic import TrackingLogic


class DiffDRRSlicer(ScriptedLoadableModule):
    """The module, as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DiffDRR 2D/3D Registration")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DiffDRRSlicer developers"]
        self.parent.helpText = _(
            "Registers a CT to X-ray fluoroscopy: by sliders, by handles, by landmarks, or automatically with a "
            "differentiable X-ray renderer. Research software, not a medical device. See the "
            '<a href="https://github.com/DiffDRRSlicer/SlicerDiffDRR#readme">documentation and tutorial</a>.'
        )
        self.parent.acknowledgementText = _(
            "Differentiable DRRs follow V. Gopalakrishnan and P. Golland, Fast Auto-Differentiable Digitally "
            "Reconstructed Radiographs for Solving Inverse Problems in Intraoperative Imaging, CLIP 2022."
        )
        find_core()
        # numba notes each step of its compiler where the root logger takes debug messages, as Slicer's does: minutes.
        logging.getLogger("numba").setLevel(logging.WARNING)
        slicer.app.connect("startupCompleted()", on_startup)


def find_core() -> None:
    """Make DiffDRRCore importable: it is installed beside the module, and lies one folder up in a source checkout."""
    checkout = Path(__file__).resolve().parents[1]
    if importlib.util.find_spec("DiffDRRCore") is None and (checkout / "DiffDRRCore").is_dir():
        sys.path.append(str(checkout))


def on_startup() -> None:
    """Offer the sample data, and the layout, which scenes saved in it ask for while they load."""
    from DiffDRRSlicerLib import sample_data

    sample_data.register(Path(__file__).parent / "Resources")
    if slicer.app.layoutManager() is not None:
        scene.layout.register_layout(slicer.app.layoutManager().layoutLogic().GetLayoutNode())


class DiffDRRSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's widget: a `Panel`, kept on the parameter node of the scene that is open."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self.panel = None
        self._parameterNode = None
        self._guiTags = []

    def setup(self) -> None:
        """Called when the module is opened for the first time, and by a reload."""
        ScriptedLoadableModuleWidget.setup(self)
        from DiffDRRSlicerLib.panel.panel import Panel

        self.logic = DiffDRRSlicerLogic()
        self.panel = Panel(self.layout, self.logic, self.resourcePath)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.initializeParameterNode()
        if self.parent.isEntered:  # a reload, which does not enter again
            self.panel.enter()

    def cleanup(self) -> None:
        """Called when the application closes and the widget is destroyed, and, twice, by a reload."""
        if self.panel is None:
            return
        self.setParameterNode(None)
        self.removeObservers()
        self.panel.close()
        self.panel = None

    def enter(self) -> None:
        """Called each time the module is shown."""
        self.initializeParameterNode()
        self.panel.enter()

    def exit(self) -> None:
        """Called each time another module is shown. The picture goes on following the scene, the widgets do not."""
        self._disconnectGui()
        if self.panel is not None:
            self.panel.exit()

    def onSceneStartClose(self, caller, event) -> None:
        """Let go of the scene before it is closed."""
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """Start anew where the module is shown."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event) -> None:
        """Read the parameter node anew when all is there: its wrapper remembers that a node was not there yet."""
        qt.QTimer.singleShot(0, lambda: self._parameterNode is not None and self.initializeParameterNode())

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        """A C-arm takes its images and models with it."""
        if self._parameterNode is not None:
            self.panel.node_removed(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A model may become an implant."""
        if self._parameterNode is not None and node.IsA("vtkMRMLModelNode"):
            self.panel.changed()

    def initializeParameterNode(self) -> None:
        """Make sure that there is a parameter node, and choose the first CT and C-arm for the user."""
        parameterNode = self.logic.getParameterNode()
        choose_first(slicer.mrmlScene, parameterNode)
        self.setParameterNode(parameterNode)

    def setParameterNode(self, parameterNode) -> None:
        """Work on this parameter node, or on none."""
        self._disconnectGui()
        if self._parameterNode is not None:
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)
        self._parameterNode = parameterNode
        self.panel.set_parameters(parameterNode)
        if parameterNode is not None:
            self._guiTags = [parameterNode.connectGui(section.ui) for section in self.panel.sections.values()]
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)

    def onParametersModified(self, caller=None, event=None) -> None:
        """A choice changed."""
        self.panel.parameters_changed()

    def _disconnectGui(self) -> None:
        for tag in self._guiTags:
            self._parameterNode.disconnectGui(tag)
        self._guiTags = []

    def onReload(self) -> None:
        """Reload the parts in DiffDRRSlicerLib too. DiffDRRCore stays: what it tells torch is told once a process."""
        self.cleanup()
        for name in [name for name in sys.modules if name.startswith("DiffDRRSlicerLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class DiffDRRSlicerLogic(
    ScriptedLoadableModuleLogic, BonesLogic, CalibrationLogic, DatasetLogic, LearningLogic, TrackingLogic
):
    """Each step of the module for scripts: nodes in, nodes out, with and without a window.

    A C-arm is a linear transform node that takes camera coordinates (source at the origin, z towards the detector, mm)
    to the world; its camera and images belong to it. Every method raises DiffDRRError with one sentence for bad input.
    Angles are DICOM's positioner angles in degrees (primary + LAO, secondary + CRA), lengths are mm.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        find_core()

    def getParameterNode(self) -> DiffDRRSlicerParameterNode:
        """The user's choices in the scene."""
        return DiffDRRSlicerParameterNode(super().getParameterNode())

    def loadXRay(self, image, frame=None, camera=None, ct=None):
        """A C-arm node with an X-ray.

        :param image: path of a file, or a node of the scene (scalar volume, sequence).
        :param frame: index from 0 where there are several; of a file also "mean", "min" or "max".
        :param camera: a DiffDRRCore.Camera, or the path of a JSON camera, where the header does not tell.
        :param ct: CT volume node; the C-arm's isocentre is put at its centre, where the header says no better.
        """
        isocenter = None if ct is None else scene.anatomy.Anatomy(ct).center
        if isinstance(image, (str, Path)):
            return scene.loading.load_xray_file(slicer.mrmlScene, image, frame, camera, isocenter).node
        find_file = getattr(slicer, "dicomDatabase", None) and slicer.dicomDatabase.fileForInstance
        carm = scene.loading.load_xray_volume(slicer.mrmlScene, image, frame, camera, isocenter, find_file)
        return carm.node

    def createCArm(
        self, ct=None, height=512, width=512, pixelSpacing=(0.75, 0.75), sourceToDetector=1020.0,
        sourceToIsocenter=750.0, name="C-arm", **angles
    ):  # fmt: skip
        """A C-arm node without an X-ray, its isocentre at the CT's centre (or the world's origin).

        :param pixelSpacing: (row, column) in mm at the detector.
        :param angles: primary, secondary, roll in degrees; 0 where not given.
        """
        from DiffDRRCore import CArm

        isocenter = (0.0, 0.0, 0.0) if ct is None else scene.anatomy.Anatomy(ct).center
        arm = CArm(sourceToDetector, sourceToIsocenter, isocenter, **angles)
        camera = arm.camera(height, width, pixelSpacing, "detector")
        return scene.carm.CArmNode.create(slicer.mrmlScene, camera, arm.pose, sourceToIsocenter, name).node

    def simulateXRay(self, ct, labels=None, carm=None, seed=0, masks=False, **options):
        """A C-arm node with a simulated X-ray of CT and implants, as seen by `carm` (None: from behind, 256 x 256).

        The true pose is kept in a transform node, to which registrations are compared.

        :param seed: of the noise; None draws one, which is in the C-arm's meta.
        :param masks: segment structures and implants on the X-ray.
        :param options: structures, materials={structure: material}, implants={model node: material}, device, size of
            `scene.simulation.shot_of`; kvp, filtration={filter: mm}, dose, scatter, ... and logarithm of
            `scene.simulation_settings.Settings`.
        """
        shot = self._shot(ct, labels, carm, options)
        place = shot.scanned, shot.camera, shot.pose, seed, masks, shot.distance
        return scene.simulation.simulate_xray(slicer.mrmlScene, *place).node

    def simulateSweep(
        self, ct, start, stop, count, labels=None, carm=None, angle="primary", seed=0, masks=False, **options
    ):
        """A C-arm node with a sequence of simulated X-rays, which moves it as it plays: `scene.sweeps.Sweep`.

        :param start, stop: degrees, both included.  angle: "primary", "secondary" or "roll".
        :param seed: of the first X-ray's noise, then the next numbers. All else is as of `simulateXRay`.
        """
        shot = self._shot(ct, labels, carm, options)
        arms = scene.sweeps.orbit(shot.arm, start, stop, count, angle, shot.scanned.device)
        place = shot.scanned, shot.camera, arms, seed, masks, shot.distance
        return scene.sweeps.simulate_sweep(slicer.mrmlScene, *place)

    @staticmethod
    def _shot(ct, labels, carm, options):
        anatomy, arm = scene.anatomy.Anatomy(ct, labels), carm and scene.carm.CArmNode(carm)
        return scene.simulation.shot_of(anatomy, arm, **options)

    def saveDICOM(self, path, carm, ct=None, wholeSweep=True) -> Path:
        """Write the C-arm's X-ray as DICOM (XA, or DX of a simulated radiography unit), a sweep as one run (XA).

        :param ct: CT volume node; where the patient lies is then where transforms put it.
        :param wholeSweep: False writes of a sweep the X-ray that is shown.
        :return: the file.
        """
        return scene.xray_saving.save_dicom(path, scene.carm.CArmNode(carm), ct, wholeSweep)

    def moveCArm(self, carm, **changes) -> None:
        """Change `primary`, `secondary`, `roll` (degrees), `isocenter` (RAS mm) or `source_to_isocenter` (mm)."""
        scene.carm.CArmNode(carm).move_arm(**changes)

    def setCamera(self, carm, camera, ct=None) -> None:
        """Give a C-arm another camera.

        :param camera: path of a JSON camera file; or a 3 x 4 projection matrix from world RAS mm to pixels, which moves
            the C-arm too; or a 3 x 3 K.
        :param ct: CT volume node: a projection matrix does not tell on which side of the source the detector is.
        """
        arm, center = scene.carm.CArmNode(carm), None if ct is None else scene.anatomy.Anatomy(ct).center
        if isinstance(camera, (str, Path)):
            scene.loading.load_camera_file(arm, camera, center)
            return
        numbers = " ".join(repr(float(value)) for row in camera for value in row)
        scene.matrices.apply_matrix(arm, numbers, center)

    def renderDRR(self, carm, ct, labels=None, structures=None, size=None):
        """Render the CT as this C-arm sees it: a scalar volume node of line integrals, no unit, on the detector.

        :param structures: names of structures in `labels` to render alone.
        :param size: longest side in pixels; None is the X-ray's own, at most 512.
        """
        return scene.drr.render_drr(scene.carm.CArmNode(carm), scene.anatomy.Anatomy(ct, labels), structures, size)

    def createFrustum(self, carm):
        """A model node of source, beam edges, principal ray and detector frame, which follows the C-arm."""
        return scene.frustum.create_frustum(scene.carm.CArmNode(carm))

    def createBoneSurface(self, ct, labels=None, structures=None, threshold=200.0):
        """A model node of the CT's surface at `threshold` HU, or of these structures."""
        return scene.surfaces.bone_surface(scene.anatomy.Anatomy(ct, labels), structures, threshold)

    def projectFiducials(self, carm, markups):
        """A markups node with the points of a list on the CT as they appear on the X-ray."""
        return scene.projections.project_fiducials(scene.carm.CArmNode(carm), markups)

    def backprojectFiducials(self, carm, markups=None):
        """A model node with the rays from the source through the points of the X-ray's landmark list."""
        arm = scene.carm.CArmNode(carm)
        return scene.projections.show_rays(arm, markups or scene.landmarks.xray_landmarks(arm))

    def showEpipolarLines(self, carmFrom, carmTo, markups=None):
        """A model node on the X-ray of `carmTo`: where the points of the other X-ray's landmark list may lie in it."""
        arm = scene.carm.CArmNode(carmFrom)
        markups = markups or scene.landmarks.xray_landmarks(arm)
        return scene.projections.show_epipolar_lines(arm, markups, scene.carm.CArmNode(carmTo))

    def xrayLandmarks(self, carm):
        """The markups node for points clicked on the X-ray; it moves with the C-arm."""
        return scene.landmarks.xray_landmarks(scene.carm.CArmNode(carm))

    def alignToLandmarks(self, carm, ctMarkups, xrayMarkups=None):
        """Move the C-arm so that points of equal name agree: 4 pairs, or 3 and a rough start. Returns a report."""
        arm = scene.carm.CArmNode(carm)
        return scene.landmarks.align(arm, ctMarkups, xrayMarkups or scene.landmarks.xray_landmarks(arm))

    def register(self, carm, ct, labels=None, progress=None, **options):
        """Find the pose under which the CT looks like the X-ray, and move the C-arm there.

        :param carm: a C-arm node; or a list of them, which are fixed to each other then and move together.
        :param progress: called with each step's progress; returning False cancels, and keeps the best pose so far.
        :param options: of `scene.registration.SceneRegistration`: preset ("fast", "accurate", "far"), similarity,
            structures, region, target ("carm", "patient" or "bodies"), bodies (none: all bones; []: the CT as one), ...
        :return: the outcome: similarity before and after, standard deviations, warnings.
        """
        carms = [scene.carm.CArmNode(one) for one in (carm if isinstance(carm, (list, tuple)) else [carm])]
        run = scene.registration.SceneRegistration(scene.anatomy.Anatomy(ct, labels), carms, **options)
        for step in run.steps():
            if progress is not None and progress(step) is False:
                run.cancel()  # what is left measures the best pose so far
        return run.outcome

    def projectionMatrix(self, carm, ct=None):
        """numpy [3, 4]: world RAS mm to pixels (u, v); with `ct`, from that CT's own RAS, below its transforms."""
        arm = scene.carm.CArmNode(carm)
        matrix = scene.results.projection_matrix(arm.camera, arm.pose)
        return matrix if ct is None else matrix @ scene.nodes.parent_to_world(ct)

    def copyDRR(self, carm):
        """A copy of the C-arm's DRR that later moves do not change: a scalar volume node."""
        return scene.drr.copy_drr(scene.carm.CArmNode(carm))

    def resliceCT(self, carm, ct, depth=None):
        """The CT in the plane of the X-ray, `depth` mm from the source (None: where the image hangs): a volume node."""
        return scene.reslice.reslice(scene.anatomy.Anatomy(ct), scene.carm.CArmNode(carm), depth)

    def saveResults(self, folder, carm, ct=None, outcome=None) -> list[Path]:
        """Write pose (.h5, .tfm) and projection matrix (.txt); returns the files.

        Where transforms above `ct` make it differ, the pose in the CT's own coordinates is written too. With an
        outcome of `register`, all of it: its poses, JSON and CSV.
        """
        if outcome is not None:
            return outcome.save(folder)
        return scene.results.save_poses(folder, [scene.carm.CArmNode(carm)], ct)


class DiffDRRSlicerTest(ScriptedLoadableModuleTest):
    """The test that runs in Slicer, by ctest and by "Reload and Test"; its body is shared with the tests outside."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()
        find_core()

    def runTest(self) -> None:
        """Called by "Reload and Test"."""
        self.setUp()
        self.test_everything()

    def test_everything(self) -> None:
        """Load, render, project, align, register, save."""
        from DiffDRRSlicerLib import selftest

        selftest.run(slicer.mrmlScene, self.delayDisplay)
        selftest.run_logic(DiffDRRSlicerLogic(), slicer.mrmlScene, self.delayDisplay)
