"""Slicer's slice and 3D views, offscreen, with a synthetic mouse.

Positions are pixels (x, y) from the upper left corner, y down, as in the picture that `grab` gives; integers are pixel
centres. VTK's own display coordinates, y up, stay inside.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

_BUTTONS = {"left": "Left", "middle": "Middle", "right": "Right"}


class _View:
    """A render window, its displayable managers and its mouse."""

    def __init__(self, app, node, size, factory, style, interactor_style):
        self.app, self.node = app, node
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.SetNumberOfLayers(3)  # before the managers, which add renderers in layers 1 and 2
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.SetInteractorStyle(interactor_style)
        self.interactor.Initialize()
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.Initialize(factory, self.renderer)
        self.style = style
        self.style.SetDisplayableManagers(self.managers)
        self.style.SetInteractor(self.interactor)
        self.managers.SetMRMLDisplayableNode(node)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return tuple(self.window.GetSize())

    def resize(self, width: int, height: int) -> None:
        """Change the window's size in pixels."""
        self.window.SetSize(width, height)
        self.interactor.SetSize(width, height)
        self.interactor.InvokeEvent("ConfigureEvent")

    def render(self) -> None:
        """Draw now."""
        self.window.Render()

    def grab(self, path=None) -> np.ndarray:
        """The picture as uint8 [H, W, 3], top row first; written to `path` (PNG) too where it is given."""
        self.render()
        width, height = self.size
        pixels = vtk.vtkUnsignedCharArray()
        self.window.GetPixelData(0, 0, width - 1, height - 1, 0, pixels, 0)
        picture = vtk_to_numpy(pixels).reshape(height, width, 3)[::-1].copy()
        if path is not None:
            _write_png(picture, path)
        return picture

    def manager(self, class_name: str):
        """The displayable manager of that class, or None."""
        return self.managers.GetDisplayableManagerByClassName(class_name)

    def move(self, position, shift: bool = False, control: bool = False) -> None:
        """Move the mouse there."""
        self._event("MouseMoveEvent", position, shift, control)

    def press(self, position, button: str = "left", **keys) -> None:
        """Press a mouse button ("left", "middle", "right")."""
        self._event(f"{_BUTTONS[button]}ButtonPressEvent", position, **keys)

    def release(self, position, button: str = "left", **keys) -> None:
        """Release a mouse button."""
        self._event(f"{_BUTTONS[button]}ButtonReleaseEvent", position, **keys)

    def click(self, position, button: str = "left", **keys) -> None:
        """Move there, press and release."""
        self.move(position)
        self.press(position, button, **keys)
        self.release(position, button, **keys)

    def drag(self, start, end, button: str = "left", steps: int = 5, **keys) -> None:
        """Move to `start`, press, move to `end` in steps, release."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        self.render()  # widgets pick by what was drawn last
        self.move(start)
        self.press(start, button, **keys)
        for step in range(1, steps + 1):
            self.move(start + (end - start) * step / steps, **keys)
            self.render()
        self.release(end, button, **keys)
        self.render()

    def wheel(self, position, forward: bool = True, **keys) -> None:
        """Turn the mouse wheel by one step."""
        self.move(position)
        self._event(f"MouseWheel{'Forward' if forward else 'Backward'}Event", position, **keys)

    def key(self, symbol: str, shift: bool = False, control: bool = False) -> None:
        """Press and release a key, e.g. "Escape"."""
        code = symbol if len(symbol) == 1 else "\0"
        self.interactor.SetKeyEventInformation(int(control), int(shift), code, 0, symbol)
        for event in ("KeyPressEvent", "CharEvent", "KeyReleaseEvent"):
            self.interactor.InvokeEvent(event)

    def close(self) -> None:
        """Free the managers and the window."""
        self.managers.SetMRMLDisplayableNode(None)
        self.style.SetInteractor(None)
        self.interactor.SetRenderWindow(None)
        self.window.Finalize()

    def _event(self, event: str, position, shift: bool = False, control: bool = False) -> None:
        x, y = (round(float(value)) for value in position)
        y = self.size[1] - 1 - y
        self.interactor.SetEventInformation(x, y, int(control), int(shift), "\0", 0, None)
        self.interactor.InvokeEvent(event)


class SliceView(_View):
    """A slice view: an image below, markups, models and handles above it."""

    def __init__(self, app, node="Red", size=(400, 300)):
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(app.logic)
        self.logic.SetMRMLScene(app.scene)
        if isinstance(node, str):
            node = app.scene.GetSingletonNode(node, "vtkMRMLSliceNode") or self.logic.AddSliceNode(node)
        self.logic.SetSliceNode(node)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        style = slicer.vtkMRMLSliceViewInteractorStyle()
        style.SetSliceLogic(self.logic)
        super().__init__(app, node, size, factory, style, vtk.vtkInteractorStyleUser())
        self.logic.SetDisplayableManagerGroup(self.managers)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(self._actor)
        self.logic.ResizeSliceNode(*size)

    @property
    def composite(self):
        """The vtkMRMLSliceCompositeNode: which volumes are shown."""
        return self.logic.GetSliceCompositeNode()

    def show(self, background=None, foreground=None, opacity: float = 0.5, fit: bool = False) -> None:
        """Put volumes into the view; `fit` centres them."""
        self.composite.SetBackgroundVolumeID(background.GetID() if background else None)
        self.composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        self.composite.SetForegroundOpacity(opacity)
        if fit:
            self.logic.FitSliceToAll()

    def resize(self, width: int, height: int) -> None:
        """Change the window's size; the field of view follows as in Slicer."""
        super().resize(width, height)
        self.logic.ResizeSliceNode(width, height)

    def render(self) -> None:
        """Draw now."""
        port = self.logic.GetImageDataConnection() if self.logic.HasInputs() else None
        self._mapper.SetInputConnection(port)
        self._actor.SetVisibility(port is not None)
        super().render()

    def to_world(self, position) -> np.ndarray:
        """[3] mm, the point of the slice's plane below a pixel of the view."""
        x, y = position
        return np.array(self.node.GetXYToRAS().MultiplyPoint((x, self.size[1] - 1 - y, 0, 1))[:3])

    def to_view(self, world) -> np.ndarray:
        """[3] pixels (x, y, down) of a point of the world, and its distance from the plane in mm."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), inverse)
        x, y, _, _ = inverse.MultiplyPoint((*world, 1))
        slice_to_world = self.node.GetSliceToRAS()
        normal, origin = ([slice_to_world.GetElement(row, column) for row in range(3)] for column in (2, 3))
        return np.array([x, self.size[1] - 1 - y, np.dot(normal, np.subtract(world, origin))])

    def close(self) -> None:
        """Free the managers, the window and the logic."""
        super().close()
        self._mapper.SetInputConnection(None)
        self.logic.SetMRMLScene(None)


class ThreeDView(_View):
    """A 3D view with Slicer's camera."""

    def __init__(self, app, node="1", size=(400, 300)):
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(app.logic)
        name = node if isinstance(node, str) else node.GetLayoutName()
        self.logic.SetName(name)
        self.logic.SetMRMLScene(app.scene)
        node = app.scene.GetSingletonNode(name, "vtkMRMLViewNode") or self.logic.AddViewNode(name)
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        style = slicer.vtkMRMLThreeDViewInteractorStyle()
        super().__init__(app, node, size, factory, style, vtk.vtkInteractorStyle3D())
        self.window.SetAlphaBitPlanes(1)
        self.renderer.SetUseDepthPeeling(1)
        self.logic.SetDisplayableManagerGroup(self.managers)

    @property
    def camera_node(self):
        """The vtkMRMLCameraNode of the view."""
        return self.app.modules["Cameras"].GetViewActiveCameraNode(self.node)

    @property
    def camera_widget(self):
        """The vtkMRMLCameraWidget that turns mouse events into camera motion."""
        return self.manager("vtkMRMLCameraDisplayableManager").GetCameraWidget()

    def to_view(self, world) -> np.ndarray:
        """[2] pixels (x, y down) at which a point of the world is drawn."""
        self.render()
        self.renderer.SetWorldPoint(*world, 1)
        self.renderer.WorldToDisplay()
        x, y, _ = self.renderer.GetDisplayPoint()
        return np.array([x - 0.5, self.size[1] - 0.5 - y])

    def close(self) -> None:
        """Free the managers, the window and the logic."""
        super().close()
        self.logic.SetMRMLScene(None)


def _write_png(picture: np.ndarray, path) -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(picture.shape[1], picture.shape[0], 1)
    flat = np.ascontiguousarray(picture[::-1].reshape(-1, 3))
    array = numpy_to_vtk(flat, deep=True)
    image.GetPointData().SetScalars(array)
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()
