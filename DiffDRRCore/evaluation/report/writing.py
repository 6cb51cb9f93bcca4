"""The report of a run: tables, figures and one HTML page that needs nothing else, from the records in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.evaluation.report import plots, tables
from DiffDRRCore.evaluation.report.page import GROUPS, Picture, page
from DiffDRRCore.evaluation.report.scene3d import Anatomy, left_out, scene_html
from DiffDRRCore.evaluation.report.summary import (
    MAIN,
    Criteria,
    Record,
    end_errors,
    label,
    measures_of,
    method_of,
    start_errors,
    summarize,
)
from DiffDRRCore.evaluation.report.tables import Table, number
from DiffDRRCore.evaluation.running.records import read_records
from DiffDRRCore.evaluation.running.run import read_run
from DiffDRRCore.files import replacing

_TITLE = "Evaluation of 2D/3D registration"

Load = Callable[[Record], tuple]
_CONDITIONS = ("versions", "machine", "threads", "device")  # of a run, which times and last digits depend on


@dataclass
class Pictures:
    """What is drawn, what the 3D scene shows of each subject, and sentences about what could not be drawn."""

    files: list[Picture] = field(default_factory=list)
    anatomy: dict[str, Anatomy] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_report(folder: str | Path, load: Load | None = None, worst: int = 3) -> list[Path]:
    """Write report.md, report.html, cases.csv, summary.csv and figures/*.png into a run's folder; the files' paths.

    Reads protocol.json and cases.jsonl there. What a missing package or an unreadable dataset leaves out is said in a
    sentence in the report. Tables come first, so a disk that is full costs pictures and not numbers.

    Args:
        load: load(record) -> (Volume, list of XRay), or with targets [N, 3] (RAS mm) as a third, of a record's case:
            for pictures of the worst cases and for the CT in the 3D scene; None leaves them out. `load_cases(folder)`
            makes one.
        worst: so many cases of each method are drawn.

    Raises ReadError where there is nothing to read, and DiffDRRError where a file cannot be written.
    """
    folder = Path(folder)
    protocol, records = read_run(folder), read_records(folder)
    if not records:
        raise ReadError(f"There is no finished case in '{folder}' to report on.")
    criteria = Criteria.of(protocol)
    summaries = summarize(records, criteria)
    written = [
        tables.write_cases(folder / "cases.csv", records),
        tables.write_summary(folder / "summary.csv", summaries),
    ]
    lead = _lead(protocol, records)
    content = [
        tables.success_table(summaries, criteria),
        tables.effort_table(summaries, criteria),
        tables.error_table(summaries),
        tables.subject_table(summaries),
        tables.coverage_table(summaries, criteria),
        tables.failure_table(records),
    ]
    content = [table for table in content if table.rows]
    written.append(_write_markdown(folder, protocol, lead, content, Pictures()))
    pictures = _draw(folder / "figures", records, summaries, criteria, load, worst)
    scene = _scene(records, criteria, pictures)
    written[-1] = _write_markdown(folder, protocol, lead, content, pictures)
    html = page(_TITLE, lead, content, pictures.files, scene, pictures.notes, protocol)
    return [*written, _write(folder / "report.html", html), *(picture.path for picture in pictures.files)]


def load_cases(folder: str | Path) -> Load:
    """Reads the CT, the X-rays and the targets of a record's case, as the protocol in a run's folder says.

    Raises DiffDRRError where the dataset is not there any more.
    """
    from DiffDRRCore.evaluation.protocol.protocol import Protocol
    from DiffDRRCore.evaluation.running.cases import Case, Loader

    loader = Loader(Protocol.from_dict(read_run(folder)))

    def load(record: Record) -> tuple:
        volume, xrays, situation = loader.situation(Case(record["subject"], tuple(record["views"]), record["start"]))
        return volume, xrays, situation.targets

    return load


def _draw(folder: Path, records, summaries, criteria: Criteria, load: Load | None, worst: int) -> Pictures:
    pictures = Pictures()
    try:
        _draw_statistics(folder, records, summaries, criteria, pictures)
    except DiffDRRError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        pictures.notes.append(str(error))
        return pictures
    if load is None:
        pictures.notes.append("Pictures of the worst cases need the dataset, which this report was written without.")
    else:
        _draw_worst(folder, records, criteria, load, worst, pictures)
    return pictures


def _draw_statistics(folder: Path, records, summaries, criteria: Criteria, pictures: Pictures) -> None:
    figures = [
        ("capture_range", plots.capture_figure(summaries, criteria), "Capture range"),
        ("success", plots.success_figure(records, criteria), "Success over the threshold"),
    ]
    for name, figure, title in figures:
        pictures.files.append(Picture(plots.save(figure, folder / f"{name}.png"), title, "Figures"))
    for measure in measures_of(records):
        figure = plots.histogram_figure(records, measure)
        path = plots.save(figure, folder / f"errors_{_safe(measure)}.png")
        group = "Figures" if measure in MAIN else "More error histograms"
        pictures.files.append(Picture(path, f"Errors: {label(measure)}", group))


def _draw_worst(folder: Path, records, criteria: Criteria, load: Load, worst: int, pictures: Pictures) -> None:
    """Subject by subject, as each CT is large; what the 3D scene shows of every subject is taken on the way."""
    chosen = list(enumerate(plots.worst_cases(records, criteria.measure, worst), start=1))
    drawn: list[Picture] = []
    for subject in dict.fromkeys(str(record.get("subject", "")) for record in records):
        own = [(place, record) for place, record in chosen if str(record.get("subject", "")) == subject]
        first = next(record for record in records if str(record.get("subject", "")) == subject)
        for place, record in own or [(0, first)]:
            name = f"{method_of(record)}, {record.get('case')}"
            try:
                volume, xrays, *targets = load(record)
                pictures.anatomy.setdefault(subject, Anatomy.of(volume, *targets))
                files = plots.draw_case(folder / f"worst_{place:02d}.png", record, volume, xrays) if place else []
            except DiffDRRError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error, ReadError):
                    raise
                pictures.notes.append(f"{name} could not be drawn: {error}")
                continue
            caption = f"{name}: {_change(record, criteria.measure)}"
            drawn += [Picture(file, caption, "Worst cases") for file in files]
    pictures.files += sorted(drawn, key=lambda picture: picture.path.name)


def _scene(records: Sequence[Record], criteria: Criteria, pictures: Pictures) -> str | None:
    try:
        scene = scene_html(records, criteria.measure, pictures.anatomy)
    except DiffDRRError as error:
        pictures.notes.append(str(error))
        return None
    if missing := left_out(records):
        pictures.notes.append(f"The 3D scene leaves out {missing} cases, those with the smallest errors.")
    return scene


def _write_markdown(folder: Path, protocol, lead: str, content: Sequence[Table], pictures: Pictures) -> Path:
    parts = [f"# {_TITLE}\n", f"{_plain(lead)}\n", *(table.markdown() for table in content)]
    for group in GROUPS:
        shown = [(_plain(p.caption), p.path.name) for p in pictures.files if p.group == group]
        parts += [f"## {group}\n"] if shown else []
        parts += [f"{caption}\n\n![{caption}](figures/{name})\n" for caption, name in shown]
    parts += [f"{_plain(note)}\n" for note in pictures.notes]
    parts.append("## Protocol\n\n" + _indented(json.dumps(protocol, indent=1, ensure_ascii=False)) + "\n")
    return _write(folder / "report.md", "\n".join(parts))


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _lead(protocol: dict[str, Any], records: Sequence[Record]) -> str:
    """How much there is, when and with what it was made."""
    subjects = len({record.get("subject") for record in records})
    methods = ", ".join(dict.fromkeys(map(method_of, records)))
    parts = [f"{len(records)} cases, {subjects} subject{'s' if subjects != 1 else ''}; {methods}"]
    runs = [run for run in protocol.get("runs") or () if isinstance(run, dict)]
    if runs:
        versions = runs[-1].get("versions") or {}
        parts.append(str(runs[-1].get("date", ""))[:10])
        parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    if len({json.dumps([run.get(key) for key in _CONDITIONS], sort_keys=True) for run in runs}) > 1:
        parts.append("Not all cases were run with the same versions, machine, threads and device: see the protocol")
    return ". ".join(filter(None, parts)) + "."


def _change(record: Record, measure: str) -> str:
    start, end = start_errors([record], measure)[0], end_errors([record], measure)[0]
    return f"{label(measure)} from {number(start)} to {number(end)}"


def _safe(name: str) -> str:
    return "".join(character if character.isalnum() or character in "_-" else "_" for character in name)


def _plain(text: str) -> str:
    return tables.for_markdown(text)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
