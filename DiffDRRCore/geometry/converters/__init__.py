"""Between our (Camera, Pose) and the geometry of other packages.

Each module states its package's frames and pixel convention. Ours: world RAS mm, `Pose` camera_to_world, integer pixel
coordinates at pixel centres. Rays through pixels stay the same to rounding.
"""

from DiffDRRCore.geometry.converters.diffdrr import (
    DiffDRRGeometry,
    diffdrr_matrix,
    from_diffdrr,
    from_nanodrr,
    to_diffdrr,
    to_nanodrr,
)
from DiffDRRCore.geometry.converters.lps import lps_to_ras, lps_transform_to_ras
from DiffDRRCore.geometry.converters.opencv import from_opencv, to_opencv
from DiffDRRCore.geometry.converters.projection_matrix import from_projection_matrix, to_projection_matrix
from DiffDRRCore.geometry.converters.rtk import IEC_SUPINE_HEAD_FIRST_TO_RAS, RTKProjection, from_rtk, to_rtk

__all__ = [
    "IEC_SUPINE_HEAD_FIRST_TO_RAS",
    "DiffDRRGeometry",
    "RTKProjection",
    "diffdrr_matrix",
    "from_diffdrr",
    "from_nanodrr",
    "from_opencv",
    "from_projection_matrix",
    "from_rtk",
    "lps_to_ras",
    "lps_transform_to_ras",
    "to_diffdrr",
    "to_nanodrr",
    "to_opencv",
    "to_projection_matrix",
    "to_rtk",
]
