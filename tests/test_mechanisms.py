# SPDX-License-Identifier: Apache-2.0
"""What makes each architecture itself is still there in the integer graph, and nowhere in its plain presets."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compress import agree
from compress.program import Program, tensors
from train.models import ARCHS, build
from train.sides import SIDES

EDGE = [(arch, preset) for arch in ARCHS for preset in ("small", "tiny")]


def frozen(arch, preset, leads=1):
    """(converted program, integer graph, inputs) of an untrained network."""
    torch.manual_seed(3)
    net = build(arch, preset, "cinc2017", leads, 4)
    rng = np.random.default_rng(3)
    codes = {"ecg": rng.normal(0, 40, (4, leads, net.geometry.window)).clip(-128, 127).astype(np.int8)}
    codes |= {name: rng.integers(-40, 40, (4, *SIDES[name].shape)).astype(np.int8) for name in net.sides}
    scales = {"ecg": 0.016} | {name: SIDES[name].one for name in net.sides}
    ecg, *sides = tensors(codes, scales)
    for _ in range(20):
        net.train()(ecg[:, None], *sides)       # lived-in BatchNorm statistics
    net.eval()
    program = Program(net, {k: v.shape[1:] for k, v in codes.items()}, scales, net.geometry.streaming)
    program.calibrate([tensors(codes, scales)])
    return *program.convert(), codes


def attentions(graph):
    """(node, queries, keys, leads) of every attention node."""
    return [(n, graph.tensors[n.inputs[0]].shape[2], graph.tensors[n.inputs[1]].shape[2],
             graph.tensors[n.inputs[0]].shape[1]) for n in graph.nodes if n.kind == "attention"]


def writers(graph):
    """tensor -> the node that writes it."""
    return {n.output: n for n in graph.nodes}


def behind(graph, tensor):
    """Every node that a tensor depends on."""
    by, seen, todo = writers(graph), [], [tensor]
    while todo:
        node = by.get(todo.pop())
        if node is not None and node not in seen:
            seen.append(node)
            todo += node.inputs
    return seen


def local_lead(graph):
    """One map for all leads, in a band and then over everything."""
    found = attentions(graph)
    kinds = {n.attrs["window"] for n, *_ in found}
    return kinds == {"band", "global"} and all(leads == graph.tensors["ecg"].shape[0] for *_, leads in found)


def lga(graph):
    """Queries averaged over neighbouring steps, half as many as the global keys and values."""
    found = [(n, q, k) for n, q, k, _ in attentions(graph)]
    averaged = all(any(w.kind == "meanpool" for w in behind(graph, n.inputs[0])) and q == k // 2 for n, q, k in found)
    return bool(found) and averaged and all(n.attrs["window"] == "global" for n, *_ in found)


def nat(graph):
    """Neighbourhoods with a relative bias at two resolutions or more."""
    found = attentions(graph)
    lengths = {q for _, q, _, _ in found}
    return len(lengths) >= 2 and all(n.attrs["window"] == "neighbourhood" and "bias" in n.params for n, *_ in found)


def efficient(graph):
    """Inverted bottlenecks; R and P codes of an LSTM, age and sex as the four queries of one cross-attention."""
    by = writers(graph)
    wide = any(n.kind == "conv1d" and n.attrs["groups"] > 1 and by[n.inputs[0]].kind == "conv1d"
               and by[n.inputs[0]].params["weight"].shape[0] > by[n.inputs[0]].params["weight"].shape[1]
               for n in graph.nodes if n.inputs and n.inputs[0] in by)
    fusion = [n for n, q, k, _ in attentions(graph) if q == 4 and k > 4]
    if len(fusion) != 1 or not wide:
        return False
    kinds = [n.kind for n in behind(graph, fusion[0].inputs[0])]
    sides = {name for n in behind(graph, fusion[0].inputs[0]) for name in n.inputs if name in graph.inputs}
    return kinds.count("lstm") == 2 and kinds.count("lookup") == 2 and {"beats", "age", "sex"} <= sides


def hierarchical(graph):
    """Three stages of differential attention over ever fewer tokens, each asked by the CLS of the one before."""
    found = attentions(graph)
    pairs = [n for n, *_ in found if len(n.inputs) == 5]
    keys = [k for _, _, k, _ in found]
    relayed = all(a in behind(graph, b.inputs[0]) for a, b in itertools.pairwise(pairs))
    return len(pairs) == 3 == len(set(keys)) and keys == sorted(keys, reverse=True) and relayed and all(
        q == 1 for _, q, _, _ in found)


MECHANISMS = {"local-lead": local_lead, "lga": lga, "nat": nat, "efficient": efficient, "hierarchical": hierarchical}


@pytest.mark.parametrize("arch,preset", EDGE)
def test_an_edge_preset_keeps_its_mechanism_in_integers(arch, preset):
    converted, graph, codes = frozen(arch, preset, leads=2 if preset == "tiny" else 1)
    assert MECHANISMS[arch](graph)
    assert all(a.dtype.kind in "iu" for n in graph.nodes for k, a in n.params.items() if k != "weight_scale")
    seen = agree.summary(agree.compare(converted, graph, codes))
    assert seen["worst"] <= 1 and seen["share"] < 3e-3


@pytest.mark.parametrize("arch", ARCHS)
def test_a_plain_preset_has_no_mechanism_left(arch):
    _, graph, _ = frozen(arch, "tiny-plain")
    assert not MECHANISMS[arch](graph)
    assert not attentions(graph) and not any(n.kind == "lstm" for n in graph.nodes)


def test_every_architecture_has_its_mechanism_named_here():
    assert set(MECHANISMS) == set(ARCHS)
