"""Poses where there is no start at all: views rendered ahead over the C-arm's ranges, matched, the best refined."""

from DiffDRRCore.registration.global_search.search import GlobalSearch, SearchResult

__all__ = ["GlobalSearch", "SearchResult"]
