"""The HTML page of a report: one file, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from DiffDRRCore.evaluation.report.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #d9dee3; --soft: #5b6570; --band: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --paper: #14181c; --faint: #343c44; --soft: #9aa5b0; --band: #1c2228 }
}
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem }
.lead, .note, figcaption { color: var(--soft) } .note { font-size: .88rem; margin: .4rem 0; max-width: 60rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--faint); text-align: left; white-space: nowrap }
th { vertical-align: bottom; white-space: normal; min-width: 4.5rem }
tbody tr:nth-child(even) { background: var(--band) }
td.number { font-variant-numeric: tabular-nums } td.text { white-space: normal; min-width: 16rem }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0 } figure.broad { grid-column: 1 / -1 } figcaption { font-size: .88rem; margin-top: .2rem }
img { width: 100%; height: auto; border: 1px solid var(--faint); border-radius: 6px; background: #fff }
.scene { border: 1px solid var(--faint); border-radius: 6px; overflow: hidden }
pre { overflow-x: auto; font-size: .82rem; background: var(--band); padding: 1rem; border-radius: 6px }
summary { cursor: pointer } summary h2 { display: inline-block }
"""


class Picture(NamedTuple):
    """A PNG file, a sentence under it, and where it belongs on the page: one of `GROUPS`."""

    path: Path
    caption: str
    group: str


GROUPS = ("Figures", "Worst cases", "More error histograms")


def page(
    title: str,
    lead: str,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    scene: str | None,
    notes: Sequence[str],
    protocol: dict[str, Any],
) -> str:
    """The page's text. All that comes from data is escaped; `scene` is HTML already."""
    first, worst, more = (_group(group, pictures) for group in GROUPS)
    parts = [
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p>",
        *(table.html() for table in tables),
        first,
        _scene(scene) if scene else "",
        worst,
        *(f"<p class='note'>{escape(note)}</p>" for note in notes),
        more,
        _folded("Protocol", f"<pre>{escape(json.dumps(protocol, indent=1, ensure_ascii=False))}</pre>"),
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _group(group: str, pictures: Sequence[Picture]) -> str:
    shown = "\n".join(_figure(picture) for picture in pictures if picture.group == group)
    if not shown:
        return ""
    grid = f"<div class='figures'>{shown}</div>"
    return _folded(group, grid) if group == GROUPS[-1] else f"<section><h2>{group}</h2>{grid}</section>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary><h2>{title}</h2></summary>{content}</details>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    kind = " class='broad'" if picture.group == "Worst cases" else ""
    text = escape(picture.caption)
    return (
        f"<figure{kind}><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"
    )


def _scene(scene: str) -> str:
    return (
        "<section><h2>Cameras in space</h2><p class='note'>RAS, mm. A small pyramid is a C-arm: the source at its tip, "
        "open towards the detector. Drag to turn, scroll to zoom; a click on the legend hides and shows.</p>"
        f"<div class='scene'>{scene}</div></section>"
    )
