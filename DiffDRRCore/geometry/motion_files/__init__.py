"""Files of motion: poses of bodies, frame by frame.

  .tra  Autoscoper's tracking files, and XMALab's rigid body transformations (`tra`)
  .csv  a table with the body's name and the frame's number in each row (`table`)

A pose takes points of the body's CT to the world that the file is about (mm). Which coordinates of the CT (RAS, LPS or
Autoscoper's volume) and which world (a calibration's, or RAS) is not in these files: `autoscoper` has the transforms.
"""

from __future__ import annotations

from DiffDRRCore.geometry.motion_files.autoscoper import CTFrame, ras_to_ct_frame, ras_to_volume
from DiffDRRCore.geometry.motion_files.motion import Motion
from DiffDRRCore.geometry.motion_files.table import is_table, read_table, write_table
from DiffDRRCore.geometry.motion_files.tra import TraLayout, read_tra, write_tra

__all__ = [
    "CTFrame",
    "Motion",
    "TraLayout",
    "is_table",
    "ras_to_ct_frame",
    "ras_to_volume",
    "read_table",
    "read_tra",
    "write_table",
    "write_tra",
]
