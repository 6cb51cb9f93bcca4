"""Camera and C-arm: the numbers of the geometry, typed, pasted or loaded."""

from __future__ import annotations

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import NotReadyError, Section

_NUMBERS = ("sourceToDetector", "sourceToIsocenter", "rowSpacing", "columnSpacing", "principalU", "principalV")
_SIDES = ("detector", "source")


class CameraSection(Section):
    """The camera of the chosen C-arm. Changing it never touches the pose, except by a projection matrix."""

    title = "Camera"
    ui_file = "Camera.ui"
    collapsed = True

    def setup(self) -> None:
        for name in _NUMBERS:
            getattr(self.ui, name).connect("valueChanged(double)", self._slot(name))
        self.ui.viewFrom.connect("currentIndexChanged(int)", self._slot("viewFrom"))
        self.click("applyMatrixButton", self.apply_matrix, "The matrix cannot be used.")
        self.click("loadCameraButton", self.load_camera, "The camera could not be loaded.")

    def _slot(self, name: str):
        def slot(value) -> None:
            with self.panel.attempt("The camera cannot be changed to this."):
                self.change(name, _SIDES[value] if name == "viewFrom" else value)

        return slot

    def change(self, name: str, value) -> None:
        """Change the one number that was typed: the other fields show rounded ones."""
        carm = self.panel.carm
        if carm is None:
            return
        self.panel.remember("camera")
        if name == "sourceToIsocenter":
            carm.source_to_isocenter = value
            scene.assumptions.settle(carm, [scene.assumptions.ISOCENTER])
            return
        scene.xrays.set_camera(carm, _changed(carm.camera, name, value))
        scene.frustum.update_frustum(carm)

    def apply_matrix(self) -> None:
        """Take camera, and pose, from the pasted numbers."""
        carm = self.panel.require_carm()
        self.panel.remember("matrix")
        scene.matrices.apply_matrix(carm, self.ui.matrixText.plainText, self.panel.anatomy_center())
        scene.frustum.update_frustum(carm)

    def load_camera(self) -> None:
        """Take camera, and pose, from a JSON camera."""
        carm = self.panel.require_carm()
        if not self.ui.cameraPath.currentPath:
            raise NotReadyError("Choose a camera file first.")
        self.panel.remember("camera file")
        in_front = None if self.panel.anatomy is None else self.panel.anatomy.center
        scene.loading.load_camera_file(carm, self.ui.cameraPath.currentPath, in_front)
        scene.frustum.update_frustum(carm)

    def refresh(self) -> None:
        carm = self.panel.carm
        self.root.enabled = carm is not None and not self.panel.running
        if carm is None:
            self.ui.imageSize.text = "no C-arm"
            return
        camera = carm.camera
        rows, columns = camera.pixel_spacing.tolist()
        u, v = camera.principal_point.tolist()
        values = (float(camera.source_to_detector), carm.source_to_isocenter, rows, columns, u, v)
        with self.quiet(*_NUMBERS, "viewFrom"):
            for name, value in zip(_NUMBERS, values, strict=True):
                getattr(self.ui, name).value = value
            self.ui.viewFrom.currentIndex = _SIDES.index(camera.view_from)
        self.ui.imageSize.text = f"{camera.height} rows x {camera.width} columns"
        missing = carm.meta.get("missing", [])
        self.ui.cameraNotes.text = f"Assumed, check them: {'; '.join(missing)}." if missing else ""


def _changed(camera, name: str, value):
    """A camera with one number changed; pixel size and principal point stay when the detector is moved."""
    (rows, columns), (u, v) = camera.pixel_spacing.tolist(), camera.principal_point.tolist()
    numbers = {"rowSpacing": rows, "columnSpacing": columns, "principalU": u, "principalV": v}
    numbers |= {"sourceToDetector": float(camera.source_to_detector), "viewFrom": camera.view_from, name: value}
    made = (type(camera).parallel_beam if camera.parallel else type(camera))(
        camera.height,
        camera.width,
        (numbers["rowSpacing"], numbers["columnSpacing"]),
        numbers["sourceToDetector"],
        (numbers["principalU"], numbers["principalV"]),
        numbers["viewFrom"],
    )
    made.K[0, 1] = camera.K[0, 1]  # the skew
    return made
