"""What a run's cases say: tables, figures, and a page that stands alone."""

from __future__ import annotations

from DiffDRRCore.evaluation.report.summary import Criteria, Summary, summarize
from DiffDRRCore.evaluation.report.writing import load_cases, write_report

__all__ = ["Criteria", "Summary", "load_cases", "summarize", "write_report"]
