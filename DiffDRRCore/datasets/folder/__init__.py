"""Folders of one's own as datasets.

By the files' names alone: a folder is one subject if it has a CT, and else each folder in it that has one is.

    ct.nii.gz                 the CT: .nii, .nrrd, .mha and so on, or a DICOM folder called ct
    labels.nrrd               its structures, if any (.nii.gz too; names in the file, or in labels.csv)
    landmarks.mrk.json        points in it, if any (.fcsv and .csv too: `read_points`)
    xrays/ap.png              X-rays in any format of `XRay.read`, called by their name without the suffix
    xrays/ap.json             the JSON camera (`imaging.camera_file`); beside a DICOM file it wins over the header
    xrays/ap.pose.tfm         the reference pose camera_to_world, if any: an ITK transform as Slicer saves it, or .json
    xrays/ap.points.csv       the landmarks in the image, if any: name, u, v (.json too)
    xrays/ap.segmentation.png the structure at each pixel, if any, numbered as the labels (.tif, .nii.gz, .nrrd too)

Or by a dataset.json, for what names cannot say; it may lie elsewhere. Paths are relative to it, or to its "root":

    {"title": "...", "root": "../data", "subjects": [{
        "name": "...", "ct": "ct.nii.gz", "series": "SeriesInstanceUID where a DICOM folder holds several",
        "labels": "labels.nrrd", or {"radius": "mask1.nii.gz", ...} (numbered 1, 2, ...; later ones lie over earlier)
        "label_names": "labels.csv" or {"1": "radius"}, "landmarks": "l.mrk.json" or {"tip": [R, A, S]},
        "xrays": [{"file": "ap.dcm", "name": "ap", "frame": 0,
                   "camera": "ap.json" or a JSON camera itself, "intensity": "transmission",
                   "pose": 4 x 4, a file, or null, "header_pose": likewise, "camera_pose": "reference" or "start",
                   "landmarks": "ap.csv" or {"tip": [u, v]}, "segmentation": "ap.png", "body_poses": {"femur": 4 x 4}}],
        "groups": [["ap", "lateral"]],
        "biplane": [{"cameras": {"cam1": {"calibration": "cam1.txt", "images": "cam1/*.tif",
                                          "source_to_detector": 1800}, "cam2": ...},
                     "frames": [2, 99], "intensity": "transmission", "undistorted": true, "ct_frame": "LPS",
                     "ct_to_calibration": {"2": 4 x 4 or {"rotation": 3 x 3, "translation": 3}}}]}]}

"ct" (and "name", if there are several subjects) must be there. Unknown keys are errors. "groups": X-rays of one instant
by C-arms calibrated to each other. "biplane": calibrated cameras (`imaging.calibration_file`) with numbered images,
paired by number; each frame is a group, its views are called "cam1-0002". "ct_to_calibration" takes the CT's
coordinates p, in "ct_frame" (LPS, the default, or RAS), to the calibration's X = R p + T, mm. A frame without one has
no reference pose; its `header_pose` puts the CT's centre where the central rays meet, which tells how the cameras lie
to each other. "undistorted" is kept in `meta`; images and calibration must both be undistorted.

Which pose is what: the reference (`xray.pose`) is "pose" or the file *.pose.*; where there is none, the pose in the
JSON camera, unless "camera_pose" is "start"; else None. `header_pose` is the JSON camera's pose if that is not the
reference, and else that of the DICOM header's angles, which puts the isocentre at the RAS origin.
"""

from DiffDRRCore.datasets.folder.convention import looks_like_dataset
from DiffDRRCore.datasets.folder.subjects import Folder
from DiffDRRCore.datasets.folder.writing import write_subject

__all__ = ["Folder", "looks_like_dataset", "write_subject"]
