# SPDX-License-Identifier: Apache-2.0
"""bench/kernels.py counts single layers, right to the bit, and the committed figures are those of today's kernels."""

import json

import pytest

from bench import kernels
from compress import graph as graphs
from targets import emulate, toolchain
from train import say


def need(core: str) -> None:
    for absent in (toolchain.missing(core), emulate.missing()):
        if absent:
            pytest.skip(absent)


def measured(core: str, capsys) -> list[dict]:
    """The rows of --json."""
    need(core)
    assert say.run(kernels.main, kernels.parser(), ["--core", core, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_the_shapes_have_the_work_that_the_peers_were_counted_on():
    macs = {name: graphs.macs(g) for name, g in kernels.graphs().items()}
    assert (macs["conv"], macs["depthwise"]) == (300_000, 140_000)
    assert (macs["pointwise"], macs["tokens"], macs["dense"]) == (1_280_000, 512_000, 4096)
    assert 5 * macs["attention"] == kernels.PRODUCTS == 400_000
    assert macs["deep q"] - macs["attention"] == macs["deep v"] - macs["attention"] == macs["attention"] // 2


@pytest.mark.parametrize("core", ["m0plus", "m4", "m55"])
def test_every_layer_needs_fewer_instructions_than_the_best_peer(core, capsys):
    rows = measured(core, capsys)
    assert {r["shape"] for r in rows} == set(kernels.SHAPES)
    assert all(r["each"] < r["cmsis_nn"] and r["cmsis_nn_over_this"] > 1 for r in rows)
    assert {r["weight_bits"] for r in rows} == ({8, 16} if core == "m4" else {8})
    assert all(100 < r["code_bytes"] < 12_000 for r in rows)
    softmax, products = (next(r for r in rows if r["shape"] == s) for s in ("softmax", "products"))
    assert softmax["instructions"] > 0 and products["instructions"] > 0


def test_attention_splits_into_parts_that_sum_up():
    found = {"attention": {"instructions": 100, "functions": {"soften": 40}}, "deep q": {"instructions": 130},
             "deep v": {"instructions": 120}}
    assert kernels.attention_parts(found) == (40, 60)
    found["attention"]["functions"] = {"all": 100}
    assert kernels.attention_parts(found) == (50, 50)


@pytest.mark.parametrize("core", kernels.CORES)
def test_the_committed_figures_are_todays(core, capsys):
    path = kernels.RESULTS / f"kernels-{core}.json"
    if not path.is_file():
        pytest.skip(f"no figures of {core}: python bench/kernels.py --core {core} --write")
    kept = json.loads(path.read_text())
    rows = measured(core, capsys)
    if kept["compiler"] != toolchain.compiler(core).version():
        pytest.skip(f"the figures are of {kept['compiler']}")
    assert rows == kept["rows"]


def test_without_the_emulator_a_sentence_says_what_to_install(monkeypatch, capsys):
    need("m4")
    monkeypatch.setattr(emulate, "missing", lambda: "qemu-system-arm is not installed: apt-get install it")
    assert say.run(kernels.main, kernels.parser(), ["--core", "m4"]) == 2
    assert "apt-get install it" in capsys.readouterr().err
