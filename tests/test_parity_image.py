# SPDX-License-Identifier: Apache-2.0
"""On every emulated core the generated C computes the bits of the reference: windows and streams, many models."""

import dataclasses
import functools
import os
from importlib.util import find_spec

import numpy as np
import pytest

from compress import reference
from targets import emulate, parity_image, toolchain
from targets.parity_image import Case
from tests import graphs as make
from tests.test_plan import KINDS, random_graph
from train import frontend
from train import manifest as manifests
from train.say import UserError
from train.sides import SIDES

RANDOM = int(os.environ.get("LEADEDGE_GRAPHS", "24"))       # random graphs of each kind on each core


def need(core: str) -> None:
    """Skip in the tool's words."""
    for absent in (toolchain.missing(core), emulate.missing()):
        if absent:
            pytest.skip(absent)


def window_case(name: str, graph, windows: int = 3, seed: int = 1) -> Case:
    """A few random windows."""
    inputs = make.inputs_of(graph, windows, seed)
    return Case(name, graph, inputs, reference.run(graph, inputs))


def stream_case(name: str, graph, hop: int, hops: int = 4, seed: int = 3) -> Case:
    """The same, and a record that decides `hops` times."""
    manifest = make.manifest_of(graph, "0" * 64)
    inputs = tuple(manifests.Input(i.name, SIDES[i.name].kind, i.shape, SIDES[i.name].unit, SIDES[i.name].lsb)
                   if i.name in SIDES else i for i in manifest.inputs)
    manifest = dataclasses.replace(manifest, streaming=True, frontend=frontend.design(250), inputs=inputs,
                                   trigger=manifests.Trigger("hop", hop=hop))
    name_of, *others = graph.inputs
    leads, window = graph.tensors[name_of].shape
    rng = np.random.default_rng(seed)
    record = {name_of: rng.integers(-128, 128, (leads, window + (hops - 1) * hop)).astype(np.int8)}
    record |= {t: rng.integers(-100, 100, (hops, *graph.tensors[t].shape)).astype(np.int8) for t in others}
    return dataclasses.replace(window_case(name, graph, 2), manifest=manifest, record=record,
                               decisions=reference.stream(graph, record, hop))


@functools.lru_cache
def kinds() -> list[Case]:
    """Every kind of node and every window of attention, as windows and as streams."""
    found = [window_case(name, build()) for name, build in KINDS.items()]
    for window, size in (("band", 3), ("block", 4), ("neighbourhood", 5)):
        for leads in (1, 2):
            graph = make.streaming(seed=size, leads=leads, window=window, size=size)
            found.append(stream_case(f"{window} of {leads}", graph, 16))
    return [*found, *(stream_case(f"a hop of {hop}", make.streaming(seed=6, window="block", size=4), hop)
                      for hop in (128, 176))]           # of a window of 160


@functools.lru_cache
def randoms() -> list[Case]:
    """Random graphs."""
    return [window_case(f"seed {seed}", random_graph(seed), 2, seed) for seed in range(RANDOM)]


@functools.lru_cache
def networks() -> list[Case]:
    """The shipped architectures with random weights, at one lead, as they stream; none without torch."""
    if find_spec("torch") is None or find_spec("torchao") is None:
        return []
    from bench import memory
    from train.models import ARCHS
    found = []
    for arch in ARCHS:
        for preset in memory.PRESETS:
            net, graph = memory.untrained(arch, preset)
            streams = graph.boundary is not None
            found.append(stream_case(f"{arch} {preset}", graph, net.geometry.hop, 3) if streams
                         else window_case(f"{arch} {preset}", graph, 2))
    return found


def equal(core: str, cases: list[Case], folder, using: str | None = None) -> parity_image.Outcome:
    """All bits are those of the reference."""
    need(core)
    outcome = parity_image.check(core, cases, folder, using)
    assert outcome.wrong == []
    assert outcome.compared == sum(len(c.expected) + (0 if c.record is None else len(c.decisions)) for c in cases)
    assert outcome.models == len(cases)
    return outcome


@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_every_kind_of_node_random_graphs_and_every_architecture_have_the_reference_s_bits(core, tmp_path):
    assert equal(core, [*kinds(), *randoms(), *networks()], tmp_path).stack < 2048


def test_the_other_compiler_makes_the_same_bits(tmp_path):
    for core in ("m4", "m55"):
        need(core)
        if len(toolchain.available(core)) < 2:
            pytest.skip("one compiler is not enough to compare two")
        equal(core, kinds(), tmp_path / core, toolchain.available(core)[1])


def test_one_wrong_bit_is_found_and_named(tmp_path):
    need("m3")
    cases = kinds()[:3]
    wrong = cases[1].expected.copy()
    wrong[2, 0] ^= 1
    cases[1] = dataclasses.replace(cases[1], expected=wrong)
    outcome = parity_image.check("m3", cases, tmp_path)
    expected, got = (" ".join(map(str, x)) for x in (wrong[2], kinds()[1].expected[2]))
    assert outcome.wrong == [f"{cases[1].name}: window 2: {expected} / {got}"]


def test_one_wrong_decision_is_found_and_named(tmp_path):
    need("m3")
    case = next(c for c in kinds() if c.record is not None)
    wrong = case.decisions.copy()
    wrong[1, 2] ^= 1
    short = dataclasses.replace(case, decisions=case.decisions[:-1])
    outcome = parity_image.check("m3", [dataclasses.replace(case, decisions=wrong), short], tmp_path)
    assert [w.split(" / ")[0].rsplit(":", 1)[0] for w in outcome.wrong] == [
        f"{case.name}: decision 1", f"{case.name}: decisions"]


def test_models_that_do_not_fit_together_come_in_several_images(tmp_path):
    need("m3")
    heavy = window_case("heavy", make.every_kind(), 1)
    assert len(parity_image.parts("m3", [heavy] * 5)) == 1
    assert len(parity_image.parts("m3", [heavy] * 3000)) > 1
    assert sum(map(len, parity_image.parts("m3", [heavy] * 3000))) == 3000


def test_an_image_that_cannot_read_its_jobs_says_so(tmp_path):
    need("m3")
    elf = parity_image.build("m3", kinds()[:1], tmp_path)
    on = emulate.machine("m3")
    assert "cannot be opened" in emulate.run(elf, on, words="/not/there").text
    (tmp_path / "cut.bin").write_bytes(b"\0" * 7)
    assert "ends early" in emulate.run(elf, on, words=str(tmp_path / "cut.bin")).text


def test_an_image_that_ends_badly_is_an_error(tmp_path, monkeypatch):
    need("m3")
    monkeypatch.setattr(parity_image, "feed", lambda cases, path: path.write_bytes(b"") and [])
    with pytest.raises(UserError, match="ends early"):
        parity_image.check("m3", kinds()[:1], tmp_path)
