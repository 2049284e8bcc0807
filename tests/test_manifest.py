# SPDX-License-Identifier: Apache-2.0
"""The manifest refuses what it cannot hold, by key; the run folder is replaced whole or not at all."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import manifest, runs
from train.manifest import Decision, Input, Label, Manifest, Trigger
from train.say import ManifestError, UserError

DRAFT = Manifest(
    name="af", arch="local-lead", preset="tiny", task="cinc2017", multi_label=False, fs=250, window=2000,
    classes=(Label("N", "SNOMED:426783006"), Label("A", "SNOMED:164889003")),
    inputs=(Input("ecg", "waveform", (1, 2000), "uV", 16.0, ("I",)),),
    trigger=Trigger("hop", hop=256), streaming=True, frontend={"version": 1, "sections": [[1, 2, 3, 4, 5]]},
    provenance={"data": "made up"})
FROZEN = Manifest(**{**DRAFT.__dict__, "decision": Decision("argmax", (0, -300), 5000, 0), "graph_sha256": "ab" * 32})


@pytest.mark.parametrize("m", [DRAFT, FROZEN], ids=["draft", "frozen"])
def test_a_manifest_survives_its_file(m):
    assert manifest.loads(manifest.dumps(m)) == m


def test_only_a_manifest_with_graph_and_rule_is_frozen():
    assert FROZEN.frozen and not DRAFT.frozen


def test_identity_covers_the_promise_and_not_the_provenance():
    other = Manifest(**{**FROZEN.__dict__, "provenance": {"data": "another"}})
    promise = Manifest(**{**FROZEN.__dict__, "fs": 500})
    assert len(FROZEN.identity) == 32
    assert other.identity == FROZEN.identity != promise.identity


def edited(path, value):
    """FROZEN as JSON with one key replaced; a path is a tuple of keys; value None removes it."""
    data = json.loads(manifest.dumps(FROZEN))
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(data)


BAD = {
    "wrong unit": (("inputs", 0, "unit"), "mV", "unit"),
    "unknown key": (("colour",), "red", "colour"),
    "missing key": (("fs",), KeyError, "fs"),
    "unknown nested key": (("trigger", "every"), 3, "every"),
    "string for a number": (("fs",), "250", "fs"),
    "bool for a number": (("window",), True, "window"),
    "other major schema": (("schema",), "2.0", "schema"),
    "schema not a string": (("schema",), 1, "schema"),
    "lead of no standard": (("inputs", 0, "leads"), ["X9"], "leads"),
    "shape that is not the window": (("inputs", 0, "shape"), [1, 1999], "shape"),
    "two classes of one name": (("classes", 1, "name"), "N", "classes"),
    "zero hop": (("trigger", "hop"), 0, "hop"),
    "unknown trigger": (("trigger", "kind"), "whenever", "trigger"),
    "streaming beats": (("trigger",), {"kind": "r-peak", "hop": 0, "offset": 3, "beats_after": 1}, "streaming"),
    "one offset too few": (("decision", "offsets"), [0], "offsets"),
    "float in the front end": (("frontend", "sections"), [[0.5]], "frontend"),
    "short hash": (("graph_sha256",), "abc", "graph_sha256"),
    "classes no list": (("classes",), "N,A", "classes"),
    "inputs empty": (("inputs",), [], "inputs"),
}


@pytest.mark.parametrize("path,value,word", BAD.values(), ids=BAD)
def test_a_wrong_manifest_is_refused_by_key(path, value, word):
    with pytest.raises(ManifestError, match=word):
        manifest.loads(edited(path, value))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12))
def test_no_json_brings_anything_but_a_manifest_error(value):
    with pytest.raises(ManifestError):
        manifest.loads(json.dumps(value))


@given(st.sampled_from(sorted(json.loads(manifest.dumps(FROZEN)))),
       st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()))
def test_one_replaced_value_is_refused_or_stays_readable(key, value):
    try:
        assert isinstance(manifest.loads(edited((key,), value)), Manifest)
    except ManifestError as error:
        assert "\n" in str(error) or error.what


def test_a_run_without_manifest_says_what_to_type(tmp_path):
    with pytest.raises(ManifestError, match=r"qat\.py"):
        manifest.load(tmp_path)


def test_files_of_a_run_are_replaced_together(tmp_path):
    runs.write(tmp_path / "run", {"a": "1", "b": b"2"})
    runs.write(tmp_path / "run", {"a": "3", "b": b"4"})
    assert (tmp_path / "run" / "a").read_text() == "3"
    assert sorted(os.listdir(tmp_path / "run")) == ["a", "b"]


def test_a_full_disk_leaves_the_old_run_whole(tmp_path, monkeypatch):
    runs.write(tmp_path, {"graph.npz": b"old", "model.json": "old"})
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:
        runs.write(tmp_path, {"graph.npz": b"new", "model.json": "new"})
    assert "unchanged" in caught.value.expected
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"graph.npz": "old", "model.json": "old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_the_device_that_is_always_full_is_a_user_error_too(tmp_path, monkeypatch):
    part = tmp_path / f".model.json.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        runs.write(tmp_path, {"model.json": "x"})
    assert not part.is_symlink()
