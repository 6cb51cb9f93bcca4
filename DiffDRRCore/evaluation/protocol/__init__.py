"""What an evaluation does, as data: a protocol and its starts."""

from __future__ import annotations

from DiffDRRCore.evaluation.protocol.example import EXAMPLE
from DiffDRRCore.evaluation.protocol.protocol import Protocol

__all__ = ["EXAMPLE", "Protocol"]
