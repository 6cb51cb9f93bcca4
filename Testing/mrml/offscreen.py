"""Whether this machine can draw without a screen."""

from __future__ import annotations

import ctypes.util
import functools
import os
import sys


def prefer_offscreen() -> None:
    """Without an X server, have VTK ask EGL at once instead of warning first. Call it before the first window."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


@functools.cache
def can_render() -> bool:
    """Whether VTK finds an OpenGL to draw with: EGL or OSMesa on Linux."""
    import vtk

    prefer_offscreen()
    window = vtk.vtkRenderWindow()
    if window.IsA("vtkOSOpenGLRenderWindow") and ctypes.util.find_library("OSMesa") is None:
        return False  # VTK's last resort, which crashes without its library
    window.SetOffScreenRendering(1)
    window.SetSize(8, 8)
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(1, 0, 0)
    window.AddRenderer(renderer)
    window.Render()
    pixels = vtk.vtkUnsignedCharArray()
    window.GetPixelData(0, 0, 0, 0, 0, pixels, 0)
    return pixels.GetNumberOfValues() == 3 and pixels.GetValue(0) == 255
