# SPDX-License-Identifier: Apache-2.0
"""What a window might take on a board that is not at hand: a range from a stated model, never a measurement.

    t = max(arithmetic, memory) + operations x overhead

The lower end takes the peak rates of the board and everything fused; the upper end takes what small networks leave of
the peak and nothing fused. Used by bench/latency.py --estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from train import say

STATUS = "ESTIMATE (roofline), not measured"
MODEL = "t = max(arithmetic, memory) + operations x overhead"
FORMS = {"int8": ("int8_tops", 1), "fp16": ("fp16_tflops", 2)}      # peak in boards.toml, bytes of a value

# Jetson. Microseconds of a launch, from a CUDA graph and one by one. Assumed, fitted on no device; the older modules
# have slower processors.
LAUNCH = {87: (1.0, 5.0), 72: (2.0, 10.0), 53: (2.0, 10.0)}
COPIES = 2              # the window in, the logits out: each costs as much as a launch
GPU_SHARE = 0.05        # of the peak; published runs of small YOLO networks on an Orin Nano came to 6 and 10 %
MEMORY_SHARE = 0.5      # of the nominal bandwidth

# ARM processors. Cycles that a runtime spends on an operation beside its arithmetic: on an x86 server ONNX Runtime took
# about 2,000 for each of a chain of tiny ones and up to 8,000 for one of a small network, arithmetic included; a core
# that runs in order may need more than twice that.
OVERHEAD = (2000, 20_000)
# Of the peak: ncnn's 8-bit ResNet-18 came to 3.1 of 8 on a Raspberry Pi 4; layers of 16 to 64 channels to a third of it
CPU_SHARE = 3.1 / 8 / 3

VIEWS = {"reshape", "constant"}                                 # no operation
MOVES = {"slice", "concat", "transpose"}                        # none when the neighbour writes in place
FOLLOWERS = {"add", "mul", "table", "lookup"}                   # the last step of the operation that they read
PRODUCTS = {"conv1d": 1, "dense": 1, "attention": 2}            # matrix products, whose inputs are quantized
STEP = (2, 4)                                                   # operations in each step of an LSTM
FUSED = ("everything fused: views, slices and joins cost nothing; add, mul, table and lookup belong to the operation "
         "that they read when nothing else reads it; attention is one operation, an LSTM two a step")
APART = ("nothing fused: attention is scores, softmax and values, with three more for a local window and three for a "
         "second map, a norm is four, an LSTM four a step, and the input of each int8 product is quantized apart")


@dataclass(frozen=True)
class Work:
    """What a graph asks for, (lower end, upper end). operations: {form: (fused, apart)}; values: read or written."""

    macs: int
    values: tuple[int, int]
    operations: dict[str, tuple[int, int]]


def work(graph) -> Work:
    """The work of one window. The lower end keeps activations in a cache, the upper writes and reads each."""
    from compress import graph as graphs
    weights = sum(n.params[p].size for n in graph.nodes for p in n.params if p.startswith("weight") and
                  p != "weight_scale")
    size = {name: math.prod(t.shape) for name, t in graph.tensors.items()}
    inputs = sum(size[name] for name in graph.inputs)
    written = sum(size[n.output] for n in graph.nodes if n.kind not in VIEWS)
    together, single = fused(graph), apart(graph)
    quantized = sum(PRODUCTS.get(n.kind, 0) for n in graph.nodes)
    return Work(graphs.macs(graph), (weights + inputs, weights + inputs + 2 * written),
                {"int8": (together, single + quantized), "fp16": (together, single)})


def fused(graph) -> int:
    """Operations of a window after every fusion that is plausible, see FUSED."""
    readers: dict[str, int] = {}
    for n in graph.nodes:
        for tensor in n.inputs:
            readers[tensor] = readers.get(tensor, 0) + 1
    total, hosts = 0, set()         # hosts: tensors whose operation can take one more step
    for n in graph.nodes:
        if n.kind in VIEWS | MOVES:
            continue
        joined = n.kind in FOLLOWERS and any(t in hosts and readers[t] == 1 for t in n.inputs)
        total += 0 if joined else _steps(graph, n, 0)
        hosts.add(n.output)
    return total


def apart(graph) -> int:
    """Operations of a window without fusion, see APART; without quantization."""
    return sum(_steps(graph, n, 1) for n in graph.nodes if n.kind not in VIEWS)


def _steps(graph, n, end: int) -> int:
    """Operations of a node that is not joined to another; end: 0 fused, 1 apart."""
    if n.kind == "lstm":
        return STEP[end] * graph.tensors[n.inputs[0]].shape[0]
    if end and n.kind == "attention":
        return 3 + 3 * (n.attrs["window"] != "global") + 3 * (len(n.inputs) == 5)
    return 4 if end and n.kind == "norm" else 1


def row(form: str, where: str, arithmetic, memory, overhead, operations, of: str) -> dict:
    """One line of an estimate; all times (lower, upper) in ms. of: what the operations are called there."""
    parts = {"arithmetic": arithmetic, "memory": memory, of: overhead}
    ends = [max(arithmetic[i], memory[i]) + overhead[i] for i in (0, 1)]
    return {"form": form, "on": where, "ms": ends, "parts_ms": {name: list(p) for name, p in parts.items()},
            "operations": list(operations), "dominated_by": [max(parts, key=lambda p: parts[p][i]) for i in (0, 1)]}


def gpu(found: Work, board: dict) -> list[dict]:
    """Rows of a Jetson's GPU: int8 where it has units for it, fp16."""
    facts, rows = board["gpu"], []
    launch = LAUNCH[facts["sm"]]
    for form, (peak, wide) in FORMS.items():
        if peak not in facts:
            continue
        fastest = 2 * found.macs / facts[peak] / 1e9                    # ms: 10^12 operations a second
        read, moved = (v * wide / _bandwidth(board) / 1e6 for v in found.values)
        count = [n + COPIES for n in found.operations[form]]
        rows.append(row(form, "GPU", (fastest, fastest / GPU_SHARE), (read, moved / MEMORY_SHARE),
                        tuple(n * us / 1e3 for n, us in zip(count, launch, strict=True)), count, "kernel launches"))
    return rows


def cpu(found: Work, board: dict) -> list[dict]:
    """Rows of an ARM processor, int8, one core and all."""
    facts, rows = board["cpu"], []
    operations = found.operations["int8"]
    overhead = tuple(n * c / facts["ghz"] / 1e6 for n, c in zip(operations, OVERHEAD, strict=True))
    read, moved = (v / _bandwidth(board) / 1e6 for v in found.values)
    one = found.macs / facts["mac"] / facts["ghz"] / 1e6
    for cores in dict.fromkeys((1, facts["cores"])):
        # at the upper end more cores gain nothing: handing the work out takes as long as it saves
        where = f"{facts['core']}, {cores} core{'s' * (cores > 1)}"
        rows.append(row("int8", where, (one / cores, one / CPU_SHARE), (read, moved / MEMORY_SHARE), overhead,
                        operations, "overhead of operations"))
    return rows


def _bandwidth(board: dict) -> float:
    """GB/s. CPU and GPU of a Jetson have one memory."""
    return (board.get("gpu") or board["cpu"])["gb_s"]


def assumptions(board: dict) -> list[str]:
    """Everything that an estimate for this board takes for granted, in sentences."""
    said = [f"lower end, {FUSED}", f"upper end, {APART}"]
    if "gpu" in board:
        g, (graph, single) = board["gpu"], LAUNCH[board["gpu"]["sm"]]
        peaks = " and ".join(f"{g[p]:g} dense {unit} {form}" for (form, (p, _)), unit
                             in zip(FORMS.items(), ("TOPS", "TFLOPS"), strict=True) if p in g)
        said += [f"a launch takes {graph:g} us from a CUDA graph (lower) and {single:g} us one by one (upper): assumed",
                 f"{COPIES} copies cost a launch each",
                 f"GPU peak {peaks}: {g['sms']} x SM at {g['ghz']:g} GHz; {GPU_SHARE:.0%} of it at the upper end"]
        said += [] if "int8_tops" in g else ["this GPU has no int8 units: no int8 engine"]
    if "cpu" in board:
        c = board["cpu"]
        said += [f"{c['core']} at {c['ghz']:g} GHz: {c['mac']} int8 multiply-accumulates a cycle and core at the peak "
                 f"(from memory, not checked), {CPU_SHARE:.0%} of it at the upper end",
                 f"a runtime spends {OVERHEAD[0]} to {OVERHEAD[1]} cycles on an operation",
                 "more cores share the arithmetic evenly (lower) or gain nothing (upper)"]
    return [*said, f"memory {_bandwidth(board):g} GB/s, {MEMORY_SHARE:.0%} of it at the upper end",
            "clocks at their maximum, no throttling, nothing else running"]


def of(graph, board: dict) -> dict:
    """The estimate for a board of boards.toml as JSON: no percentiles, every assumption named."""
    found = work(graph)
    rows = (gpu(found, board) if "gpu" in board else []) + (cpu(found, board) if "cpu" in board else [])
    return {"status": STATUS, "board": board["key"], "name": board["name"], "model": MODEL, "rows": rows,
            "assumptions": assumptions(board)}


def show(guess: dict) -> None:
    """The table, each row of which says what it is, and the assumptions."""
    say.info(f"{guess['name']}: {guess['status']}; {guess['model']}")
    say.table([(r["form"], r["on"], *_milliseconds(r["ms"]), "{}-{}".format(*r["operations"]),
                " / ".join(dict.fromkeys(r["dominated_by"])), guess["status"]) for r in guess["rows"]],
              ("form", "on", "ms from", "ms to", "operations", "dominated by", "status"))
    for sentence in guess["assumptions"]:
        say.info(f"  assumed: {sentence}")


def _milliseconds(ends: list[float]) -> list[str]:
    """Two digits: an estimate knows no more."""
    return [f"{float(f'{ms:.2g}'):g}" for ms in ends]
