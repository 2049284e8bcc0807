# SPDX-License-Identifier: Apache-2.0
"""Instructions of single layers on an emulated core, beside other kernel libraries on the same shapes.

    python bench/kernels.py --core m4
    python bench/kernels.py --core m0plus --write        keep the figures in bench/results/kernels-m0plus.json

Every layer goes through our packer and kernel, must give the bits of the reference, and is counted exactly. Counts are
executed instructions, not cycles. Layers with a matrix product: instructions per multiply-accumulate; softmax and add:
per element. Attention is one kernel with us: its softmax is the function that does nothing else, where there is one,
else what does not grow with the channels; the products are the rest.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import tempfile

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import runs, say

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
CORES = ("m0plus", "m3", "m4", "m7", "m33", "m55")
SHAPES = {"conv": "a  conv 1x15, 1 -> 16, 2500 samples, stride 2", "depthwise": "b  depthwise 1x7, 32 channels, 625",
          "pointwise": "c  1x1, 32 -> 64, 625 columns", "tokens": "d  1x1, 64 -> 64, 125 columns",
          "dense": "   dense 64 -> 64, one vector", "softmax": "e  softmax, 500 rows of 25",
          "products": "f  Q K^T and A V, 25 x 25, d 16, 4 heads, 5 windows", "add": "g  add, 8000 elements"}
SOFTENS = "soften"                              # the function of attention_dsp that computes a softmax
CALLER = ("main", "run")                        # of the measuring image
PRODUCTS = 2 * 5 * 4 * 25 * 25 * 16             # multiply-accumulates of Q K^T and A V over five windows
SOFTMAX = 500 * 25
# What others need on the same shapes, counted in the same emulator. CMSIS-NN of July 2026: the best of six builds (gcc
# 12.2 and clang 19, -O2, -Os, -Ofast, its own faster roundings); its dense layers as 1x1 convolutions where that is
# faster, `products` is its Q K^T. TinyEngine (Nov 2024) and NNoM (Apr 2024): gcc -Ofast, Cortex-M4 only.
CMSIS_NN = {
    "m0plus": (15.30, 56.4, 8.65, 7.25, 7.56, 1696, 15.3, 225), "m3": (7.58, 30.97, 3.53, 3.05, 3.92, 429, 6.93, 70.0),
    "m4": (6.82, 13.45, 2.56, 2.02, 2.59, 420, 4.83, 61.5), "m7": (6.98, 13.39, 2.51, 1.98, 2.59, 410, 5.12, 61.5),
    "m33": (6.82, 13.36, 2.53, 2.01, 2.60, 420, 4.83, 61.5), "m55": (2.38, 2.63, 0.575, 0.377, 0.336, 94.0, 1.28, 6.0)}
OTHERS = {"m4": {"TinyEngine": {"pointwise": 2.278, "tokens": 1.947}, "NNoM": {"conv": 21.58, "pointwise": 7.97}}}


def conv(out: int, depth: int, kernel: int, shape, stride: int = 1, groups: int = 1, seed: int = 0):
    """A graph of one convolution of (channel, 1, time), padded so that columns are ceil(time / stride)."""
    from compress.graph import Graph, Node, Tensor
    channels, time = shape
    pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
    columns = (time + sum(pad) - kernel) // stride + 1
    node = Node("layer", "conv1d", ["x"], "y", {"stride": stride, "pad": pad, "groups": groups, "relu": False},
                weights((out, depth, kernel), seed))
    return Graph(["x"], "y", {"x": Tensor((channels, 1, time), 0.1), "y": Tensor((out, 1, columns), 0.1)}, [node])


def weights(shape: tuple[int, ...], seed: int) -> dict:
    """Normal weights whose largest is a channel's full scale, and multipliers that spread the output over the codes, as
    training leaves them. The sums that fit 16 bits, and so the work of a core without DSP, depend on the weights."""
    import numpy as np
    rng = np.random.default_rng(seed)
    real = rng.normal(0, 1, shape)
    codes = np.rint(127 * real / np.abs(real).reshape(shape[0], -1).max(1).reshape(-1, *(1,) * (len(shape) - 1)))
    reach = 2.0 ** 32 * 60 / (73 * 50 * math.sqrt(math.prod(shape[1:])))
    return {"weight": codes.astype(np.int8), "shift": np.zeros(shape[0], np.int8),
            "bias": rng.integers(-9000, 9000, shape[0]).astype(np.int32),
            "mul": np.minimum(rng.uniform(0.3, 1, shape[0]) * reach, 2 ** 31 - 1).astype(np.int32),
            "weight_scale": np.ones(shape[0], np.float32)}


def attention(d: int, dv: int):
    """A graph of one attention over 25 columns, 4 heads of d channels of q and k and dv of v."""
    from compress import reference_attention as ra
    from compress.graph import Graph, Node, Tensor
    shapes = {"q": 4 * d, "k": 4 * d, "v": 4 * dv, "y": 4 * dv}
    score = round(2.0 ** 32 / (73 * 73 * math.sqrt(d) * ra.EXP_STEP))      # scores spread over one nat
    node = Node("layer", "attention", ["q", "k", "v"], "y",
                {"heads": 4, "window": "global", "size": 0, "score_mul": score, "score_shift": 0, "out_mul": 1 << 24,
                 "export_scales": {"score": 0.1, "probability": 1 / 127}}, {"table": ra.exp_table()})
    return Graph(["q", "k", "v"], "y", {n: Tensor((c, 1, 25), 0.1) for n, c in shapes.items()}, [node])


def graphs() -> dict:
    """One-layer graphs by name."""
    from compress.graph import Graph, Node, Tensor
    dense = Node("layer", "dense", ["x"], "y", {"relu": False}, weights((64, 64), 4))
    add = Node("layer", "add", ["a", "b"], "y", {"mul": [12000, 9000], "shift": 14, "relu": False})
    sides = {name: Tensor((32, 1, 250), 0.1) for name in ("a", "b", "y")}
    return {"conv": conv(16, 1, 15, (1, 2500), stride=2), "depthwise": conv(32, 1, 7, (32, 625), groups=32),
            "pointwise": conv(64, 32, 1, (32, 625)), "tokens": conv(64, 64, 1, (64, 125)),
            "dense": Graph(["x"], "y", {"x": Tensor((64,), 0.1), "y": Tensor((64,), 0.1)}, [dense]),
            "add": Graph(["a", "b"], "y", sides, [add]),
            "attention": attention(16, 16), "deep q": attention(32, 16), "deep v": attention(16, 32)}


def measure(core, using: str | None = None) -> dict[str, dict]:
    """Per layer: {"kernel", "instructions", "functions", "code_bytes"} on a pack.Core, by name of its graph.

    UserError when a kernel's codes are not the reference's.
    """
    from targets import c_model, emulate, toolchain, twin
    from targets.toolchain import Image
    layers = graphs()
    made = {name: c_model.generate(g, None, core, ("window",), f"m{i}") for i, (name, g) in enumerate(layers.items())}
    kernels = sorted({k for source in made.values() for k in source.kernels})
    on = emulate.machine(core.name)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        (out / "models.c").write_text("".join(s.code for s in made.values()) + c_model.kernel_table(kernels))
        (out / "kernels.h").write_text(header(layers, made))
        for i, source in enumerate(made.values()):
            (out / f"m{i}.h").write_text(source.header)
        engine = [toolchain.KERNELS / name for name in twin.ENGINE]
        elf = toolchain.image(core.name, [toolchain.HERE / "firmware" / "kernels_main.c", toolchain.SEMIHOST,
                                          out / "models.c", *engine, *twin.sources(kernels)], out / "kernels.elf",
                              on.flash, on.ram, stack=8192, include=[out], using=using)
        found, done = emulate.count(elf, on)
        if done.code:
            say.fail(f"on {core.name}: {done.text.strip()}", "the reference's codes")
        sizes = dict(Image(elf).code)
    split = {name: {f: n for f, n in found[name].functions.items() if f not in CALLER} for name in layers}
    return {name: {"kernel": made[name].kernels[0], "instructions": found[name].total, "functions": split[name],
                   "code_bytes": sum(sizes[f].size for f in split[name] if f in sizes)} for name in layers}


def header(layers: dict, made: dict) -> str:
    """kernels.h: inputs, expected codes, the list of cases."""
    import numpy as np

    from compress import reference
    rng, parts, rows = np.random.default_rng(0), ["#include \"ecg.h\"\n"], []

    def codes(name: str, values) -> None:
        parts.append(f"static const int8_t {name}[] = {{{','.join(map(str, np.ravel(values).tolist()))}}};\n")
    for i, (name, g) in enumerate(layers.items()):
        inputs = {t: rng.integers(-128, 128, (1, *g.tensors[t].shape)).astype(np.int8) for t in g.inputs}
        expected = reference.run(g, inputs)
        codes(f"out{i}", expected)
        for k, x in enumerate(inputs.values()):
            codes(f"in{i}_{k}", x)
        given = ", ".join(f"in{i}_{k}" for k in range(len(inputs)))
        sizes = ", ".join(str(x.size) for x in inputs.values())
        parts.append(f'#include "m{i}.h"\nstatic const int8_t *const in{i}[] = {{{given}}};\n'
                     f"static const uint32_t sizes{i}[] = {{{sizes}}};\n")
        rows.append(f'    {{"{name}", &m{i}, in{i}, sizes{i}, out{i}, {expected.size}}},\n')
    memory = max(s.arena + s.scratch for s in made.values()) + 4096
    return "".join([*parts, f"#define KERNELS_MEMORY {memory // 8 * 8}u\n",
                    "typedef struct {\n    const char *name;\n    const ecg_model *model;\n"
                    "    const int8_t *const *inputs;\n    const uint32_t *sizes;\n    const int8_t *expected;\n"
                    "    uint32_t codes;\n} kernels_case;\n",
                    "static const kernels_case kernels_cases[] = {\n", *rows, "};\n"])


def rows(core: str, weights: int, found: dict[str, dict], macs: dict[str, int]) -> list[dict]:
    """A row for each shape, beside the peers'."""
    def row(shape: str, instructions: float, count: int, of: dict) -> dict:
        ours = instructions / count
        peer = CMSIS_NN[core][list(SHAPES).index(shape)]
        return {"shape": shape, "kernel": of["kernel"], "weight_bits": weights, "count": count,
                "instructions": round(instructions), "each": ours, "code_bytes": of["code_bytes"], "cmsis_nn": peer,
                "cmsis_nn_over_this": peer / ours,
                **{name: figures[shape] for name, figures in OTHERS.get(core, {}).items() if shape in figures}}
    softmax, products = (5 * n for n in attention_parts(found))
    of = found["attention"]
    return [*(row(s, found[s]["instructions"], macs[s], found[s])
              for s in ("conv", "depthwise", "pointwise", "tokens", "dense")),
            row("softmax", softmax, SOFTMAX, of), row("products", products, PRODUCTS, of),
            row("add", found["add"]["instructions"], 8000, found["add"])]


def attention_parts(found: dict[str, dict]) -> tuple[int, int]:
    """(softmax, the rest) of the attention's instructions."""
    whole, deep_q, deep_v = (found[n]["instructions"] for n in ("attention", "deep q", "deep v"))
    softmax = found["attention"]["functions"].get(SOFTENS, 3 * whole - deep_q - deep_v)
    return softmax, whole - softmax


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--core", required=True, choices=CORES, help="processor, run in an emulator")
    p.add_argument("--compiler", choices=("gcc", "zig"), help="default: the one that deploy uses for the core")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results/kernels-CORE.json")
    return p


def main(args) -> dict:
    """Measure, print, keep."""
    from dataclasses import replace

    from compress import graph as graph_module
    from targets import emulate, toolchain
    from targets.pack import CORES as PACKED
    for absent in (toolchain.missing(args.core), emulate.missing()):
        if absent:
            raise say.MissingError(*absent.split(": ", 1))
    chosen = toolchain.compiler(args.core, args.compiler)
    cores = [PACKED[args.core]] + ([replace(PACKED[args.core], wide=True)] if PACKED[args.core].dsp else [])
    macs = {name: graph_module.macs(g) for name, g in graphs().items()}
    found = []
    for core in cores:
        found += [r for r in rows(args.core, 16 if core.wide else 8, measure(core, args.compiler), macs)
                  if not core.wide or r["shape"] in ("conv", "pointwise", "tokens", "dense")]
    say.table([(SHAPES[r["shape"]], r["kernel"], f"{r['weight_bits']}", f"{r['instructions']:,}", f"{r['each']:.2f}",
                f"{r['cmsis_nn']:g}", f"{r['cmsis_nn_over_this']:.1f}x", r.get("TinyEngine"), r["code_bytes"])
               for r in found],
              (f"layer on Cortex-{toolchain.core_name(args.core)}", "kernel", "weights", "instructions", "each",
               "CMSIS-NN", "its / ours", "TinyEngine", "code bytes"))
    say.info(f"each: instructions per multiply-accumulate; softmax and add: per element. {chosen.version()}; "
             "executed instructions in QEMU, not cycles")
    result = {"core": args.core, "compiler": chosen.version(), "counted": "executed instructions in QEMU",
              "rows": found}
    if args.write:
        runs.write(RESULTS, {f"kernels-{args.core}.json": json.dumps(result, indent=1) + "\n"})
    return result


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
