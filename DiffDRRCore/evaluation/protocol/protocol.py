"""What an evaluation does, as data: one YAML or JSON file. `EXAMPLE` shows every key.

Lengths are in mm and angles in degrees. Paths are relative to the protocol's own file. Unknown keys are errors, so that
a misspelt one is not overlooked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DiffDRRCore import values
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.evaluation.measures import EXTRA_MEASURES
from DiffDRRCore.evaluation.protocol import starts
from DiffDRRCore.registration.problem.motion import Limits
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.similarity import similarity
from DiffDRRCore.values import Key

if TYPE_CHECKING:
    from DiffDRRCore.datasets.dataset import Dataset


RUN_KEYS = ("format", "fingerprint", "runs")  # what a run adds to its protocol.json

_NUMBER, _POSITIVE = values.number(), values.number(above=0)
_NAMES = values.several(values.text)
_VIEW = {
    "name": Key(values.optional(values.text), None),
    "primary": Key(_NUMBER, 0.0),
    "secondary": Key(_NUMBER, 0.0),
    "roll": Key(_NUMBER, 0.0),
}
_SIMULATED = {
    "ct": Key(values.text, "phantom"),
    "labelmap": Key(values.optional(values.text), None),
    "label_names": Key(values.optional(values.text), None),
    "landmarks": Key(values.optional(values.text), None),
    "shape": Key(values.optional(values.several(values.whole(1), count=3)), None),
    "spacing": Key(values.optional(_POSITIVE), None),
    "views": Key(values.several(values.of(_VIEW))),
    "size": Key(values.whole(8), 128),
    "field_mm": Key(_POSITIVE, 400.0),
    "sdd": Key(_POSITIVE, 1020.0),
    "sod": Key(_POSITIVE, 850.0),
    "view_from": Key(values.choice("source", "detector"), "source"),
    "photons": Key(_POSITIVE, 10000.0),
    "oversampling": Key(values.whole(1), 4),
    "seed": Key(values.whole(), 0),
}
_OPENED = {"path": Key(values.text), "options": Key(values.anything, {})}
_CROP = values.word_or(values.several(values.whole(0), count=4), "find")
_PREPROCESSING = {
    "crop": Key(values.optional(_CROP), None),
    "i0": Key(values.optional(_POSITIVE), None),
    "background": Key(values.either(values.flag, _NUMBER), False),
    "smoothing": Key(values.number(least=0), 0.0),
    "size": Key(values.optional(values.several(values.whole(1), count=2)), None),
    "equalize": Key(values.optional(values.choice("hard", "soft")), None),
}
_BONE = {
    "count": Key(values.whole(1), 200),
    "threshold": Key(_NUMBER, 150.0),
    "seed": Key(values.whole(), 0),
}
_SIX = values.optional(values.several(values.optional(_POSITIVE), count=6))
_LIMITS = {"bounds": Key(_SIX, None), "deviations": Key(_SIX, None), "weight": Key(values.number(least=0), 1e-3)}
_METHOD = {
    "name": Key(values.text, "DiffDRRSlicer"),
    "options": Key(values.anything, {}),
    "crop_margin_mm": Key(values.optional(values.number(least=0)), None),
}
_REGISTRATION = {
    "similarity": values.either(values.text, values.anything),
    "optimizer": values.text,
    "sizes": values.optional(values.several(values.whole(8))),
    "max_steps": values.whole(1),
    "max_seconds": values.optional(_POSITIVE),
    "tolerance": _POSITIVE,
    "labels": values.optional(values.several(values.either(values.whole(), values.text))),
    "limits": values.of(_LIMITS),
    "starts": values.whole(1),
    "start_spread": values.several(values.number(least=0), count=3),
    "search": values.whole(0),
    "seed": values.whole(),
    "integrator": values.choice("trilinear", "siddon"),
    "step": values.optional(_POSITIVE),
    "voxels_per_pixel": _POSITIVE,
    "about": values.optional(values.several(_NUMBER, count=3)),
    "learning_rate": values.several(_POSITIVE, count=2),
    "robust": values.optional(values.text),
    "pixels": values.optional(values.whole(16)),
}


def _dataset(where: str, content: Any) -> dict[str, Any]:
    if isinstance(content, str):
        content = {"path": content}
    if isinstance(content, dict) and "simulated" in content:
        return values.section(where, content, {"simulated": Key(values.of(_SIMULATED))})
    return values.section(where, content, {**_OPENED, "options": Key(_dataset_options, {})})


def _dataset_options(where: str, content: Any) -> dict[str, Any]:
    """Which there are, the dataset itself knows."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DiffDRRError(f"{where} must have keys and values, not {content!r}.")
    return _plain(where, content)


def _targets(where: str, content: Any) -> Any:
    if content == "landmarks":
        return content
    if content == "bone":
        content = {"bone": {}}
    if not isinstance(content, dict):
        raise DiffDRRError(f"{where} is 'landmarks' or 'bone' with its count, threshold and seed, got {content!r}.")
    return values.section(where, content, {"bone": Key(values.of(_BONE))})


def _options(where: str, content: Any) -> dict[str, Any]:
    """Those that are given: what the others are is the registration's own business."""
    if not isinstance(content, dict):
        raise DiffDRRError(f"{where} must have keys and values, not {content!r}.")
    for name in content:
        if name not in _REGISTRATION:
            raise values.unknown(f"{where}.{name}", name, _REGISTRATION)
    plain = {name: _REGISTRATION[name](f"{where}.{name}", value) for name, value in content.items()}
    try:
        Options(**_keywords(plain))
    except (DiffDRRError, TypeError, ValueError) as error:
        raise DiffDRRError(f"{where}: {error}") from error
    return plain


def _keywords(plain: dict[str, Any]) -> dict[str, Any]:
    """Options as `register` takes them."""
    keywords = dict(plain)
    measure = keywords.get("similarity")
    if isinstance(measure, dict):
        keywords["similarity"] = similarity(**{"measure": measure.get("name"), **_without(measure, "name")})
    elif measure is not None:
        similarity(measure)
    if "limits" in keywords:
        limits = {name: tuple(x) if isinstance(x, list) else x for name, x in keywords["limits"].items()}
        keywords["limits"] = Limits(**limits)
    for name in ("start_spread", "learning_rate"):
        if name in keywords:
            keywords[name] = tuple(keywords[name])
    return keywords


_KEYS = {
    "dataset": Key(_dataset),
    "subjects": Key(values.word_or(_NAMES, "all"), "all"),
    "views": Key(values.word_or(_NAMES, "single", "groups"), "single"),
    "starts": Key(starts.checked),
    "method": Key(values.of({**_METHOD, "options": Key(_options, {})}), None),
    "preprocessing": Key(values.of(_PREPROCESSING), None),
    "targets": Key(_targets, None),
    "thresholds_mm": Key(values.several(_POSITIVE), [1.0, 2.0, 5.0, 10.0]),
    "measures": Key(values.several(values.choice(*EXTRA_MEASURES), least=0), []),
    "seed": Key(values.whole(), 0),
}


@dataclass(frozen=True)
class Protocol:
    """An evaluation's protocol: plain values, checked, with all defaults filled in (`EXAMPLE` explains them).

    dataset        {"path", "options"} or {"simulated": {...}}
    subjects       "all", or names
    views          "single" (each by itself), "groups" (`Subject.groups`), or names (one group)
    starts         {"kind", ...}: `DiffDRRCore.evaluation.protocol.starts.KEYS`
    method         {"name", "options", "crop_margin_mm"}
    preprocessing  keywords of `DiffDRRCore.imaging.preprocessing.preprocess`
    targets        "landmarks" or {"bone": {"count", "threshold" (HU), "seed"}}
    thresholds_mm  mTRE below which a case is a success
    measures       of `EXTRA_MEASURES`, beside those of `pose_errors`
    seed           of the starts
    """

    dataset: dict[str, Any]
    subjects: str | list[str]
    views: str | list[str]
    starts: dict[str, Any]
    method: dict[str, Any]
    preprocessing: dict[str, Any]
    targets: str | dict[str, Any]
    thresholds_mm: list[float]
    measures: list[str]
    seed: int

    @classmethod
    def read(cls, path: str | Path) -> Protocol:
        """A protocol file (.yaml, .yml or .json). Raises ReadError, or DiffDRRError for what is in it."""
        path = Path(path)
        try:
            content = _parsed(path)
        except OSError as error:
            raise ReadError(f"Cannot read the protocol '{path}': {error.strerror or error}.") from error
        except DiffDRRError as error:
            raise ReadError(f"Cannot read the protocol '{path}': {error}") from error
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ReadError(f"The protocol '{path}' is not valid {path.suffix[1:].upper()}: {reason}.") from error
        try:
            return cls.from_dict(content, path.absolute().parent)
        except DiffDRRError as error:
            raise ReadError(f"The protocol '{path}' cannot be used: {error}") from error

    @classmethod
    def from_dict(cls, content: dict[str, Any], folder: str | Path | None = None) -> Protocol:
        """A protocol of plain values; paths are relative to `folder`. Raises DiffDRRError."""
        if isinstance(content, dict):
            content = _without(content, *RUN_KEYS)
        checked = values.section("", content, _KEYS)
        checked["method"] = checked["method"] or _defaults(_METHOD)
        checked["preprocessing"] = checked["preprocessing"] or _defaults(_PREPROCESSING)
        checked["targets"] = checked["targets"] or {"bone": _defaults(_BONE)}
        checked["thresholds_mm"] = sorted(set(checked["thresholds_mm"]))
        protocol = cls(**_plain("The protocol", checked))
        return protocol if folder is None else protocol._placed(Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same protocol of."""
        return json.loads(json.dumps({name: getattr(self, name) for name in _KEYS}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that has an influence on the cases: everything but the thresholds."""
        content = _without(self.to_dict(), "thresholds_mm")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def open_dataset(self) -> Dataset:
        """The dataset; no image is read yet. Raises ReadError or another DiffDRRError."""
        if "simulated" in self.dataset:
            from DiffDRRCore.datasets.simulated import Simulated

            return Simulated(**self.dataset["simulated"])
        from DiffDRRCore.datasets.opening import open_dataset

        return open_dataset(self.dataset["path"], **self.dataset["options"])

    @property
    def registration_options(self) -> dict[str, Any]:
        """The method's options as keywords of `DiffDRRCore.register`."""
        return _keywords(self.method["options"])

    def _placed(self, folder: Path) -> Protocol:
        """With absolute paths."""
        content = self.to_dict()
        paths = content["dataset"].get("simulated", content["dataset"])
        for name in ("path", "ct", "labelmap", "label_names", "landmarks"):
            if paths.get(name) is not None and (name, paths[name]) != ("ct", "phantom"):
                paths[name] = str(folder / Path(paths[name]).expanduser())
        if content["starts"]["kind"] == "model":
            content["starts"]["path"] = str(folder / Path(content["starts"]["path"]).expanduser())
        return Protocol(**content)


def _parsed(path: Path) -> Any:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ReadError(f"A protocol is a .yaml or .json file, not '{path.name}'.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return values.parse_json(text)
    return values.parse_yaml(text)


def _plain(where: str, content: Any) -> Any:
    """A copy. YAML knows dates and numbers that JSON does not."""
    try:
        return json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DiffDRRError(f"{where} must be text, numbers, lists and sections: {error}.") from error


def _defaults(keys: dict[str, Key]) -> dict[str, Any]:
    return {name: key.default for name, key in keys.items()}


def _without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}
