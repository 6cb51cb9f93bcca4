"""DICOM X-rays written with pydicom, and nodes as Slicer makes them of DICOM files."""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from Testing.scene import kit

STORAGE = {
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
}
FULL = {
    "DistanceSourceToDetector": 1200,
    "DistanceSourceToPatient": 800,
    "ImagerPixelSpacing": [0.25, 0.5],
    "PositionerPrimaryAngle": 30,
    "PositionerSecondaryAngle": -20,
}


def write_dicom(path, pixels, modality="XA", **attributes):
    """A file of [H, W] or [N, H, W] uint16, without geometry but for the attributes; returns its instance UID."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = STORAGE[modality], generate_uid(), modality
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape[-2:], 1
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = np.ascontiguousarray(pixels, np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return dataset.SOPInstanceUID


def frames(count, height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(1, 4000, (count, height, width)).astype(np.uint16)


def add_run(scene, images, uids=None, name="run", browser=False):
    """A sequence of single-slice volumes as Slicer's image sequence reader makes it: rotated by 180 degrees.

    `uids`: one for all frames, or one for each.
    """
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    for index, image in enumerate(images):
        frame = kit.add_volume(scene, image[None], turned, None, "frame")
        if uids is not None:
            frame.SetAttribute("DICOM.instanceUIDs", uids if isinstance(uids, str) else uids[index])
        sequence.SetDataNodeAtValue(frame, str(index))
        scene.RemoveNode(frame)
    if not browser:
        return sequence
    node = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    node.AddSynchronizedSequenceNode(sequence)
    return sequence, node, node.GetProxyNode(sequence)


def still(node) -> tuple:
    """What must not change of a user's node."""
    if node.IsA("vtkMRMLSequenceNode"):
        return tuple(still(node.GetNthDataNode(index)) for index in range(node.GetNumberOfDataNodes()))
    array = slicer.util.arrayFromVolume(node)
    parent = node.GetTransformNodeID()
    return node.GetName(), array.tobytes(), array.dtype.str, kit.to_world(node).tobytes(), parent, node.GetMTime()
