# SPDX-License-Identifier: Apache-2.0
"""Run folders of every architecture's `tiny` preset, made once for all workers of a test run.

The networks have learned for a few steps to tell four synthetic signals apart: one that has learned nothing either says
the same of every window or turns the least rounding into another label, and compares runtimes badly.
"""

import numpy as np
import pytest

from tests import graphs as make
from tests.once import once

# architecture -> leads
TINY = {"local-lead": 1, "lga": 1, "hierarchical": 1, "nat": 1, "efficient": 1}
TASK, CLASSES = "cinc2017", 4
WINDOWS = 64
STEPS, BATCH, RATE = 30, 32, 3e-3


def run(factory, name):
    """The run folder of one of TINY; skips without torch."""
    pytest.importorskip("torch")
    return once(factory, f"tiny-{name}", lambda folder: write(folder, name))


def write(folder, name):
    """Learn, freeze and keep it with windows of its own."""
    graph, shapes = integers(name, TINY[name])
    return make.write_run(folder, graph, WINDOWS, inputs=windows(shapes, WINDOWS, seed=1)[0])


def windows(shapes, count, seed):
    """(int8 inputs, label (window,)): slow pulses, fast pulses, waves, noise; side inputs say nothing."""
    rng = np.random.default_rng(seed)
    leads, time = shapes["ecg"]
    label, t = rng.integers(0, CLASSES, count), np.arange(time)
    period = np.where(label == 0, rng.uniform(200, 260, count), rng.uniform(80, 110, count))[:, None]
    away = (t + rng.uniform(0, 300, (count, 1))) % period - period / 2
    wave = np.sin(t / rng.uniform(15, 30, (count, 1)) + rng.uniform(0, 6, (count, 1)))
    kinds = np.exp(-(away / 6) ** 2), np.exp(-(away / 6) ** 2), wave, rng.normal(0, 0.5, (count, time))
    clean = np.choose(label[:, None], kinds)[:, None] * rng.uniform(40, 90, (count, leads, 1))
    noisy = clean + rng.normal(0, 6, (count, leads, time))
    sides = {name: rng.integers(-20, 20, (count, *shape)) for name, shape in shapes.items() if name != "ecg"}
    return {name: np.clip(np.rint(x), -128, 127).astype(np.int8) for name, x in {"ecg": noisy, **sides}.items()}, label


def integers(arch, leads):
    """(integer graph of a network, shapes of its inputs)."""
    import torch

    from compress.freeze import export_scales
    from compress.program import Program, tensors
    from tests.frozen import MILLIVOLT
    from train.models import build
    from train.sides import SIDES
    torch.manual_seed(7)
    torch.set_num_threads(1)            # the other cores belong to the other workers
    net = build(arch, "tiny", TASK, leads, CLASSES, 0)
    shapes = {"ecg": (leads, net.geometry.window), **{name: SIDES[name].shape for name in net.sides}}
    scales = {"ecg": MILLIVOLT, **{name: SIDES[name].one for name in net.sides}}
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for module in net.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.4           # few steps must do
    for step in range(STEPS):
        inputs, label = windows(shapes, BATCH, seed=[2, step])
        ecg, *sides = tensors(inputs, scales)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(ecg.unsqueeze(1), *sides), torch.from_numpy(label)).backward()
        optimizer.step()
    program = Program(net.eval(), shapes, scales, net.geometry.streaming)
    program.calibrate([tensors(inputs, scales)])
    graph = program.convert()[1]
    export_scales(graph, inputs)
    return graph, shapes
