"""The parts of the module DiffDRRSlicer: `scene` (MRML nodes to and from DiffDRRCore, no Qt) and `panel` (widgets)."""

import os

# torch's threads spin while they wait for each other. Where another program keeps a core busy, that makes steps of a
# registration that take 7 ms last up to 800. OpenMP reads this once, as torch is loaded, on every platform; who has
# set it keeps it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
