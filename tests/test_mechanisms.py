# SPDX-License-Identifier: Apache-2.0
"""What makes each architecture itself is still there in the integer graph, and nowhere in its plain presets."""


import itertools

import pytest

pytest.importorskip("torch")

from tests import frozen
from train.models import ARCHS

EDGE = [(arch, preset) for arch in ARCHS for preset in ("small", "tiny")]


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
    found = frozen.freeze(arch, preset, "cinc2017", 2 if preset == "tiny" else 1)
    assert MECHANISMS[arch](found.graph)
    assert all(a.dtype.kind in "iu" for n in found.graph.nodes for k, a in n.params.items() if k != "weight_scale")
    assert found.graph.weight_bytes <= found.budget
    assert found.agreement["worst"] <= 1 and found.agreement["share"] < 3e-3


@pytest.mark.parametrize("arch", ARCHS)
def test_a_plain_preset_has_no_mechanism_left(arch):
    graph = frozen.freeze(arch, "tiny-plain", "cinc2017", 1).graph
    assert not MECHANISMS[arch](graph)
    assert not attentions(graph) and not any(n.kind == "lstm" for n in graph.nodes)


def test_every_architecture_has_its_mechanism_named_here():
    assert set(MECHANISMS) == set(ARCHS)
