"""Protocols: what is in the file is what is run, and what cannot be run is said in one sentence."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.evaluation.protocol import EXAMPLE, Protocol
from DiffDRRCore.registration import Limits
from DiffDRRCore.similarity import LNCC
from Testing.core.evaluation.protocols import small

MINIMAL = {"dataset": "data.h5", "starts": {"kind": "header"}}


def refused(content) -> str:
    with pytest.raises(DiffDRRError) as caught:
        Protocol.from_dict(content)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".") or message.endswith("?")
    return message


def test_the_example_is_a_protocol_and_its_comments_on_defaults_are_true():
    example = Protocol.from_dict(yaml.safe_load(EXAMPLE))
    defaults = Protocol.from_dict({name: yaml.safe_load(EXAMPLE)[name] for name in ("dataset", "starts")})
    ours, theirs = example.to_dict(), defaults.to_dict()
    assert ours["method"].pop("options") and not theirs["method"].pop("options")
    assert ours == theirs
    assert example.starts == Protocol.from_dict({**MINIMAL, "starts": {"kind": "sampled", "count": 5}}).starts


@pytest.mark.parametrize("line", [line.lstrip("# ") for line in EXAMPLE.splitlines() if line.startswith("# {kind")])
def test_the_other_starts_of_the_example_are_starts(line):
    Protocol.from_dict({**MINIMAL, "starts": yaml.safe_load(line[: line.rindex("}") + 1])})


def test_yaml_and_json_are_the_same_and_paths_are_relative_to_the_file(tmp_path):
    content = {**small(), "dataset": {"simulated": {"ct": "ct.nii.gz", "labelmap": "sub/l.nrrd", "views": [{}]}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "p.json").write_text(json.dumps(content))
    one, other = Protocol.read(tmp_path / "p.yaml"), Protocol.read(tmp_path / "p.json")
    assert one == other
    assert one.dataset["simulated"]["ct"] == str(tmp_path / "ct.nii.gz")
    assert one.dataset["simulated"]["labelmap"] == str(tmp_path / "sub" / "l.nrrd")
    (tmp_path / "q.json").write_text(json.dumps({**MINIMAL, "dataset": {"path": str(tmp_path / "x" / "data.h5")}}))
    assert Protocol.read(tmp_path / "q.json").dataset == {"path": str(tmp_path / "x" / "data.h5"), "options": {}}
    (tmp_path / "m.json").write_text(json.dumps({**MINIMAL, "starts": {"kind": "model", "path": "run/m.safetensors"}}))
    assert Protocol.read(tmp_path / "m.json").starts["path"] == str(tmp_path / "run" / "m.safetensors")


def test_the_phantom_is_no_path(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(small()))
    assert Protocol.read(tmp_path / "p.json").dataset["simulated"]["ct"] == "phantom"


def test_a_normalised_protocol_is_the_same_protocol():
    protocol = Protocol.from_dict(small())
    again = Protocol.from_dict(json.loads(json.dumps(protocol.to_dict())))
    assert again == protocol
    assert again.fingerprint == protocol.fingerprint
    assert Protocol.from_dict(dict(reversed(small().items()))).fingerprint == protocol.fingerprint
    protocol.to_dict()["thresholds_mm"].append(99.0)
    assert 99.0 not in Protocol.from_dict(small()).thresholds_mm


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": ["phantom"]},
        {"views": "groups"},
        {"starts": {"kind": "sampled", "count": 3, "degrees": 3}},
        {"method": {"options": {"sizes": [16]}}},
        {"method": {**small()["method"], "crop_margin_mm": 5}},
        {"preprocessing": {"smoothing": 1}},
        {"targets": "landmarks"},
        {"measures": ["xvr_mtre_mm"]},
        {"seed": 1},
        {"dataset": {"simulated": {**small()["dataset"]["simulated"], "photons": 5}}},
    ],
)
def test_the_fingerprint_follows_what_has_an_influence(change):
    assert Protocol.from_dict(small(**change)).fingerprint != Protocol.from_dict(small()).fingerprint


def test_thresholds_have_no_influence_on_the_cases():
    protocol = Protocol.from_dict(small(thresholds_mm=[3, 1.5, 3]))
    assert protocol.thresholds_mm == [1.5, 3.0]
    assert protocol.fingerprint == Protocol.from_dict(small()).fingerprint


@pytest.mark.parametrize(
    ("change", "where", "meant"),
    [
        ({"start": {}}, "start", "starts"),
        ({"dataset": {"simulated": {"views": [{}], "photon": 1}}}, "dataset.simulated.photon", "photons"),
        ({"dataset": {"simulated": {"views": [{"primry": 1}]}}}, "dataset.simulated.views[0].primry", "primary"),
        ({"dataset": {"pth": "x"}}, "dataset.pth", "path"),
        ({"starts": {"kind": "samples"}}, "starts.kind", "sampled"),
        ({"starts": {"kind": "sampled", "counts": 2}}, "starts.counts", "count"),
        ({"method": {"option": {}}}, "method.option", "options"),
        ({"method": {"options": {"max_step": 3}}}, "method.options.max_step", "max_steps"),
        ({"method": {"options": {"limits": {"bound": None}}}}, "method.options.limits.bound", "bounds"),
        ({"preprocessing": {"smooth": 1}}, "preprocessing.smooth", "smoothing"),
        ({"targets": {"bones": {}}}, "targets.bones", "bone"),
        ({"measures": ["xvr_mtre"]}, "measures[0]", "xvr_mtre_mm"),
        ({"views": "group"}, "views", "'groups'"),
    ],
)
def test_unknown_words_are_named_with_the_nearest_known_one(change, where, meant):
    message = refused({**MINIMAL, **change})
    assert where in message
    assert meant in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"starts": {"kind": "model"}}, "starts lacks 'path'"),
        ({"starts": {"kind": "offsets", "offsets": [[1, 2, 3]]}}, "starts.offsets[0] must be a list of 6 items"),
        ({"starts": {"kind": "sampled", "degrees": -1}}, "starts.degrees must be 0 or more"),
        ({"starts": {"kind": "sampled", "count": 0}}, "starts.count must be a whole number of 1 or more, got 0"),
        ({"starts": {"kind": "sampled", "count": True}}, "whole number"),
        ({"starts": {"kind": "sampled", "bins_mm": [0, 20, 10]}}, "must rise"),
        ({"starts": {"kind": "sampled", "bins_mm": [0, 20], "count": 3}}, "both 'count' and 'bins_mm'"),
        ({"starts": {"kind": "fixed"}}, "starts lacks 'sod_mm'"),
        ({"starts": "header"}, "'kind'"),
        ({"starts": {"kind": "bins", "bins_mm": [0, 20]}}, "starts.kind: there is no 'bins'; choose from"),
        ({"starts": {"kind": "landmarks", "noise_px": float("nan")}}, "starts.noise_px must be a number"),
        ({"subjects": [1]}, "subjects[0] must be text, got 1: put it in quotes"),
        ({"subjects": "one"}, "subjects: there is no 'one'; choose from all"),
        ({"views": []}, "views must be a list of 1 item or more"),
        ({"thresholds_mm": [0]}, "thresholds_mm[0] must be above 0"),
        ({"thresholds_mm": []}, "1 item or more"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"targets": "skin"}, "targets is 'landmarks' or 'bone'"),
        ({"method": {"options": {"similarity": "zmcc"}}}, "Unknown similarity measure 'zmcc'"),
        ({"method": {"options": {"similarity": {"name": "lncc", "size": 8}}}}, "odd number"),
        (
            {"method": {"options": {"similarity": {"name": "lncc", "sice": 9}}}},
            "'lncc' has no option 'sice'; there are: size, eps.",
        ),
        ({"method": {"options": {"similarity": {"name": "ssd", "size": 9}}}}, "no option 'size'; it takes none."),
        ({"method": {"options": {"optimizer": "newton"}}}, "optimizer is 'auto'"),
        ({"method": {"options": {"sizes": [4]}}}, "8 or more"),
        ({"method": {"options": {"limits": {"bounds": [1, 2]}}}}, "limits.bounds must be a list of 6 items"),
        ({"method": {"options": {"landmarks": {}}}}, "there is no 'landmarks'"),
        ({"preprocessing": {"crop": [1, 2]}}, "preprocessing.crop must be a list of 4 items"),
        ({"preprocessing": {"i0": 0}}, "preprocessing.i0 must be above 0"),
        ({"dataset": {"path": "x", "options": {"day": float("inf")}}}, "dataset.options must be"),
        ({"dataset": {"simulated": {}}}, "dataset.simulated lacks 'views'"),
        ({"dataset": 3}, "dataset must have keys and values, not 3"),
    ],
)
def test_wrong_values_are_said_in_one_sentence(change, words):
    assert words in refused({**MINIMAL, **change})


def test_what_must_be_there():
    assert "lacks 'dataset', 'starts'" in refused({})
    assert "must have keys and values" in refused(["dataset"])


def test_options_become_what_register_takes():
    options = {"limits": {"bounds": [None, None, None, 5, 5, 20]}, "similarity": {"name": "lncc", "size": 7}}
    protocol = Protocol.from_dict(small(method={"options": options | {"tolerance": "1e-3"}}))
    keywords = protocol.registration_options
    assert keywords["limits"] == Limits(bounds=(None, None, None, 5.0, 5.0, 20.0))
    assert keywords["similarity"] == LNCC(7)
    assert keywords["tolerance"] == 1e-3  # YAML takes 1e-3 for text


def test_empty_keys_have_their_defaults():
    assert Protocol.from_dict({**MINIMAL, "method": None, "targets": None}) == Protocol.from_dict(MINIMAL)
    assert Protocol.from_dict({**MINIMAL, "method": {"options": None}}) == Protocol.from_dict(MINIMAL)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.yaml", "dataset: [1, 2", "is not valid YAML"),
        ("p.json", "{", "is not valid JSON"),
        ("p.json", "[" * 100000, "is not valid JSON"),
        ("p.yaml", "!!python/object/apply:os.system [echo]", "is not valid YAML"),
        ("p.yaml", "", "must have keys and values"),
        ("p.txt", "", "is a .yaml or .json file"),
        ("p.json", '{"dataset": "x"}', "The top level lacks 'starts'"),
        (
            "p.yaml",
            "dataset: x\nseed: 1\nstarts: {kind: header}\nseed: 2\n",
            "'seed' in line 4 is there already, in line 2",
        ),
        (
            "p.yaml",
            "starts: {kind: header}\nmethod: {options: {seed: 1, 'seed': 2}}\n",
            "'seed' in line 2 is there already",
        ),
        ("p.json", '{"dataset": "x", "starts": {"kind": "header", "kind": "fixed"}}', "the key 'kind' comes twice"),
    ],
)
def test_files_that_are_no_protocol(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReadError) as caught:
        Protocol.read(tmp_path / name)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_a_protocol_that_is_not_there(tmp_path):
    with pytest.raises(ReadError, match="No such file"):
        Protocol.read(tmp_path / "p.json")


def test_yaml_without_its_package_is_an_error_and_json_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "p.yaml").write_text(EXAMPLE)
    (tmp_path / "p.json").write_text(json.dumps(small()))
    with pytest.raises(ReadError, match="pip install pyyaml"):
        Protocol.read(tmp_path / "p.yaml")
    assert Protocol.read(tmp_path / "p.json").seed == 0


def test_yaml_may_merge_sections_and_override_them(tmp_path):
    """What looks like a key given twice, after merging, is none."""
    text = """
dataset: {simulated: {views: [&ap {name: ap, primary: 10}, {<<: *ap, name: lat}]}}
starts: {kind: header}
"""
    (tmp_path / "p.yaml").write_text(text)
    views = Protocol.read(tmp_path / "p.yaml").dataset["simulated"]["views"]
    assert [(view["name"], view["primary"]) for view in views] == [("ap", 10.0), ("lat", 10.0)]


def test_starts_at_distances_are_written_as_they_are_read():
    starts = {"kind": "sampled", "bins_mm": [0, 20, 40], "per_bin": 2}
    protocol = Protocol.from_dict({**MINIMAL, "starts": starts})
    assert protocol.starts.items() >= starts.items()
    assert Protocol.from_dict(protocol.to_dict()) == protocol


def test_a_dataset_that_has_no_such_option(tmp_path):
    (tmp_path / "ct.nrrd").write_text("")
    for name in ("i0", "path"):
        protocol = Protocol.from_dict({**MINIMAL, "dataset": {"path": str(tmp_path), "options": {name: 1}}})
        with pytest.raises(ReadError, match=rf"has no option '{name}'; it takes none"):
            protocol.open_dataset()
