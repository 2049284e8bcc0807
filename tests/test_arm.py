# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's files: layouts that change no code, and one window at a time for live use."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import targets
from compress import reference
from targets import target
from targets.target import Agreement, Built
from tests import graphs as make
from train.say import UserError

ROOT = Path(__file__).parents[1]
absent = targets.load("arm").missing()
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))


def residual(channel=24, leads=1, time=96, first=8):
    """A stem of few channels, a depthwise pair, and a residual pair of more channels than a vector holds."""
    b = make.Builder(11, {"ecg": (leads, time)})
    x = b.conv(b.reshape("ecg", "channel"), first, 11, stride=2)
    x = b.conv(b.conv(x, first, 7, stride=2, groups=first), channel)
    y = b.conv(b.conv(x, channel, 7, groups=channel), channel, relu=False)
    x = b.meanpool(b.add(x, y), 2, 2)
    x = b.slice(b.maxpool(x, 3, 1), 2, 1, 10)
    x = b.conv(b.conv(x, channel, 3, groups=channel, relu=False), 20)
    return b.graph(b.classifier(b.concat([b.reduce("mean", x), b.reduce("max", x)]), 3))


def grouped():
    """Groups of several channels, and several outputs of each channel."""
    b = make.Builder(12, {"ecg": (4, 64)})
    x = b.reshape("ecg", (4, 1, 64))
    x = b.conv(b.conv(x, 8, 5, stride=2, groups=4), 8, groups=4)
    x = b.conv(b.conv(x, 8, 3, groups=8), 16, groups=2)
    return b.graph(b.classifier(b.reduce("max", x), 3))


def broadcast():
    """A sum of a sequence and a single channel, both read from a folded tensor."""
    b = make.Builder(13, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    x = b.add(b.conv(x, 8, relu=False), b.conv(x, 1, 1, relu=False))
    return b.graph(b.classifier(b.reduce("max", x), 3))


GRAPHS = {"residual": residual, "three leads": functools.partial(residual, leads=3),
          "whole vectors": functools.partial(residual, channel=32, first=16),
          "a length that does not fold": functools.partial(residual, time=90),
          "groups": grouped, "broadcast": broadcast}


def nodes(graph, form="mixed"):
    """(kind, attributes) of the file's nodes, and the shapes of its constants by name."""
    import onnx

    from targets import onnx_qdq
    model = onnx.load_from_string(onnx_qdq.lower(graph, form))
    return model.graph.node, {c.name: tuple(c.dims) for c in model.graph.initializer}


def session(graph, form="mixed", trace=False):
    from targets import arm, onnx_qdq
    return arm.Session(onnx_qdq.lower(graph, form, trace), graph)


@pytest.mark.parametrize("name", GRAPHS)
def test_layouts_change_no_code(name):
    graph = GRAPHS[name]()
    inputs = make.inputs_of(graph, 24)
    got = targets.load("arm").trace(graph, Built(Path(), 0, None, {"form": "mixed"}), inputs)
    np.testing.assert_array_equal(session(graph).run(inputs), got[graph.output])    # traced, nothing is widened
    for node in graph.nodes:
        alone = {name: got[name] for name in node.inputs}
        reference.execute([node], alone)
        gap = np.abs(alone[node.output].astype(int) - got[node.output])
        assert gap.max() <= 1 and (gap > 0).mean() < 0.01, node.name        # a tie may fall to either side


def groups_of(graph, form="mixed"):
    return [next(a.i for a in n.attribute if a.name == "group") for n in nodes(graph, form)[0]
            if n.op_type == "Conv" and any(a.name == "group" for a in n.attribute)]


def test_depthwise_layers_get_whole_vectors_of_channels():
    assert 24 in groups_of(residual(), "float") and 32 not in groups_of(residual(), "float")
    assert groups_of(residual()).count(32) == 3 and 24 not in groups_of(residual())     # two layers and a mean pool


def test_layers_of_few_channels_pass_folds_on():
    found = nodes(residual())
    shapes = [found[1][found[0][i].input[0]] for i in range(len(found[0])) if found[0][i].op_type == "DequantizeLinear"
              and found[0][i].input[0] in found[1] and len(found[1][found[0][i].input[0]]) == 4]
    # 8 samples of 1 channel -> 4 of 8 -> 2 of 8 -> 2 of 24 channels with 8 of zeros
    assert shapes[:3] == [(32, 8, 1, 3), (16, 32, 1, 3), (64, 16, 1, 1)]


def test_groups_of_several_channels_become_one():
    assert set(groups_of(grouped(), "float")) == {2, 4, 8} and set(groups_of(grouped())) == {1, 8}


def test_attention_over_everything_gathers_nothing():
    kinds = [n.op_type for n in nodes(make.attending("global"))[0]]
    assert "Gather" not in kinds and kinds.count("Split") == 1


@pytest.mark.parametrize("p50, form", [({"int8": 1.0, "mixed": 1.05}, "mixed"), ({"int8": 1.0, "mixed": 1.2}, "int8"),
                                       ({"int8": 1.05, "mixed": 1.0}, "mixed")])
def test_a_little_speed_is_not_worth_differences(p50, form):
    agreed = {"int8": Agreement(256, 0.996, 3, 6), "mixed": Agreement(256, 1.0, 1, 2),
              "float": Agreement(256, 0.9, 9, 40)}
    assert targets.load("arm").pick(agreed, p50 | {"float": 2.0})[0] == form


# ---- live

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the files of all forms."""
    from targets import arm
    folder = make.write_run(tmp_path_factory.mktemp("arm") / "r", make.learned(), golden=6)
    model, graph = target.open_run(folder)
    arm.lower(graph, model, folder / "arm")
    return folder


@pytest.mark.parametrize("form", ["int8", "mixed", "float"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_runner_gives_what_the_batch_gives(run, form, threads):
    from targets import arm
    graph = target.open_run(run)[1]
    inputs, _ = target.golden(run, graph)
    built = Built(run / "arm" / arm.file_name(form), 0, None)
    live = arm.runner(built, graph, threads)
    together = arm.run(built, inputs)
    for i in (0, 3, 3, 5, 1):
        logits = live({name: x[i] for name, x in inputs.items()})
        assert logits.dtype == np.int8 and logits.shape == together.shape[1:]
        np.testing.assert_array_equal(logits, together[i])


def test_a_runner_takes_inputs_that_are_not_contiguous(run):
    from targets import arm
    graph = target.open_run(run)[1]
    window = {name: x[0] for name, x in target.golden(run, graph)[0].items()}
    live = arm.runner(Built(run / "arm" / "model.mixed.onnx", 0, None), graph)
    expected = live(window).copy()
    strided = {name: np.repeat(x, 2, axis=-1)[..., ::2] for name, x in window.items()}
    np.testing.assert_array_equal(live(strided), expected)


@pytest.mark.parametrize("damage, words", [
    (lambda w: {}, "is missing"), (lambda w: w | {"weight": w["age"]}, "no input 'weight'"),
    (lambda w: {n: x[None] for n, x in w.items()}, r"is int8 \(1, "),
    (lambda w: {n: x.astype(float) for n, x in w.items()}, "float64"),
])
def test_a_runner_refuses_inputs_that_are_not_the_graphs(run, damage, words):
    from targets import arm
    graph = target.open_run(run)[1]
    window = {name: x[0] for name, x in target.golden(run, graph)[0].items()}
    with pytest.raises(UserError, match=words):
        arm.runner(Built(run / "arm" / "model.mixed.onnx", 0, None), graph)(damage(window))


def test_a_runner_needs_neither_torch_nor_onnx(run):
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchao", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from targets import arm, target
graph = target.open_run({str(run)!r})[1]
inputs, _ = target.golden({str(run)!r}, graph)
live = arm.runner(target.Built(arm.Path({str(run / 'arm' / 'model.mixed.onnx')!r}), 0, None), graph)
assert live({{name: x[0] for name, x in inputs.items()}}).shape == graph.tensors[graph.output].shape
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
