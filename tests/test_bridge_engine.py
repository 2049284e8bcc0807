# SPDX-License-Identifier: Apache-2.0
"""The bridge's engine around a runtime decides what the generated C decides, bit for bit, when the runtime is exact."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import graphs as make
import numpy as np
import pytest
from test_engine import FS, beat_model, hop_model, objects, patient  # noqa: F401

from compress import reference
from firmware_bridge.beats import Beats
from firmware_bridge.engine import Engine
from targets import toolchain, twin
from train import frontend, rhythm, rpeak, sides, template
from train.manifest import Decision, Input, Trigger

pytestmark = pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))


@functools.cache
def rhythm_model() -> tuple:
    """(manifest, graph) of hops that look at the sequence of beats, age and sex as well."""
    kinds = {name: sides.SIDES[name] for name in ("beats", "age", "sex")}
    b = make.Builder(4, {"ecg": (1, 500), **{name: side.shape for name, side in kinds.items()}})
    x = b.conv(b.reshape("ecg", "channel"), 8, 7, stride=4)
    x = b.slice(x, 2, 10, 110)
    boundary = b.nodes[-1].name
    parts = [b.reduce("mean", x), b.reduce("max", x), b.lstm("beats", 6), b.lookup("age", 9, 4, -1),
             b.lookup("sex", 3, 2, 0)]
    graph = b.graph(b.classifier(b.concat(parts), 3), boundary)
    inputs = (Input("ecg", "waveform", (1, 500), "uV", 16.0, ("I",)),
              *(Input(name, side.kind, side.shape, side.unit, side.lsb) for name, side in kinds.items()))
    return replace(make.manifest_of(make.every_kind(), "0" * 64), inputs=inputs, window=500, streaming=True,
                   trigger=Trigger("hop", hop=100), decision=Decision("argmax", (0, 90, -80), 1 << 12, 3)), graph


def early(model) -> tuple:
    """A model of beats that asks for none behind."""
    m, graph = model()
    return replace(m, trigger=replace(m.trigger, beats_after=0)), graph


def thresholds(model) -> tuple:
    """Several classes at once, summed over all windows."""
    m, graph = model()
    return replace(m, decision=Decision("threshold", (500, -1000, 2000), 1 << 12, 0), multi_label=True), graph


MODELS = {"hop": hop_model, "hop, two leads": lambda: hop_model(leads=2), "rhythm": rhythm_model, "beat": beat_model,
          "beat, none behind": lambda: early(beat_model), "thresholds": lambda: thresholds(hop_model)}


def pair(name, objects, folder, fs_in):    # noqa: F811
    """(Engine, Twin) of a model."""
    m, graph = MODELS[name]()

    def exact(inputs):
        return reference.run(graph, {k: v[None] for k, v in inputs.items()})[0]
    library = twin.build(graph, m, folder, objects=objects)
    both = Engine(m, exact, fs_in), twin.Twin(library, graph, fs_in, m.fs)
    for one in both:
        one.patient(63, 2)
    return both, patient(fs_in, 24, len(m.waveform.leads))


def same(a, b):
    """Every field of every decision."""
    assert len(a) == len(b)
    for name in a.dtype.names:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("fs_in", (250, 360))
@pytest.mark.parametrize("name", MODELS)
def test_every_decision_has_the_bits_of_the_generated_c(name, fs_in, objects, tmp_path):    # noqa: F811
    (engine, c), uv = pair(name, objects, tmp_path, fs_in)
    found = engine.decide(uv)
    same(found, c.decide(uv))
    assert len(found) > 10 and len(np.unique(found["logits"], axis=0)) > 10


@pytest.mark.parametrize("name", MODELS)
def test_bad_stretches_and_new_records_are_treated_as_by_the_generated_c(name, objects, tmp_path):    # noqa: F811
    (engine, c), uv = pair(name, objects, tmp_path, 250)
    rng, parts = np.random.default_rng(5), []
    cuts = [0, *np.sort(rng.integers(0, uv.shape[1], 30)).tolist(), uv.shape[1]]
    for k, (a, b) in enumerate(itertools.pairwise(cuts)):
        for one in (engine, c):
            if k in (9, 10, 17):
                one.bad()
            if k == 22:
                one.reset()
        found, expected = engine.decide(uv[:, a:b]), c.decide(uv[:, a:b])
        same(found, expected)
        parts.append(found)
    reliable = np.concatenate(parts)["unreliable"] == 0
    assert 0 < reliable.mean() < 1


def test_a_beat_that_nothing_follows_is_decided_after_ten_seconds(objects, tmp_path):    # noqa: F811
    (engine, c), uv = pair("beat", objects, tmp_path, 250)
    silent = np.concatenate([uv[:, :2500], np.zeros((2, 4000), np.int32), uv[:, :2500]], 1)
    found = engine.decide(silent)
    same(found, c.decide(silent))
    assert np.diff(found["sample"].astype(int)).max() > 10 * FS


@pytest.mark.parametrize("size", (5, 100))
def test_features_of_beats_are_those_of_the_whole_record(size):
    x = frontend.filter_record(frontend.design(FS), patient(250, 120, 1), 250)[0]
    beats, rows = Beats(FS, after=1, sequences=True), []
    for at in range(0, len(x), size * 10):
        rows += beats.push(x[at:at + size * 10])
    peaks = rpeak.detect(x, FS)[:len(rows)]
    whole = rpeak.detect(x, FS)
    np.testing.assert_array_equal([r.r for r in rows], peaks)
    np.testing.assert_array_equal([r.rr for r in rows], template.beat_features(x, whole, FS)[:len(rows)])
    np.testing.assert_array_equal(
        [r.beats for r in rows], rhythm.sequences(rhythm.features(x, whole, FS), np.arange(1, len(rows) + 1)))
    assert len(rows) > 100 and len(beats.x) < 8 * FS + size * 10
