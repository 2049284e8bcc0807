# SPDX-License-Identifier: Apache-2.0
"""A sixth architecture is one file and one line: it trains, becomes an integer graph, streams and is planned."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
pytest.importorskip("safetensors")

from bench import memory
from tests import frozen
from tests.test_fit import Toy
from train import fit, models, say
from train.say import GraphError

torch.set_num_threads(1)

# What a user writes: convolutions, a gate by what each channel holds on average, and attention over the whole window.
FILE = '''
from torch import nn
from train.models.attention import attend
from train.models.blocks import Head, Separable, Stem, conv_bn
from train.models.geometry import Span, geometry
from train.models.network import Network


class Gated(Network):
    PRESETS = {"tiny": 16, "small": 32}
    RECIPE = {"batch": 16}

    def __init__(self, preset, window, leads, classes, rr=0):
        super().__init__()
        width = self.PRESETS[preset]
        self.local = nn.Sequential(Stem(8, 9, 4), Separable(8, width, 7, 4), Separable(width, width, 7, 2))
        span = Span()
        for part in self.local:
            span = part.span(span)
        self.mixer = MIXER
        self.gate = nn.Sequential(conv_bn(width, width, 1), nn.Sigmoid())
        self.q, self.k, self.v = (conv_bn(width, width, 1) for _ in range(3))
        self.attend_fn = attend
        self.head = Head(width, leads, 16, classes, rr)
        self.geometry = geometry(span, window)
        self.sides = ("rr",) if rr else ()

    def columns(self, ecg):
        return self.mixer(self.local(ecg))

    def decide(self, columns, *sides):
        x = columns * self.gate(columns.mean((2, 3), keepdim=True))
        return self.head(x + self.attend_fn(self.q(x), self.k(x), self.v(x), 2), *sides)
'''


def write(folder, mixer="nn.Identity()"):
    """The user's file."""
    path = folder / "gated.py"
    path.write_text(FILE.replace("MIXER", mixer))
    return path


@pytest.fixture
def sixth(tmp_path, monkeypatch):
    """The file is importable, and the line is in ARCHS."""
    write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(models.ARCHS, "gated", "gated:Gated")
    return "gated"


@pytest.fixture
def toy(monkeypatch):
    """fit.py on toy records."""
    monkeypatch.setattr(fit.Fit, "_shards", lambda self: Toy(self.task.name, 10 if self.task.name == "mitbih" else 24))


@pytest.mark.parametrize("task", ["cinc2017", "mitbih"])
def test_it_trains_and_loads_like_the_others(sixth, toy, tmp_path, task):
    run = str(tmp_path / "run")
    done = fit.fit(fit.Job(run=run, arch=sixth, preset="tiny", task=task, epochs=1, device="cpu", folds=0))
    assert done["epochs"] == 1
    about, net = fit.load(run)
    assert (about.arch, about.streaming) == (sixth, task == "cinc2017") and type(net).__name__ == "Gated"
    assert json.loads((tmp_path / "run" / fit.RECORD).read_text())["recipe"]["batch"] == 16


@pytest.mark.parametrize("task,leads", [("cinc2017", 1), ("cinc2017", 3), ("mitbih", 1)])
def test_it_becomes_an_integer_graph_that_agrees_and_streams(sixth, task, leads):
    made = frozen.freeze(sixth, "tiny", task, leads)
    assert made.agreement["worst"] <= 1 and made.agreement["share"] < 1e-3
    assert {n.attrs["window"] for n in made.kind("attention")} == {"global"} and made.kind("mul")
    assert task == "mitbih" or made.streams()


def test_its_memory_is_planned(sixth):
    found = memory.figures(sixth, "tiny")
    assert found["streams"] and 0 <= found["ram_bytes"] - found["stream_bytes"] - found["scratch_bytes"] < 256
    assert not memory.over(found, *memory.BUDGET["tiny"])


def test_a_file_of_ones_own_needs_no_line_at_all(toy, tmp_path, capsys):
    arch, run = f"{write(tmp_path)}:Gated", str(tmp_path / "run")
    words = ["--arch", arch, "--preset", "tiny", "--task", "cinc2017", "--epochs", "1", "--device", "cpu", "--run", run]
    assert say.run(fit.main, fit.parser(), words) == 0
    about, net = fit.load(run)
    assert about.arch == arch and type(net).__name__ == "Gated"
    capsys.readouterr()
    assert say.run(memory.main, memory.parser(), ["--arch", arch, "--preset", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"][0]["arch"] == arch


@pytest.mark.parametrize("mixer", ["nn.InstanceNorm2d(width)", "nn.Softmax(3)"])
def test_a_layer_without_integer_form_is_refused_by_its_name(tmp_path, mixer):
    with pytest.raises(GraphError, match="mixer"):
        memory.untrained(f"{write(tmp_path, mixer)}:Gated", "tiny")


def test_a_class_that_is_not_in_the_file_is_named(tmp_path):
    with pytest.raises(say.UserError, match="has no class Gate"):
        memory.untrained(f"{write(tmp_path)}:Gate", "tiny")
