"""Running a protocol: its cases, the workers that solve them, and the file that keeps them."""

from __future__ import annotations

from DiffDRRCore.evaluation.running.records import read_records
from DiffDRRCore.evaluation.running.run import outcomes, read_run, run

__all__ = ["outcomes", "read_records", "read_run", "run"]
