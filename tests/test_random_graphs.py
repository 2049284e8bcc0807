# SPDX-License-Identifier: Apache-2.0
"""Sixty random graphs in generated C have the reference's bits, packed for every core; what a thousand of them hold."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bench import parity_random
from compress import reference
from compress.graph import KINDS, WINDOWS
from targets import pack, toolchain, twin
from tests import graphs as make
from tests import many
from tests.random_graphs import LEAST_NODES, MOST_NODES, random_graph, residual
from train import say

COUNT, WINDOWS_EACH = 60, 4
# every way to pack that has portable C; the M7 and M33 are packed as the M4, vectors of the M55 run in the emulator
CORES = [*(pack.CORES[name] for name in ("host", "m0plus", "m3", "m4")), replace(pack.CORES["m4"], name="m4 wide",
                                                                               wide=True)]


@functools.lru_cache
def fixed() -> list:
    """(graph, inputs, logits) of the seeds from 0 on."""
    cases = []
    for seed in range(COUNT):
        graph = random_graph(seed)
        inputs = make.inputs_of(graph, WINDOWS_EACH, seed)
        cases.append((graph, inputs, reference.run(graph, inputs)))
    return cases


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Compiled kernels, once for all cores."""
    if toolchain.missing("host"):
        pytest.skip(toolchain.missing("host"))
    return twin.Objects(tmp_path_factory.mktemp("objects"), tuple("-O1" if f == "-O3" else f for f in twin.FLAGS))


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
def test_random_graphs_packed_for_a_core_have_the_reference_s_bits(core, objects, tmp_path):
    library = many.build([graph for graph, *_ in fixed()], core, tmp_path, objects)
    wrong = [seed for seed, (_, inputs, expected) in enumerate(fixed())
             if not np.array_equal(library.run(seed, inputs), expected)]
    assert not wrong


def test_the_fixed_graphs_say_something():
    """Codes differ between windows in most graphs, and some outputs of nodes saturate while others do not."""
    moving, full = 0, Counter()
    for graph, inputs, logits in fixed():
        moving += len(np.unique(logits, axis=0)) > 1
        trace = reference.run(graph, inputs, trace=True)
        for n in graph.nodes:
            full[n.kind] += np.isin(trace[n.output], (-128, 127)).mean() > 0.05
    assert moving > 0.7 * COUNT
    assert min(full[kind] for kind in ("conv1d", "add", "attention", "norm")) >= 3, full


def test_a_thousand_graphs_have_every_kind_and_every_awkward_shape():
    seen, windows, features, nodes = Counter(), Counter(), Counter(), Counter()
    for seed in range(1000):
        graph = random_graph(seed)
        shapes = [t.shape for t in graph.tensors.values() if len(t.shape) == 3]
        attention = [n for n in graph.nodes if n.kind == "attention"]
        nodes[len(graph.nodes) - 1] += 1        # without the reshape of the input
        seen.update(n.kind for n in graph.nodes)
        windows.update(n.attrs["window"] for n in attention)
        features.update({
            "residual": residual(graph), "attention": bool(attention),
            "pair": any(len(n.inputs) == 5 for n in attention), "bias": any("bias" in n.params for n in attention),
            "queries of their own": any(graph.tensors[n.output].shape[2] != graph.tensors[n.inputs[1]].shape[2]
                                        for n in attention),
            "odd channels": any(c % 2 and c > 1 for c, _, _ in shapes), "one column": any(t == 1 for *_, t in shapes),
            "leads": any(leads > 1 for _, leads, _ in shapes), "side input": len(graph.inputs) > 1,
            "kernel beyond the signal": any(
                n.kind in ("conv1d", "maxpool", "meanpool") and graph.tensors[n.inputs[0]].shape[2] <
                (n.params["weight"].shape[2] if n.kind == "conv1d" else n.attrs["kernel"]) for n in graph.nodes),
            "repeated operand": any(n.kind in ("add", "mul") and graph.tensors[n.inputs[0]].shape !=
                                    graph.tensors[n.inputs[1]].shape for n in graph.nodes)})
    assert min(nodes) == LEAST_NODES and max(nodes) == MOST_NODES
    assert set(seen) == set(KINDS) and min(seen.values()) >= 20, seen
    assert set(windows) == set(WINDOWS) and min(windows.values()) >= 20, windows
    assert features["residual"] >= 400 and features["attention"] >= 400, features
    assert min(features.values()) >= 20, features


@pytest.mark.parametrize("wrong", [[], ["seed 1"]])
def test_the_bench_counts_graphs_and_fails_with_those_that_differ(wrong, monkeypatch, capsys):
    if toolchain.missing("host"):
        pytest.skip(toolchain.missing("host"))
    monkeypatch.setattr(parity_random, "on_host", lambda cases, folder: wrong)
    code = say.run(parity_random.main, parity_random.parser(), ["--count", "3", "--windows", "2", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == bool(wrong)
    if wrong:
        assert "seed 1" in said["error"]["what"]
    else:
        assert said["graphs"] == 3 and said["windows"] == 6 and sum(said["nodes"].values()) >= 3 * LEAST_NODES
