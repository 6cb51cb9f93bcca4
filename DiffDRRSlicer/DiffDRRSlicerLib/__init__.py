"""The parts of the module DiffDRRSlicer: `scene` (MRML nodes to and from DiffDRRCore, no Qt) and `panel` (widgets)."""
