# SPDX-License-Identifier: Apache-2.0
"""Whole models on an emulated microcontroller: executed instructions, code, flash, RAM, hop against window.

    python bench/mcu.py                                all presets, untrained, on a Cortex-M4
    python bench/mcu.py --core m7 --presets tiny
    python bench/mcu.py --write                        keep the figures in bench/results/mcu-m4.json

Instructions of these kernels do not depend on what the weights are, so nothing needs to be trained (on a Cortex-M0+ and
M3, whose kernels work in chunks that the weights decide, training changes them by some percent). Two networks of other
people's measurements come first: TensorFlow Lite Micro with CMSIS-NN was counted on them in the same emulator, the best
of six builds, interpreter included. Layout conversions do not exist here: every tensor is planar.
"""

from __future__ import annotations

import json
import pathlib
import sys
from dataclasses import replace

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import runs, say
from train.models import ARCHS

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PRESETS = ("tiny", "small")
# 2,500 samples, one lead: stem 1x15 stride 5, two separable stages of stride 2, 125 columns of 48 channels; then six
# separable blocks, or three blocks of attention in five windows of 25 with 4 heads and an MLP of 96
TFLM = {"cnn": {"macs": 2_388_240, "instructions": 9_530_000, "code": 83_000, "arena": 29_800},
        "attention": {"macs": 8_292_240, "instructions": 44_900_000, "code": 116_000, "arena": 98_500}}


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Count a model's instructions on an emulated core.")
    p.add_argument("--core", default="m4", choices=("m0plus", "m3", "m4", "m7", "m33", "m55"), help="(default m4)")
    p.add_argument("--presets", default=",".join(PRESETS), help=f"(default {','.join(PRESETS)})")
    p.add_argument("--archs", default=",".join(ARCHS), help="(default: all)")
    p.add_argument("--weights", type=int, default=8, choices=(8, 16), help="bits of a weight (8)")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    return p


class Net:
    """A graph made layer by layer from random weights; only its shapes matter."""

    def __init__(self, samples: int):
        from compress.graph import Tensor
        self.tensors, self.nodes, self.at = {"ecg": Tensor((1, samples), 0.1)}, [], "ecg"
        self.put("reshape", ["ecg"], (1, 1, samples), {"shape": [1, 1, samples]})

    def put(self, kind: str, inputs, shape, attrs, params=None) -> str:
        """A node behind `inputs`; it is what comes next stands on."""
        from compress.graph import Node, Tensor
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(Node(name, kind, list(inputs), f"{name}.out", attrs, params or {}))
        self.tensors[f"{name}.out"] = Tensor(tuple(shape), 0.1)
        self.at = f"{name}.out"
        return self.at

    def conv(self, out: int, kernel: int = 1, stride: int = 1, depthwise: bool = False, relu: bool = True) -> str:
        """Padded to ceil(time / stride) columns."""
        from bench import kernels
        channels, leads, time = self.tensors[self.at].shape
        pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
        return self.put("conv1d", [self.at], (out, leads, (time - 1) // stride + 1),
                        {"stride": stride, "pad": pad, "groups": channels if depthwise else 1, "relu": relu},
                        kernels.weights((out, 1 if depthwise else channels, kernel), len(self.nodes)))

    def separable(self, out: int, kernel: int = 5, stride: int = 1) -> str:
        """Depthwise, then pointwise."""
        self.conv(self.tensors[self.at].shape[0], kernel, stride, depthwise=True)
        return self.conv(out)

    def add(self, other: str) -> str:
        """Residual sum."""
        return self.put("add", [other, self.at], self.tensors[self.at].shape,
                        {"mul": [12000, 9000], "shift": 14, "relu": False})

    def attention(self, heads: int, size: int, hidden: int) -> None:
        """A block of attention in windows, and an MLP."""
        from compress import reference_attention
        skip, (channels, *_) = self.at, self.tensors[self.at].shape
        q, k, v = (self._from(skip).conv(channels, relu=False) for _ in range(3))
        self.put("attention", [q, k, v], self.tensors[q].shape,
                 {"heads": heads, "window": "block", "size": size, "score_mul": 40_000_000, "score_shift": 0,
                  "out_mul": 1 << 24, "export_scales": {"score": 0.1, "probability": 1 / 127}},
                 {"table": reference_attention.exp_table()})
        self.conv(channels, relu=False)
        skip = self.add(skip)
        self.conv(hidden)
        self.conv(channels, relu=False)
        self.add(skip)

    def _from(self, tensor: str) -> Net:
        self.at = tensor
        return self

    def graph(self, classes: int):
        """With mean over time and a dense layer."""
        from bench import kernels
        from compress.graph import Graph
        channels, _, time = self.tensors[self.at].shape
        self.put("mean", [self.at], (channels,), {"axes": [1, 2], "mul": round(2 ** 32 / time), "shift": 0})
        self.put("dense", [self.at], (classes,), {"relu": False}, kernels.weights((classes, channels), 99))
        return Graph(["ecg"], self.at, self.tensors, self.nodes)


def peers() -> dict:
    """The networks that others were counted on."""
    found = {}
    for name in TFLM:
        net = Net(2500)
        net.conv(16, 15, 5)
        net.separable(32, stride=2)
        net.separable(48, stride=2)
        for _ in range(6 if name == "cnn" else 3):
            net.separable(48) if name == "cnn" else net.attention(4, 25, 96)
        found[name] = net.graph(5)
    return found


def row(name: str, graph, core, hop: int | None) -> dict:
    """Everything of one network."""
    from compress import graph as graphs
    from targets import layers, ram
    found = layers.measure(core, graph, hop=hop)
    macs = graphs.macs(graph)
    return {"name": name, "macs": macs, "window": found.window_total, "per_mac": found.window_total / macs,
            "hop": found.hop_total or None, "hop_share": found.hop_total / found.window_total if found.hop else None,
            "kernel_bytes": found.code["kernels"], "engine_bytes": found.code["engine"], "model_bytes": found.model,
            "ram": ram.summary(graph, hop, core)}


def main(args) -> dict:
    """Count, print, keep."""
    from bench import memory
    from targets import emulate, toolchain
    from targets.pack import CORES
    absent = toolchain.missing(args.core) or emulate.missing()
    if absent:
        raise say.MissingError(absent)
    core = replace(CORES[args.core], wide=args.weights == 16)
    rows = []
    for name, graph in peers().items():
        rows.append(row(f"{name}, 2,500 samples", graph, core, None))
        if args.core == "m4":
            rows[-1]["tflm"] = TFLM[name] | {"ratio": TFLM[name]["instructions"] / rows[-1]["window"]}
            assert rows[-1]["macs"] == TFLM[name]["macs"]
    wanted = [(a, p) for p in args.presets.split(",") for a in args.archs.split(",")]
    if "local-lead" in args.archs:
        wanted += [("local-lead", f"{preset}-stream") for preset in args.presets.split(",") if preset in PRESETS]
    for arch, preset in wanted:
        net, graph = memory.untrained(arch, preset)
        rows.append(row(f"{arch} {preset}", graph, core, net.geometry.hop if net.geometry.streaming else None))
        say.info(f"{rows[-1]['name']}: {rows[-1]['window']:,}")
    _print(rows, core)
    result = {"core": args.core, "weights": args.weights, "networks": rows, "machine": say.machine(),
              "compiler": toolchain.compiler(args.core).version()}
    if args.write:
        more = "" if args.weights == 8 else "-16bit"
        runs.write(RESULTS, {f"mcu-{args.core}{more}.json": json.dumps(result, indent=1) + "\n"})
    return result


def _print(rows: list[dict], core) -> None:
    say.info(f"Cortex-{core.name.upper().replace('PLUS', '+')}, weights of {16 if core.wide else 8} bits: executed "
             "instructions in the emulator, not cycles")
    say.table([(r["name"], f"{r['macs'] / 1e6:.2f}", f"{r['window'] / 1e6:.2f}", f"{r['per_mac']:.2f}",
                f"{r['tflm']['ratio']:.1f}x fewer" if "tflm" in r else "-",
                f"{r['hop'] / 1e6:.2f}" if r["hop"] else "-", f"1/{1 / r['hop_share']:.1f}" if r["hop"] else "-",
                *(f"{b / 1000:.1f}" for b in (r["kernel_bytes"], r["model_bytes"], r["ram"]["ram_bytes"])))
               for r in rows],
              ("network", "MMAC", "M instructions, window", "per MAC", "than TFLM", "M, hop", "of a window",
               "kernels kB", "model kB", "RAM kB"))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
