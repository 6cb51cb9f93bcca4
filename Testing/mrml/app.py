"""Slicer's application logic without Slicer: a scene in which displayable managers draw and mouse events work.

app = MRMLApp()
view = app.slice_view("Red")          # or app.slice_view(slice_node), app.threed_view("1")
picture = view.grab()                 # uint8 [H, W, 3], top row first
view.drag((100, 80), (130, 80))       # pixels from the upper left corner, as in the picture
app.close()
"""

from __future__ import annotations

import slicer
import vtk

_MODULES = (
    "Cameras",
    "Data",
    "Markups",
    "Models",
    "Plots",
    "Segmentations",
    "Sequences",
    "SubjectHierarchy",
    "Tables",
    "Texts",
    "Transforms",
    "Units",
    "ViewControllers",
    "Volumes",
)
_NAMES = {  # modules whose logic is not vtkSlicer<Module>ModuleLogic or vtkSlicer<Module>Logic
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
}
# in the order in which Slicer's own views register them
_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLLinearTransformsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
_THREED_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager3D",
    "vtkMRMLLinearTransformsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


class MRMLApp:
    """A scene with the logics that Slicer's application has; views are made on demand and closed with it."""

    def __init__(self, scene=None):
        self.scene = scene or slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self._slice_logics, self._view_logics, self._views = vtk.vtkCollection(), vtk.vtkCollection(), []
        self.modules = {}
        self._layout_logic = None
        self._add_crosshair()
        self.logic.SetMRMLScene(self.scene)
        self.logic.SetSliceLogics(self._slice_logics)
        self.logic.SetViewLogics(self._view_logics)
        _register_managers(self.logic)
        for name in _MODULES:
            self._add_module(name)
        self.logic.GetColorLogic().SetMRMLScene(self.scene)  # in Slicer the Colors module's, with colours from files
        self.logic.GetColorLogic().AddDefaultColorNodes()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

    @property
    def selection_node(self):
        """The application's vtkMRMLSelectionNode."""
        return self.logic.GetSelectionNode()

    @property
    def interaction_node(self):
        """The application's vtkMRMLInteractionNode: place mode and so on."""
        return self.logic.GetInteractionNode()

    @property
    def layout_node(self):
        """The scene's vtkMRMLLayoutNode; the first use adds Slicer's own layouts and their view nodes."""
        if self._layout_logic is None:
            self._layout_logic = slicer.vtkMRMLLayoutLogic()
            self._layout_logic.SetMRMLScene(self.scene)
        return self._layout_logic.GetLayoutNode()

    def slice_view(self, node="Red", size=(400, 300)):
        """A SliceView of a slice node, or of the layout name of one, made where there is none."""
        from Testing.mrml.views import SliceView

        return self._add_view(SliceView(self, node, size))

    def threed_view(self, node="1", size=(400, 300)):
        """A ThreeDView of a view node, or of the layout name of one, made where there is none."""
        from Testing.mrml.views import ThreeDView

        return self._add_view(ThreeDView(self, node, size))

    def place(self, markups, once: bool = True) -> None:
        """Slicer's place mode: the next click in any view puts a control point of `markups`."""
        markups.CreateDefaultDisplayNodes()
        self.selection_node.SetReferenceActivePlaceNodeClassName(markups.GetClassName())
        self.selection_node.SetActivePlaceNodeID(markups.GetID())
        self.interaction_node.SetPlaceModePersistence(0 if once else 1)
        self.interaction_node.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.Place)

    def close(self) -> None:
        """Free the views and the scene, in the order in which Slicer does."""
        for view in self._views:
            view.close()
        self._views.clear()
        self._slice_logics.RemoveAllItems()
        self._view_logics.RemoveAllItems()
        self._layout_logic = None  # it cannot be without a scene
        self.scene.Clear(True)
        for name, logic in self.modules.items():
            if name != "Segmentations":  # it warns of no scene
                logic.SetMRMLScene(None)
        self.logic.SetMRMLScene(None)

    def _add_view(self, view):
        self._views.append(view)
        (self._slice_logics if view.logic.IsA("vtkMRMLSliceLogic") else self._view_logics).AddItem(view.logic)
        return view

    def _add_crosshair(self) -> None:
        node = slicer.vtkMRMLCrosshairNode()
        node.SetCrosshairName("default")
        self.scene.AddNode(node)

    def _add_module(self, name: str) -> None:
        names = (_NAMES.get(name), f"vtkSlicer{name}Logic", f"vtkSlicer{name}ModuleLogic")
        logic = next(getattr(slicer, known)() for known in names if known and hasattr(slicer, known))
        logic.SetMRMLApplicationLogic(self.logic)
        logic.SetMRMLScene(self.scene)
        self.logic.SetModuleLogic(name, logic)
        self.modules[name] = logic


def _register_managers(app_logic) -> None:
    """The factories are one a process; a name that is registered twice is warned of."""
    factories = (slicer.vtkMRMLSliceViewDisplayableManagerFactory, slicer.vtkMRMLThreeDViewDisplayableManagerFactory)
    for factory, names in zip(factories, (_SLICE_MANAGERS, _THREED_MANAGERS), strict=True):
        instance = factory.GetInstance()
        instance.SetMRMLApplicationLogic(app_logic)
        for name in names:
            if not instance.IsDisplayableManagerRegistered(name):
                instance.RegisterDisplayableManager(name)
