"""ITK-RTK's Joseph forward projector on the CPU. Runs in the peers' environment."""

import time
from pathlib import Path

import itk
import numpy as np
from itk import RTK


class Engine:
    """Holds the volume; renders one projection at a time."""

    def __init__(self, scene: Path, threads: int):
        itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(threads)
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
        self.image_type = itk.Image[itk.F, 3]
        self.volume = itk.imread(str(scene / "attenuation.mha"), itk.F)

    def render(self, view: dict, save: str | None = None) -> dict:
        """Seconds of the projector's update alone; the image is saved as ours is: seen from the source."""
        projector = RTK.JosephForwardProjectionImageFilter[self.image_type, self.image_type].New()
        projector.SetGeometry(_geometry(view["rtk"]))
        projector.SetInput(0, self._empty(view))
        projector.SetInput(1, self.volume)
        began = time.perf_counter()
        projector.Update()
        seconds = time.perf_counter() - began
        if save:
            np.save(save, itk.array_from_image(projector.GetOutput())[0, :, ::-1])
        return {"seconds": seconds}

    def _empty(self, view: dict):
        row_mm, col_mm = view["spacing"]
        source = RTK.ConstantImageSource[self.image_type].New()
        source.SetOrigin([-(view["width"] - 1) / 2 * col_mm, -(view["height"] - 1) / 2 * row_mm, 0.0])
        source.SetSpacing([col_mm, row_mm, 1.0])
        source.SetSize([view["width"], view["height"], 1])
        source.Update()
        return source.GetOutput()


def _geometry(numbers: dict):
    geometry = RTK.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(
        numbers["source_to_isocenter"],
        numbers["source_to_detector"],
        numbers["gantry_angle"],
        *numbers["projection_offset"],
        numbers["out_of_plane_angle"],
        numbers["in_plane_angle"],
        *numbers["source_offset"],
    )
    return geometry
