# SPDX-License-Identifier: Apache-2.0
"""What a network needs on a device, before anything is trained: parameters, MACs, flash and RAM.

    python bench/memory.py                                           every architecture, presets small and tiny
    python bench/memory.py --arch nat --preset tiny --leads 3        one network, with what fills its RAM
    python bench/memory.py --arch nat --preset small --board bluepill     does it fit, by how much, what to try

The untrained network is quantized with random inputs and planned by targets/plan.py; training changes no size.
Flash is weights and tables; the code of the kernels comes on top. RAM holds the tensors and the kernels' scratch, in
two forms: a whole window at once, and streaming, where each column is computed once.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from train import runs, say
from train.models import ARCHS

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PRESETS = ("small", "tiny")
LEADS = (1, 2, 3, 6, 8, 12)
BUDGET = {"small": (160_000, 48_000), "tiny": (48_000, 20_000)}     # bytes of weights and tables, bytes of RAM
TASK = "cinc2017"       # its window is that of every hop task
HEADER = ("network", "parameters", "MMAC", "a hop", "flash kB", "RAM kB", "window kB", "streaming kB", "state kB",
          "scratch kB", "budget")


def untrained(arch: str, preset: str, task: str = TASK, leads: int = 1, seed: int = 0):
    """(network with random weights, the integer graph of it calibrated on random inputs)."""
    import numpy as np
    import torch

    from compress.program import Program, tensors
    from train import tasks
    from train.models import build
    from train.sides import SIDES
    about = tasks.find(task)
    torch.manual_seed(seed)
    rr = SIDES["rr"].shape[0] if about.trigger == "r-peak" else 0
    net = build(arch, preset, about.name, leads, len(about.classes), rr).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):        # gains that start at zero would leave nothing to calibrate
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    shapes = {"ecg": (leads, net.geometry.window), **{name: SIDES[name].shape for name in net.sides}}
    scales = {"ecg": 0.016, **{name: SIDES[name].one for name in net.sides}}
    generator = np.random.default_rng(seed)
    codes = {name: generator.integers(-60, 61, (2, *shape)).astype(np.int8) for name, shape in shapes.items()}
    program = Program(net, shapes, scales, net.geometry.streaming)
    program.calibrate([tensors(codes, scales)])
    return net, program.convert()[1]


def figures(arch: str, preset: str, task: str = TASK, leads: int = 1) -> dict:
    """Everything about one network, as plain JSON."""
    from compress import graph as graphs
    from targets import stream
    net, graph = untrained(arch, preset, task, leads)
    streams = graph.boundary is not None
    return {"arch": arch, "preset": preset, "task": task, "leads": leads,
            "parameters": sum(p.numel() for p in net.parameters()), "macs": graphs.macs(graph),
            "hop_macs": stream.macs(graph, net.geometry.hop) if streams else None,
            "streams": streams, "hop": net.geometry.hop,
            "flash_bytes": graph.weight_bytes, "code_bytes": None, **_ram(graph, net.geometry.hop),
            "budget": _budget(preset, leads)}


def _ram(graph, hop: int) -> dict:
    """Bytes of RAM, and what fills it where it is fullest."""
    from targets import plan, ram, stream
    held = {"window": plan.window(graph).fullest()}
    if graph.boundary is not None:
        flow = stream.stream(graph, hop)
        held["streaming, a hop's columns"], held["streaming, a decision"] = flow.local.fullest(), flow.decide.fullest()
    return ram.summary(graph, hop) | {
        "fullest": {where: {"node": node, "tensors": sizes} for where, (node, sizes) in held.items()}}


def _budget(preset: str, leads: int) -> dict | None:
    """The preset's limits, which hold at one lead; `tiny-plain` has those of `tiny`."""
    flash, ram = BUDGET.get(preset.removesuffix("-plain"), (None, None))
    return {"flash_bytes": flash, "ram_bytes": ram} if flash and leads == 1 else None


def over(found: dict, flash: int, ram: int) -> list[str]:
    """What does not fit, in words."""
    needs = (("flash", found["flash_bytes"], flash), ("RAM", found["ram_bytes"], ram))
    return [f"{name} {need / 1000:.1f} kB of {limit / 1000:.1f}" for name, need, limit in needs if need > limit]


def row(found: dict) -> list:
    """A line of the table."""
    def kilo(key):
        return None if found[key] is None else f"{found[key] / 1000:.1f}"
    hop = None if found["hop_macs"] is None else f"{found['hop_macs'] / 1e6:.2f}"
    limits = found["budget"]
    said = None if limits is None else ", ".join(over(found, *limits.values())) or "kept"
    return [f"{found['arch']} {found['preset']}, {found['leads']} lead{'s' * (found['leads'] > 1)}",
            f"{found['parameters']:,}", f"{found['macs'] / 1e6:.2f}", hop, *(kilo(k) for k in (
                "flash_bytes", "ram_bytes", "window_bytes", "stream_bytes", "state_bytes", "scratch_bytes")), said]


def fits(found: dict, board: dict) -> dict:
    """Print and return whether a network fits on a board, what is left, and what to try when it does not."""
    left = {"flash_bytes": board["flash"] - found["flash_bytes"], "ram_bytes": board["ram"] - found["ram_bytes"]}
    missing = over(found, board["flash"], board["ram"])
    if not missing:
        say.info(f"{board['name']}: fits; {left['flash_bytes'] / 1000:.1f} kB of flash left for code, "
                 f"{left['ram_bytes'] / 1000:.1f} kB of RAM for stack and front end")
        return {"name": board["name"], "fits": True, "left": left, "try": []}
    ideas = [f"--preset tiny in place of {found['preset']}"] if not found["preset"].startswith("tiny") else []
    if left["flash_bytes"] < 0:
        keep = max(10 * board["flash"] // found["flash_bytes"], 1) / 10
        ideas.append(f"compress/prune.py --keep {keep:.1f}, which removes channels and heads")
    if left["ram_bytes"] < 0 and found["leads"] > 1:
        share = found["leads"] * board["ram"] / found["ram_bytes"]
        ideas.append(f"--leads {max((n for n in LEADS if n <= share), default=1)}")
    if left["ram_bytes"] < 0 and not found["streams"]:
        ideas.append("an architecture that streams, on a task with hops")
    say.info(f"{board['name']}: does not fit, {' and '.join(missing)}; try {'; or '.join(ideas) or 'another board'}")
    return {"name": board["name"], "fits": False, "left": left, "try": ideas}


def fullest(found: dict) -> None:
    """Say what fills the RAM."""
    for where, at in found["fullest"].items():
        names = ", ".join(f"{name} {size / 1000:.1f}" for name, size in at["tensors"].items())
        say.info(f"{where}: fullest at {at['node'] or 'none'}" + (f" (kB: {names})" if names else ""))


def wanted(args) -> list[tuple[str, str, int]]:
    """(arch, preset, leads) of every line."""
    archs = [args.arch] if args.arch else list(ARCHS)
    presets = [args.preset] if args.preset else list(PRESETS)
    lines = [(arch, preset, args.leads or 1) for arch in archs for preset in presets]
    if args.all_leads:
        lines += [(arch, "tiny", leads) for arch in archs for leads in LEADS if (arch, "tiny", leads) not in lines]
    return lines


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--arch", help=f"{', '.join(ARCHS)}, or path/to/file.py:Class (default: all)")
    p.add_argument("--preset", help="size (default: small and tiny)")
    p.add_argument("--leads", type=int, choices=LEADS, help="waveform leads (default 1)")
    p.add_argument("--task", default=TASK, help=f"decides window, classes and side inputs (default {TASK})")
    p.add_argument("--board", metavar="B", help="a microcontroller of targets/boards.toml")
    p.add_argument("--all-leads", action="store_true", help="tiny with every number of leads as well")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results/memory.json")
    return p


def main(args) -> dict:
    """The table, and the verdict for a board."""
    for package in ("torch", "torchao"):
        say.need(package, "compress")
    board = None
    if args.board:
        from targets.target import read_board
        board = read_board(args.board, "mcu")
    lines = wanted(args)
    found = []
    with say.progress("networks", len(lines)) as advance:
        for arch, preset, leads in lines:
            found.append(figures(arch, preset, args.task, leads))
            advance(note=f"{arch} {preset}")
    say.table([row(f) for f in found], HEADER)
    say.info("RAM is the streaming form where the network streams, else a window, with the kernels' scratch; flash is "
             "weights and tables without code; `a hop` is what the streaming form computes for one decision")
    if len(found) == 1:
        fullest(found[0])
    if board:
        for f in found:
            f["board"] = fits(f, board)
    if args.write:
        runs.write(RESULTS, {"memory.json": json.dumps({"networks": found}, indent=1) + "\n"})
    return {"networks": found}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
