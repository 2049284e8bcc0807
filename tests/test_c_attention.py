# SPDX-License-Identifier: Apache-2.0
"""Attention in C gives the codes of the reference: every window, mask, pair, in place, and as an endless signal."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import reference
from compress.graph import Graph, Node, Tensor, check
from compress.reference_attention import attention, exp_table, finished
from targets import pack
from targets.stream import first_needed
from tests import cimage, ckernels, graphs

CORES = ("host", "m4")      # the plain kernel, and the DSP one by its portable twin
SOURCES = ("attention.c", "attention_dsp.c", "attention_dsp_loops.c", "attention_mve.c")


def kernels():
    return ckernels.build(*SOURCES)


@st.composite
def shapes(draw) -> dict:
    """The form of an attention node: window, size, queries, keys, heads, channels, leads, bias, pair."""
    window = draw(st.sampled_from(["global", "band", "block", "neighbourhood"]))
    keys = draw(st.integers(1, 40))
    size = 0 if window == "global" else draw(st.integers(window != "band", min(keys, 12)))
    pair = draw(st.booleans()) and window != "neighbourhood"
    return {"window": window, "size": size, "keys": keys,
            "queries": draw(st.integers(1, 12)) if window == "global" and draw(st.booleans()) else keys,
            "heads": draw(st.integers(1, 3)), "d": draw(st.integers(1, 9)), "dv": draw(st.integers(1, 9)),
            "leads": draw(st.sampled_from([1, 1, 2, 3])), "pair": pair,
            "bias": window == "neighbourhood" and draw(st.booleans()), "seed": draw(st.integers(0, 99))}


def node_of(form: dict) -> Graph:
    """A graph of one attention node with random multipliers, some of which saturate the table or the output."""
    rng = np.random.default_rng(form["seed"])
    heads, d, dv, leads, size = (form[k] for k in ("heads", "d", "dv", "leads", "size"))
    names = ["q", "k", "v"] + (["q2", "k2"] if form["pair"] else [])
    time = {"q": form["queries"], "q2": form["queries"]}
    tensors = {t: Tensor((heads * (dv if t == "v" else d), leads, time.get(t, form["keys"])), 0.02) for t in names}
    tensors["y"] = Tensor((heads * dv, leads, form["queries"]), 0.02)
    spread = 4000 * np.sqrt(d * leads)          # of a score of codes that are spread evenly
    attrs = {"heads": heads, "window": form["window"], "size": size, "export_scales": {}}
    for which in ("", "2") if form["pair"] else ("",):
        real = 128 / spread * 10 ** rng.uniform(-1.5, 1)        # from even rows to one key that takes it all
        shift = int(rng.integers(0, 4))
        attrs["score_mul" + which] = int(real * 2.0 ** (32 - shift))
        attrs["score_shift" + which] = shift
        attrs["out_mul" + which] = int(rng.uniform(-1 if which else 0.1, 3) * 2 ** 24)
    params = {"table": exp_table()}
    if form["bias"]:
        params["bias"] = rng.integers(-spread, spread, (heads, 2 * size - 1)).astype(np.int32)
    graph = Graph(names, "y", tensors, [Node("attention", "attention", names, "y", attrs, params)])
    check(graph)
    return graph


def codes_of(graph: Graph, seed: int) -> list[np.ndarray]:
    """Inputs of every kind of code: even, loud with saturation, or all at one end."""
    rng = np.random.default_rng(seed)
    found = []
    for t in graph.inputs:
        x = rng.normal(0, rng.choice([20, 60, 200]), graph.tensors[t].shape)
        found.append(np.clip(np.rint(x), -128, 127).astype(np.int8))
    if seed % 7 == 0:
        found = [np.full_like(x, -128) for x in found]
    return found


def expected(graph: Graph, inputs: list[np.ndarray]) -> np.ndarray:
    return reference.run(graph, {t: x[None] for t, x in zip(graph.inputs, inputs, strict=True)})[0]


@pytest.mark.parametrize("core", CORES)
@settings(max_examples=150, deadline=None)
@given(form=shapes(), pad=st.integers(0, 3), offset=st.integers(0, 3))
def test_attention_of_any_form_equals_the_reference(core, form, pad, offset):
    graph = node_of(form)
    inputs = codes_of(graph, form["seed"])
    want = expected(graph, inputs)
    layer = pack.layer(graph, graph.nodes[0], pack.CORES[core])
    got = ckernels.call(kernels(), layer, inputs, want.shape, pad_pitch=pad, offset=offset)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("core", CORES)
@settings(max_examples=60, deadline=None)
@given(form=shapes())
def test_attention_writes_over_its_queries(core, form):
    form["dv"] = form["d"]
    graph = node_of(form)
    inputs = codes_of(graph, form["seed"])
    want = expected(graph, inputs)
    layer = pack.layer(graph, graph.nodes[0], pack.CORES[core])
    np.testing.assert_array_equal(ckernels.call(kernels(), layer, inputs, want.shape, in_place=0), want)


@pytest.mark.parametrize("core", CORES)
@settings(max_examples=80, deadline=None)
@given(form=shapes().filter(lambda f: f["window"] != "global"), data=st.data())
def test_columns_of_an_endless_signal_come_out_in_any_split(core, form, data):
    """Each call sees no more of the past than a stream keeps."""
    graph = node_of(form)
    node, inputs = graph.nodes[0], codes_of(graph, form["seed"])
    want = attention(node, [x[None] for x in inputs], endless=True)[0]
    layer = pack.layer(graph, node, pack.CORES[core])
    done = have = 0
    while have < form["keys"]:
        have = data.draw(st.integers(have + 1, form["keys"]), label="columns that have arrived")
        until = finished(node, have)
        if until <= done:
            continue
        firsts = [max(first_needed(node, place, done), 0) for place in range(len(inputs))]
        views = [x[..., first:have] for x, first in zip(inputs, firsts, strict=True)]
        got = ckernels.call(kernels(), layer, views, (*want.shape[:2], until - done), first=firsts, out_first=done)
        np.testing.assert_array_equal(got, want[..., done:until])
        done = until
    assert done == want.shape[-1]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("form", graphs.FORMS)
def test_trained_like_forms_equal_the_reference(core, form):
    graph = graphs.attending(**graphs.FORMS[form])
    node = next(n for n in graph.nodes if n.kind == "attention")
    values = reference.run(graph, graphs.inputs_of(graph, 1), trace=True)
    layer = pack.layer(graph, node, pack.CORES[core])
    want = values[node.output][0]
    got = ckernels.call(kernels(), layer, [values[t][0] for t in node.inputs], want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("core", CORES)
def test_the_longest_row_of_the_loudest_codes_fits_its_sums(core):
    """1023 equal keys at -128: every weight is 2^14."""
    form = {"window": "global", "size": 0, "keys": 1023, "queries": 3, "heads": 1, "d": 2, "dv": 3, "leads": 1,
            "pair": False, "bias": False, "seed": 0}
    graph = node_of(form)
    inputs = [np.full(graph.tensors[t].shape, -128, np.int8) for t in graph.inputs]
    layer = pack.layer(graph, graph.nodes[0], pack.CORES[core])
    want = expected(graph, inputs)
    np.testing.assert_array_equal(ckernels.call(kernels(), layer, inputs, want.shape), want)


def test_the_arithmetic_behind_the_sums_is_exact(tmp_path):
    """The reciprocal of all sums of one to 1023 weights of 14 bits, and products of 16 bits, against 64 bits."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "all.c").write_text("""
        #include <stdio.h>
        #include "ecg_attention.h"
        int main(void)
        {
            const int32_t most = (1023 << 14) * 128;
            uint32_t seed = 1;
            long wrong = 0;
            for (int32_t sum = 1 << 14; sum <= 1023 << 14; sum++) {
                wrong += ecg_attention_reciprocal(sum) != ((uint64_t)1 << 40) / (uint64_t)sum;
                seed = seed * 1664525 + 1013904223;
                int32_t x = (int32_t)(seed % (uint32_t)(most + 1)), y = (int32_t)((seed ^ seed << 15) >> 2 >> sum % 20);
                x = sum % 101 ? x : most;
                y = sum % 103 ? y : (1 << 30) - 1;
                x = sum & 1 ? x : -x;
                y = sum & 2 ? y : -y;
                wrong += ecg_attention_high_short(x, y) != (int32_t)(((int64_t)x * y) >> 32);
            }
            printf("%ld", wrong);
            return 0;
        }""")
    program = tmp_path / "all"
    subprocess.run(["gcc", "-O2", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{ckernels.C}",
                    tmp_path / "all.c", "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "0"


def random_forms(count: int) -> list[dict]:
    """Forms of all windows in turn, every other one of odd sizes."""
    rng = np.random.default_rng(count)
    found = []
    for i in range(count):
        window, keys = ("global", "band", "block", "neighbourhood")[i % 4], int(rng.integers(1, 38))
        size = 0 if window == "global" else int(rng.integers(window != "band", min(keys, 12) + 1))
        found.append({"window": window, "size": size, "keys": keys,
                      "queries": int(rng.integers(1, 12)) if window == "global" and i % 8 else keys,
                      "heads": int(rng.integers(1, 4)), "d": int(rng.integers(1, 9)), "dv": int(rng.integers(1, 9)),
                      "leads": int(rng.integers(1, 3)), "pair": window != "neighbourhood" and bool(i // 4 % 2),
                      "bias": window == "neighbourhood" and bool(i // 4 % 2), "seed": i})
    return found


def image_case(form: dict, core: str, gap: int = 0) -> cimage.Case:
    graph = node_of(form)
    inputs = codes_of(graph, form["seed"])
    return cimage.Case(str(form["seed"]), pack.layer(graph, graph.nodes[0], pack.CORES[core]), inputs,
                       expected(graph, inputs), gap)


@pytest.mark.parametrize(("core", "using"), [("m4", "gcc"), ("m4", "zig"), ("m33", "gcc"), ("m0plus", "gcc"),
                                             ("m3", "zig"), ("m55", "zig"), ("m55", "gcc")])
def test_an_emulated_core_computes_the_codes_of_the_reference(core, using):
    cases = [image_case(form, core, gap=i % 4) for i, form in enumerate(random_forms(48))]
    cimage.check(core, list(SOURCES), cases, using)


def test_a_block_of_25_keys_takes_the_instructions_of_a_good_kernel():
    """Cortex-M4: at most 1.7 for each product of both kinds, at most 26 for each weight of the softmax."""
    form = {"window": "block", "size": 25, "keys": 125, "queries": 125, "heads": 4, "d": 16, "dv": 16, "leads": 1,
            "pair": False, "bias": False, "seed": 3}
    case = image_case(form, "m4")
    counted = cimage.check("m4", list(SOURCES), [case], "gcc")[case.name]
    softmax = counted.functions["soften"]
    assert softmax <= 26 * 500 * 25
    assert counted.total - softmax <= 1.7 * 500 * 25 * 32
