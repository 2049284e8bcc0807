# SPDX-License-Identifier: Apache-2.0
"""The generated C with its engine, compiled for this computer, against the reference: windows, streams, decisions."""

from __future__ import annotations

import functools
import itertools
import shutil
from dataclasses import replace

import graphs as make
import numpy as np
import pytest

from compress import reference
from targets import c_model, front_data, pack, toolchain, twin
from train import frontend, rhythm, rpeak, score, sides, synth, template
from train import manifest as manifests
from train.manifest import Decision, Input, Trigger
from train.say import GraphError, ManifestError, UserError

pytestmark = pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))
HOP, FS = 32, 250
CORES = [pack.CORES["host"], pack.CORES["m4"], replace(pack.CORES["m4"], name="m4 wide", wide=True),
         pack.CORES["m0plus"]]
GRAPHS = {"every kind": make.every_kind, "three leads": lambda: make.every_kind(leads=3), "learned": make.learned,
          "gated": make.gated, **{name: functools.partial(make.attending, **{"lam": None} | form)
                                  for name, form in make.FORMS.items()}}
WINDOWS = (("band", 3), ("block", 4), ("neighbourhood", 5))


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """Compiled kernels, once for all tests of a process."""
    return twin.Objects(tmp_path_factory.mktemp("objects"))


def compiled(graph, objects, folder, manifest=None, fs_in=None, core=CORES[0], **options) -> twin.Twin:
    library = twin.build(graph, manifest, folder, core, objects, **options)
    return twin.Twin(library, graph, fs_in, manifest.fs if manifest else None)


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", GRAPHS)
def test_windows_are_the_references(name, core, objects, tmp_path):
    graph = GRAPHS[name]()
    inputs = make.inputs_of(graph, 8)
    found = compiled(graph, objects, tmp_path, core=core).run(inputs)
    np.testing.assert_array_equal(found, reference.run(graph, inputs))


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("leads", (1, 2))
@pytest.mark.parametrize("window, size", WINDOWS)
def test_a_stream_in_any_chunks_is_the_references(window, size, leads, core, objects, tmp_path):
    graph = make.streaming(leads=leads, window=window, size=size)
    rng = np.random.default_rng(size)
    record = {"ecg": rng.integers(-128, 128, (leads, 160 + 20 * HOP + 5)).astype(np.int8)}
    expected = reference.stream(graph, record, HOP)
    c = compiled(graph, objects, tmp_path, core=core, hop=HOP)
    np.testing.assert_array_equal(c.stream(record), expected)
    c.reset()
    cuts = [0, *np.sort(rng.integers(0, 805, 60)).tolist(), 805]
    parts = [c.push(record["ecg"][:, a:b], {}) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_counters_that_are_moved_back_change_no_bit(tmp_path):
    graph = make.streaming(window="block", size=4)
    record = {"ecg": np.random.default_rng(0).integers(-128, 128, (1, 60 * HOP)).astype(np.int8)}
    early = twin.Objects(tmp_path / "objects", (*twin.FLAGS, "-DECG_REBASE=700"))
    assert len(np.unique(reference.stream(graph, record, HOP), axis=0)) > 10
    np.testing.assert_array_equal(compiled(graph, early, tmp_path, hop=HOP).stream(record),
                                  reference.stream(graph, record, HOP))


def test_zig_compiles_the_twin_where_there_is_no_other_compiler(monkeypatch, tmp_path):
    pytest.importorskip("ziglang", reason='ziglang is not installed: pip install -e ".[mcu]"')
    real, own = shutil.which, ("cc", "gcc", "clang")
    monkeypatch.setattr(shutil, "which", lambda name, *more: None if name in own else real(name, *more))
    monkeypatch.setenv("CC", "cc")
    toolchain._host.cache_clear()
    try:
        assert toolchain.compiler("host").version().startswith("zig ")
        graph = make.every_kind()
        found = compiled(graph, twin.Objects(tmp_path / "objects"), tmp_path).run(make.inputs_of(graph, 8))
    finally:
        toolchain._host.cache_clear()
    np.testing.assert_array_equal(found, reference.run(graph, make.inputs_of(graph, 8)))


def hop_model(leads: int = 1, **changes) -> tuple:
    """(manifest, graph) of a streaming model of hops, 0.64 s windows."""
    graph = make.streaming(leads=leads)
    fields = {"trigger": Trigger("hop", hop=HOP), "streaming": True,
              "decision": Decision("argmax", (0, 300, -200), 1 << 12, 0)} | changes
    return replace(make.manifest_of(graph, "0" * 64), **fields), graph


@functools.cache
def beat_model() -> tuple:
    """(manifest, graph) of a model that classifies beats and takes every side input."""
    shapes = {name: side.shape for name, side in sides.SIDES.items()}
    b = make.Builder(3, {"ecg": (2, 288), **shapes})
    x = b.conv(b.reshape("ecg", "channel"), 8, 7, stride=4)
    parts = [b.reduce("mean", x), b.reduce("max", x), b.dense("rr", 4), b.lstm("beats", 6), b.lookup("age", 9, 4, -1),
             b.lookup("sex", 3, 2, 0)]
    graph = b.graph(b.classifier(b.concat(parts), 3))
    inputs = (Input("ecg", "waveform", (2, 288), "uV", 16.0, ("I", "II")),
              *(Input(name, side.kind, side.shape, side.unit, side.lsb) for name, side in sides.SIDES.items()))
    whole = make.manifest_of(make.every_kind(), "0" * 64)
    return replace(whole, inputs=inputs, window=288, trigger=Trigger("r-peak", offset=128, beats_after=1),
                   decision=Decision("argmax", (0, 90, -80), 1 << 12, 1)), graph


@functools.cache
def patient(fs_in: float, seconds: int, leads: int) -> np.ndarray:
    """int32 microvolts (lead, time): the synthetic patient, other leads smaller."""
    x = synth.record("bigeminy", 7, seconds, fs_in).uv[0]
    return np.stack([x // (k + 1) for k in range(leads)]).astype(np.int32)


@pytest.mark.parametrize("fs_in", (250, 360, 500))
@pytest.mark.parametrize("vote", (0, 1, 3))
def test_decisions_of_hops_are_those_of_front_end_stream_and_rule(fs_in, vote, objects, tmp_path):
    m, graph = hop_model(leads=2)
    m = replace(m, decision=replace(m.decision, vote=vote))
    uv = patient(fs_in, 20, 2)
    found = compiled(graph, objects, tmp_path, m, fs_in).decide(uv)
    codes = frontend.quantize(frontend.filter_record(m.frontend, uv, fs_in), 16)[:, frontend.SETTLE_S * FS:]
    logits = reference.stream(graph, {"ecg": codes}, HOP)
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["top"], score.decide(*score.vote(logits, vote), "argmax", m.decision.offsets))
    np.testing.assert_array_equal(found["sample"], frontend.SETTLE_S * FS + 159 + HOP * np.arange(len(logits)))
    assert not found["unreliable"].any() and (vote == 0 or len(set(found["top"].tolist())) > 1)


def test_several_classes_are_called_by_their_thresholds(objects, tmp_path):
    m, graph = hop_model(decision=Decision("threshold", (500, -1000, 2000), 1 << 12, 2), multi_label=True)
    found = compiled(graph, objects, tmp_path, m).decide(patient(250, 20, 1))
    called = score.decide(*score.vote(found["logits"], 2), "threshold", m.decision.offsets)
    np.testing.assert_array_equal(found["present"][:, None] >> np.arange(3) & 1, called)
    assert (found["top"] == -1).all() and 0 < called.mean() < 1


@pytest.mark.parametrize("fs_in", (250, 360))
def test_beats_are_those_of_detector_features_and_reference(fs_in, objects, tmp_path):
    m, graph = beat_model()
    uv = patient(fs_in, 40, 2)
    c = compiled(graph, objects, tmp_path, m, fs_in)
    c.patient(63, 2)
    found = c.decide(uv)
    x = frontend.filter_record(m.frontend, uv, fs_in)
    peaks = rpeak.detect(x[0], FS)
    codes = np.pad(frontend.quantize(x, 16), ((0, 0), (128, 160)))
    whole = {"ecg": np.stack([codes[:, r:r + 288] for r in peaks]), "rr": template.beat_features(x[0], peaks, FS),
             "beats": rhythm.sequences(rhythm.features(x[0], peaks, FS), np.arange(1, len(peaks) + 1)),
             "age": np.full((len(peaks), 1), 63, np.int8), "sex": np.full((len(peaks), 1), 2, np.int8)}
    logits = reference.run(graph, whole)[:len(found)]
    np.testing.assert_array_equal(found["sample"], peaks[:len(found)])
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["unreliable"], peaks[:len(found)] < frontend.SETTLE_S * FS)
    reliable = found["unreliable"] == 0
    np.testing.assert_array_equal(found["top"][reliable], score.decide(logits[reliable], np.ones(reliable.sum(), int),
                                                                       "argmax", m.decision.offsets))
    assert len(peaks) - 2 <= len(found) and len(np.unique(logits, axis=0)) > 10


@pytest.mark.parametrize("model", (hop_model, beat_model), ids=("hop", "beat"))
def test_any_chunks_of_microvolts_give_the_same_decisions(model, objects, tmp_path):
    m, graph = model()
    c = compiled(graph, objects, tmp_path, m, 360)
    uv = patient(360, 20, m.waveform.shape[0])
    once = c.decide(uv)
    c.reset()
    cuts = [0, *np.sort(np.random.default_rng(1).integers(0, uv.shape[1], 400)).tolist(), uv.shape[1]]
    parts = [c.decide(uv[:, a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), once)


@pytest.mark.parametrize("model, fs_in", itertools.product((hop_model, beat_model), (250, 360, 1000)))
def test_ram_is_known_before_anything_is_compiled(model, fs_in, objects, tmp_path):
    m, graph = model()
    source = c_model.generate(graph, m, CORES[0], fs_in=fs_in)
    assert source.ram == compiled(graph, objects, tmp_path, m, fs_in).memory
    assert f"#define MODEL_RAM {source.ram} " in c_model.generate(graph, m, CORES[0], fs_in=fs_in).header


def test_generated_c_holds_no_arithmetic():
    m, graph = hop_model()
    code = c_model.generate(graph, m, CORES[0]).code
    body = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("/*", "#include")))
    assert "{\n" in body and not any(word in body for word in ("return", "for (", "while", " * ", ";;", "malloc"))


def test_a_layer_that_needs_the_whole_signal_cannot_stream():
    b = make.Builder(0, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 3)
    x = b.slice(b.attention(x, x, x, 2, "global"), 2, 4, 60)
    boundary = b.nodes[-1].name
    graph = b.graph(b.classifier(b.reduce("mean", x), 2), boundary)
    with pytest.raises(GraphError, match="needs the whole signal"):
        c_model.generate(graph, None, CORES[0], hop=8)


def test_a_front_end_that_is_no_front_end_is_refused():
    m, graph = hop_model(frontend={"uv_per_lsb": 16})
    with pytest.raises(ManifestError):
        c_model.generate(graph, m, CORES[0])


def test_a_rate_without_a_simple_ratio_is_refused():
    with pytest.raises(UserError):
        front_data.rate(250.0137, 500)


def test_the_manifest_of_these_tests_is_a_manifest():
    for m, _ in (hop_model(), beat_model()):
        assert manifests.loads(manifests.dumps(m)) == m
