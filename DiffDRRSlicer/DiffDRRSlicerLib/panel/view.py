"""View: the layout, and how the DRR is drawn over the X-ray."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.choices import Overlay
from DiffDRRSlicerLib.panel.section import NotReadyError, Section

_INVERTS = {"invertXRay": "xray", "invertDRR": "drr"}  # check boxes, and the role of what each inverts


class ViewSection(Section):
    """Layout, overlay, window and level, and what is shown in 3D."""

    title = "View"
    ui_file = "View.ui"

    def setup(self) -> None:
        self._text = None  # the angles in the corner of the X-ray view
        self._fitted = None  # the C-arm that the X-ray view was last fitted to
        self.click("layoutButton", self.show_layout, "The views cannot be shown.")
        self.click("windowButton", self.auto_window, "Window and level cannot be set.")
        for box, role in _INVERTS.items():
            getattr(self.ui, box).connect("clicked(bool)", self._inverter(role))

    def show_layout(self) -> None:
        """Arrange X-ray view, C-arm view, 3D view and CT slices."""
        manager = slicer.app.layoutManager()
        if manager is None:
            raise NotReadyError("Slicer runs without a main window, so there are no views.")
        scene.layout.show_layout(manager.layoutLogic().GetLayoutNode())
        self._fitted = None
        self.aim()
        self._aim_free()

    def show_new(self, carm) -> None:
        """A C-arm was added: see all of its X-ray."""
        self._fitted = None

    def auto_window(self) -> None:
        """Window and level of X-ray, DRR and difference by their own pixels; other overlays follow the DRR's."""
        carm = self.panel.require_carm()
        roles = ["xray", "drr"] + ["overlay"] * (self.panel.parameters.overlayMode is Overlay.DIFFERENCE)
        for role in roles:
            if carm.referred(role) is not None:
                scene.colors.auto_window(carm.referred(role))
        self.panel.parameters_changed()

    def _inverter(self, role: str):
        def clicked(inverted: bool) -> None:
            with self.panel.attempt("The picture cannot be inverted."):
                self.invert(role, inverted)

        return clicked

    def invert(self, role: str, inverted: bool) -> None:
        """Show the chosen C-arm's X-ray or DRR inverted or not; each C-arm's keeps its own."""
        volume = self.panel.require_carm().referred(role)
        if volume is not None:
            scene.colors.set_inverted(volume, inverted)
        self.panel.parameters_changed()

    def close(self) -> None:
        if self._text is not None:
            self._text.remove()
        self._text = self._fitted = None

    def refresh(self) -> None:
        parameters = self.panel.parameters
        self.ui.edgeStrength.enabled = parameters.overlayMode is Overlay.EDGES
        self.ui.squares.enabled = parameters.overlayMode is Overlay.CHECKERBOARD
        self.ui.tint.enabled = parameters.overlayMode in (Overlay.BLEND, Overlay.CHECKERBOARD, Overlay.EDGES)
        for name, role in _INVERTS.items():
            box, volume = getattr(self.ui, name), None if self.panel.carm is None else self.panel.carm.referred(role)
            box.enabled = volume is not None
            box.checked = volume is not None and scene.colors.is_inverted(volume)
        if self.panel.carm is not None:
            lists = scene.landmarks.xray_list_ids(slicer.mrmlScene)
            self.ui.fiducialsSelector.sortFilterProxyModel().hiddenNodeIDs = lists

    def apply(self) -> None:
        """Bring what is shown of every C-arm in line with the choices: models, tint, points; and the bone."""
        carm, anatomy, parameters = self.panel.carm, self.panel.anatomy, self.panel.parameters
        if carm is not None:
            if carm.referred("frustum") is None:
                scene.frustum.create_frustum(carm)
            if carm.referred("detector") is None:
                scene.frustum.show_detector(carm)
            for one in scene.carm.CArmNode.all(slicer.mrmlScene):
                self._show(one, parameters)
        if anatomy is not None and parameters.showBone:
            bone = scene.surfaces.bone_surface(anatomy, self.panel.structures)
            bone.GetDisplayNode().SetVisibility(True)
        elif anatomy is not None and (bone := scene.surfaces.find_bone_surface(anatomy)) is not None:
            bone.GetDisplayNode().SetVisibility(False)

    @staticmethod
    def _show(carm, parameters) -> None:
        for role, visible in (("frustum", parameters.showFrustum), ("detector", parameters.showDetector)):
            if carm.referred(role) is not None:
                carm.referred(role).GetDisplayNode().SetVisibility(visible)
        drr, tint = carm.referred("drr"), parameters.tint.name.lower()
        if drr is not None and scene.colors.tint(drr) != tint:
            scene.colors.set_tint(drr, tint)
        for node, source in scene.projections.companions(carm, "fiducials"):
            node.GetDisplayNode().SetVisibility(source in (parameters.fiducials, parameters.ctLandmarks))

    def aim(self) -> None:
        """Point X-ray view and C-arm view along the C-arm as it stands."""
        carm, parameters = self.panel.carm, self.panel.parameters
        views = scene.layout.view_nodes(slicer.mrmlScene)
        if views is not None:
            scene.layout.group_views(views)
        if carm is None or views is None:
            return
        keep_zoom = self._fitted is carm.node
        scene.views.aim_xray_view(views.xray, carm, side=self.panel.side, keep_zoom=keep_zoom)
        self._fitted = carm.node
        composite = scene.layout.composite_node(slicer.mrmlScene, views.xray)
        front = carm.referred("drr" if parameters.overlayMode is Overlay.BLEND else "overlay")
        scene.views.show_layers(composite, carm.referred("xray"), front, parameters.overlayOpacity)
        camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(views.carm)
        if camera is not None:
            scene.views.aim_carm_view(camera, carm, self.panel.anatomy_center())
        for one in scene.carm.CArmNode.all(slicer.mrmlScene):
            scene.views.show_points_in((views.xray, views.carm, views.free), one)
        self._dress(views, carm)

    def _aim_free(self) -> None:
        """Bring the whole C-arm into the free 3D view; from there on it is the user's."""
        carm, views = self.panel.carm, scene.layout.view_nodes(slicer.mrmlScene)
        camera = views and slicer.modules.cameras.logic().GetViewActiveCameraNode(views.free)
        if carm is not None and camera is not None:
            scene.views.aim_free_view(camera, carm)

    def _dress(self, views, carm) -> None:
        """What is in the windows and not in the scene: the angles' text; a C-arm view that the mouse cannot turn."""
        manager = slicer.app.layoutManager()
        flat = manager.sliceWidget(views.xray.GetLayoutName()) if manager is not None else None
        if flat is None:
            return
        if self._text is None:
            renderer = flat.sliceView().renderWindow().GetRenderers().GetFirstRenderer()
            self._text = scene.views.AngleText(renderer)
            self._lock(manager, views.carm)
        self._text.show(carm)
        flat.sliceView().scheduleRender()

    @staticmethod
    def _lock(manager, view_node) -> None:
        for index in range(manager.threeDViewCount):
            view = manager.threeDWidget(index).threeDView()
            if view.mrmlViewNode() is view_node:
                cameras = view.displayableManagerByClassName("vtkMRMLCameraDisplayableManager")
                scene.views.lock_rotation(cameras.GetCameraWidget())
