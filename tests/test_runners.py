# SPDX-License-Identifier: Apache-2.0
"""Live use: a runner takes one window by name and gives what the target's batch gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import targets
from targets import deploy, target
from tests import graphs as make
from train import say
from train.say import UserError

ROOT = Path(__file__).parents[1]
LIVE = [name for name in targets.TARGETS if name != "mcu"]      # a microcontroller is on the other end of a link


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Target -> (run folder, built), built on first use; with side inputs, so that names matter."""
    held = {}

    def build(name: str):
        if name not in held:
            absent = targets.load(name).missing()
            if absent:
                pytest.skip(absent)
            run = make.write_run(tmp_path_factory.mktemp(name) / "r", make.learned(), golden=64)
            assert say.run(deploy.main, deploy.parser(), ["--run", str(run), "--target", name]) == 0
            held[name] = run
        return held[name]
    return build


@pytest.fixture
def live(request, runs):
    """(runner, graph, the batch's inputs, the batch's logits) of a target."""
    run, module = runs(request.param), targets.load(request.param)
    manifest, graph = target.open_run(run)
    built = target.open_build(run, request.param, manifest)
    inputs, _ = target.golden(run, graph, 8)
    return module.runner(built, graph), graph, inputs, module.run(built, inputs)


def one(inputs: dict, i: int) -> dict:
    """A window of a batch."""
    return {name: x[i] for name, x in inputs.items()}


@pytest.mark.parametrize("live", LIVE, indirect=True)
def test_a_runner_gives_the_logits_of_the_batch_window_by_window(live):
    runner, _, inputs, logits = live
    got = np.stack([runner(one(inputs, i)).copy() for i in range(len(logits))])
    assert got.dtype == np.int8 and np.array_equal(got, logits)
    assert np.array_equal(runner(one(inputs, 0)), logits[0])         # nothing is kept from the windows between


@pytest.mark.parametrize("live", LIVE, indirect=True)
@pytest.mark.parametrize("change, words", [
    (lambda x, name: x.pop(name), "is missing"),
    (lambda x, name: x.update(other=x[name]), "no input 'other'"),
    (lambda x, name: x.update({name: x[name][..., :-1]}), "is int8"),
    (lambda x, name: x.update({name: x[name].astype(np.float32)}), "is float32"),
], ids=["missing", "extra", "shape", "type"])
def test_a_runner_refuses_inputs_that_are_not_the_models(live, change, words):
    runner, graph, inputs, logits = live
    wrong = one(inputs, 0)
    change(wrong, graph.inputs[0])
    with pytest.raises(UserError, match=words):
        runner(wrong)
    assert np.array_equal(runner(one(inputs, 1)), logits[1])         # and goes on


@pytest.mark.parametrize("name", LIVE)
def test_a_runner_needs_neither_torch_nor_onnx(name, runs):
    run = runs(name)
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchao", "scipy", "wfdb", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import targets
from targets import target
manifest, graph = target.open_run({str(run)!r})
module = targets.load({name!r})
inputs, _ = target.golden({str(run)!r}, graph, 1)
runner = module.runner(target.open_build({str(run)!r}, {name!r}, manifest), graph)
assert runner({{name: x[0] for name, x in inputs.items()}}).shape == graph.tensors[graph.output].shape
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
