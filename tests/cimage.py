# SPDX-License-Identifier: Apache-2.0
"""Many calls of C kernels in one image for an emulated core, each compared there with what it must give.

    counts = cimage.check("m4", ["conv.c"], [cimage.Case("a name", layer, [x], want)])

Rows lie `gap` bytes apart from each other, tensors at odd addresses; what must not be written is watched. An
AssertionError names the calls that went wrong. counts[name].total is the number of executed instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from targets import emulate, toolchain
from targets.pack import Array, Layer
from train.say import UserError

C = Path(__file__).parent.parent / "targets" / "c"
ROOM = 64           # bytes behind output and scratch that are watched
HARNESS = """
#include <string.h>

static uint64_t scratch[%(scratch)d / 8 + 1 + ROOM];
static int8_t out[%(out)d + ROOM];

/* codes of the output and what lies around its rows and behind the scratch */
static int check(const char *name, const ecg_view *v, const int8_t *want, int32_t rows, int32_t used)
{
    const int32_t columns = v->end - v->first;
    int wrong = 0;

    for (int32_t r = 0; r < rows; r++)
        for (int32_t t = 0; t < v->pitch; t++)
            wrong += v->data[r * v->pitch + t] != (t < columns ? *want++ : 0x33);
    for (int32_t i = 0; i < ROOM; i++)
        wrong += v->data[rows * v->pitch + i] != 0x33 || ((int8_t *)scratch)[used + i] != 0x5A;
    wrong += out[0] != 0x33;
    if (wrong) {
        ecg_print(name);
        ecg_print(": ");
        ecg_print_int(wrong);
        ecg_print(" bytes differ\\n");
    }
    return wrong != 0;
}
"""


@dataclass(frozen=True)
class Case:
    """One call. inputs and want: int8 (channel, lead, time); first, out_first: the columns that they start with."""

    name: str
    layer: Layer
    inputs: list[np.ndarray]
    want: np.ndarray
    gap: int = 0
    first: int = 0
    out_first: int = 0


def check(core: str, sources: list[str], cases: list[Case], using: str | None = None):
    """Run the cases; returns emulate.Counts by name. Skips when a tool is absent."""
    absent = emulate.missing() or toolchain.missing(core)
    if absent or (using and using not in toolchain.available(core)):
        pytest.skip(absent or f"{using} is not installed")
    sizes = {"out": 1 + max(_extent(c.want, c.gap) for c in cases), "scratch": max(c.layer.scratch for c in cases)}
    parts = [f"enum {{ ROOM = {ROOM} }};", HARNESS % sizes]
    calls = []
    for i, case in enumerate(cases):
        data, call = _case(i, case)
        parts.append(data)
        calls.append(call)
    main = "int main(void)\n{\n    int wrong = 0;\n\n" + "".join(calls) + "    ecg_exit(wrong != 0);\n}\n"
    try:
        return emulate.bench_c(core, [C / s for s in sources], "\n".join([*parts, main]), include=[C], using=using)
    except UserError as error:
        raise AssertionError(str(error)) from error


def _case(i: int, case: Case) -> tuple[str, str]:
    """(constant data, the call) of a case."""
    data, fields = [], []
    for name, value in case.layer.fields.items():
        if isinstance(value, Array):
            data.append(_array(f"const {value.ctype}", f"layer{i}_{name}", value.values))
            value = f"layer{i}_{name}"
        elif isinstance(value, list):
            value = "{" + ", ".join(map(str, value)) + "}"
        fields.append(f".{name} = {0 if value is None else value}")
    data.append(f"static const {case.layer.struct} layer{i} = {{{', '.join(fields)}}};")
    data.append(_array("const int8_t", f"want{i}", case.want))
    views = []
    for j, x in enumerate(case.inputs):
        data.append(_array("int8_t", f"in{i}_{j}", np.concatenate([[99], _rows(x, case.gap)])))
        views.append(_view(f"in{i}_{j} + 1", x, case.gap, case.first))
    rows, to = case.want.shape[0] * case.want.shape[1], _view("out + 1", case.want, case.gap, case.out_first)
    return "\n".join(data), (
        f"    {{\n        const ecg_view in[] = {{{', '.join(views)}}}, to = {to};\n\n"
        f"        memset(scratch, 0x5A, sizeof scratch);\n        memset(out, 0x33, sizeof out);\n"
        f"        ecg_mark(\"{case.name}\");\n        ecg_{case.layer.kernel}(&layer{i}, in, &to, scratch);\n"
        f"        ecg_mark(\"\");\n"
        f"        wrong |= check(\"{case.name}\", &to, want{i}, {rows}, {case.layer.scratch});\n    }}\n")


def _array(ctype: str, name: str, values: np.ndarray) -> str:
    pairs = ctype == "const ecg_scale"
    numbers = (f"{{{bias}, {mul}}}" for bias, mul in values) if pairs else (str(int(v)) for v in values.reshape(-1))
    return f"static {ctype} {name}[] = {{{', '.join(numbers)}}};"


def _view(data: str, x: np.ndarray, gap: int, first: int) -> str:
    return f"{{(int8_t *)({data}), {x.shape[2] + gap}, {first}, {first + x.shape[2]}}}"


def _extent(x: np.ndarray, gap: int) -> int:
    return x.shape[0] * x.shape[1] * (x.shape[2] + gap)


def _rows(x: np.ndarray, gap: int) -> np.ndarray:
    """Rows with codes between them that nothing may depend on."""
    wide = np.full((x.shape[0] * x.shape[1], x.shape[2] + gap), 77, np.int8)
    wide[:, :x.shape[2]] = x.reshape(len(wide), -1)
    return wide.reshape(-1)
