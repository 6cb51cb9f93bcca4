"""What holds where Warp is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import torch

from DiffDRRCore.rendering.backends.cuda import available


def test_nothing_of_warp_is_imported_with_the_package():
    code = "import sys, DiffDRRCore, DiffDRRCore.rendering.backends.cuda; sys.exit('warp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available() == (False, "PyTorch finds no CUDA device here, or was installed without CUDA.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, reason = available()
    assert not found
    assert "warp-lang is not installed" in reason
