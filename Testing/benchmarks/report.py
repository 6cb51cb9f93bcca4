"""RESULTS.md: one section for each benchmark, written without touching the others'."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_OURS = ("torch", "numpy", "numba", "llvmlite", "scipy", "SimpleITK")


@dataclass(frozen=True)
class Target:
    """One row of the table of targets: a measured number against what is asked at least and what is the aim."""

    what: str
    measured: float | None
    least: float
    aim: float
    unit: str = "x"
    higher_is_better: bool = True

    def verdict(self) -> str:
        """'aim', 'at least', 'missed' or 'not measured'."""
        if self.measured is None:
            return "not measured"
        sign = 1 if self.higher_is_better else -1
        if sign * self.measured >= sign * self.aim:
            return "aim"
        return "at least" if sign * self.measured >= sign * self.least else "missed"

    def row(self) -> list[str]:
        """Cells of the table."""
        value = "-" if self.measured is None else f"{self.measured:.3g} {self.unit}"
        return [self.what, value, f"{self.least:g} {self.unit}", f"{self.aim:g} {self.unit}", self.verdict()]


def targets_table(targets: list[Target]) -> list[str]:
    """Lines of Markdown."""
    return table(["what", "measured", "at least", "aim", "reached"], [target.row() for target in targets])


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, with an empty line after it."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def machine(threads: int, peers: str | None = None) -> list[str]:
    """Date, processor, versions; `peers`: the versions of the peers' environment."""
    system = f"{platform.system()} {platform.machine()}"
    lines = [
        f"{date.today()}, {_processor()}, {os.cpu_count()} cores, {threads} threads, {system}, "
        f"Python {platform.python_version()}, {', '.join(filter(None, map(_version, _OURS)))}."
    ]
    return [*lines, *([f"Peers, in an environment of their own: {peers}."] if peers else []), ""]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _version(name: str) -> str | None:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def write_section(title: str, lines: list[str], path: Path = RESULTS) -> None:
    """Put `lines` below the heading '# title' in place of what stood there; other sections stay as they are."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = split_sections(text)
    sections[title] = "\n".join(["", *lines]).rstrip("\n") + "\n"
    whole = "\n".join(f"# {name}\n{body.rstrip()}\n" for name, body in sections.items())
    temporary = path.with_suffix(".tmp")
    temporary.write_text(whole, encoding="utf-8")
    temporary.replace(path)


def split_sections(text: str) -> dict[str, str]:
    """{title: what stands below '# title'}, in order; text before the first heading is dropped."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("# "):
            lines = sections.setdefault(line[2:].strip(), [])
        else:
            lines.append(line)
    return {title: "\n".join(body) for title, body in sections.items()}
