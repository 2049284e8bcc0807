# SPDX-License-Identifier: Apache-2.0
"""A quantized model as C: model.c with constant data and a commented call list, model.h with what a program must know.

Generated C holds no arithmetic. All of it is constant; a symbol prefix lets several models share an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from compress.graph import Graph
from targets import c_program, front_data, ram
from targets.c_program import Call, Layers, Place, Program, Streaming
from targets.pack import Array, Core, Layer
from train import rpeak
from train.manifest import Manifest
from train.say import ManifestError

FORMS = ("window", "stream")
SIDES = {"rr": "ECG_RR", "beats": "ECG_BEATS", "age": "ECG_AGE", "sex": "ECG_SEX"}
ACROSS = 20         # numbers on a line
CLASSES = 32        # bits of ecg_result.present
REFRACTORY_MS = 180     # between two beats of ecg_rpeak.c


@dataclass(frozen=True)
class Source:
    """What the generator made. `kernels`: names of ecg_kernels.def that the image must hold; `arena`, `scratch`,
    `state`: bytes of RAM; `counters`: tensors that a stream keeps count of; `ram`: bytes of the whole block, front end
    included."""

    code: str
    header: str
    kernels: tuple[str, ...]
    arena: int
    scratch: int
    state: int
    counters: int
    programs: dict[str, Program | Streaming]
    ram: int = 0


def generate(graph: Graph, manifest: Manifest | None, core: Core, forms=FORMS, prefix: str = "model",
             hop: int | None = None, fs_in: float | None = None) -> Source:
    """The C of a model for a core.

    forms: `window` evaluates a window by itself, `stream` streams; the latter is left out where the model does not
    stream. Without a manifest (a graph alone, streaming at a `hop` of samples) there is no front end and no decision
    rule. fs_in: rate of the front-end in Hz, by default the model's.
    """
    if manifest is not None:
        _served(manifest)
        hop = manifest.trigger.hop if manifest.streaming else None
    layers = Layers(graph, core)
    programs: dict[str, Program | Streaming] = {}
    if "window" in forms:
        programs["window"] = c_program.window(graph, layers)
    if "stream" in forms and graph.boundary is not None and hop is not None:
        programs["stream"] = c_program.streaming(graph, hop, layers)
    flat: list[Program] = []
    text = _Writer(graph, prefix)
    for name, form in programs.items():
        if isinstance(form, Streaming):
            text.stream(f"{prefix}_{name}", form)
            flat += [form.front, form.back]
        else:
            text.program(f"{prefix}_{name}", form)
            flat.append(form)
    stream = programs.get("stream")
    source = Source("", "", tuple(sorted({c.layer.kernel for p in flat for c in p.calls})),
                    max(p.arena for p in flat), max(p.scratch for p in flat), stream.state if stream else 0,
                    len(stream.front.tensors) if stream else 0, programs)
    return _described(source, text, graph, manifest, prefix, fs_in)


class _Writer:
    """Collects definitions; equal arrays and layers are written once."""

    def __init__(self, graph: Graph, prefix: str):
        self.graph, self.prefix = graph, prefix
        self.parts: list[str] = []
        self._arrays: dict[tuple[str, bytes], str] = {}
        self._layers: dict[str, str] = {}
        self._constants = {n.output: n for n in graph.nodes if n.kind == "constant"}

    def array(self, a: Array) -> str:
        """The name of a constant array."""
        values = np.ascontiguousarray(a.values)
        key = a.ctype, values.tobytes() + str(values.dtype).encode()
        if key not in self._arrays:
            name = self._arrays[key] = f"{self.prefix}_a{len(self._arrays)}"
            rows = values.tolist()
            if values.ndim == 2 and a.ctype == "ecg_scale":
                cells = [f"{{{', '.join(map(_number, row))}}}" for row in rows]
            else:
                cells = [_number(v) for v in values.ravel().tolist()]
            lines = [", ".join(cells[i:i + ACROSS]) for i in range(0, len(cells), ACROSS)]
            self.parts.append(f"static const {a.ctype} {name}[] ECG_DATA = {{\n    " + ",\n    ".join(lines) + "};\n")
        return self._arrays[key]

    def layer(self, layer: Layer) -> str:
        """The name of a constant struct."""
        fields = self.initialiser(layer)
        body = layer.struct + fields
        if body not in self._layers:
            name = self._layers[body] = f"{self.prefix}_l{len(self._layers)}"
            self.parts.append(f"static const {layer.struct} {name} ECG_DATA = {fields};\n")
        return self._layers[body]

    def initialiser(self, layer: Layer) -> str:
        """The fields of a struct; the arrays they point to are written in front."""
        return f"{{{', '.join(f'.{k} = {self.value(v)}' for k, v in layer.fields.items() if v is not None)}}}"

    def value(self, v) -> str:
        """A field's initialiser."""
        if isinstance(v, Array):
            return self.array(v)
        if isinstance(v, Layer):
            return "&" + self.layer(v)
        return f"{{{', '.join(map(_number, v))}}}" if isinstance(v, list | tuple) else _number(v)

    def program(self, name: str, p: Program) -> None:
        """Tables and the ecg_program `name`."""
        self.parts.append(f"static const ecg_program {name} ECG_DATA = {self._program(name, p)};\n")

    def _program(self, name: str, p: Program) -> str:
        wires = [t for c in p.calls for t in c.inputs] + p.given
        calls = [f"{self._comment(c)}    {{&{self.layer(c.layer)}, {name}_wires + {at}, {c.out}, {len(c.inputs)}, "
                 f"ECG_KERNEL_{c.layer.kernel}, {', '.join(map(str, c.flow))}}},\n"
                 for c, at in zip(p.calls, np.cumsum([0] + [len(c.inputs) for c in p.calls]), strict=False)]
        tensors = [f"    {self._tensor(t)},    /* {n} */\n" for t, n in zip(p.tensors, p.names, strict=True)]
        self.parts += [f"static const ecg_tensor {name}_tensors[] ECG_DATA = {{\n", *tensors, "};\n",
                       f"static const uint16_t {name}_wires[] ECG_DATA = {{{', '.join(map(str, wires)) or '0'}}};\n",
                       f"static const ecg_node {name}_nodes[] ECG_DATA = {{\n",
                       *(calls or ["    {0}\n"]), "};\n"]
        given = len(wires) - len(p.given)
        return (f"{{{name}_nodes, {name}_tensors, {name}_wires + {given}, {len(p.calls)}, {len(p.tensors)}, "
                f"{len(p.given)}, {p.out}}}")

    def _tensor(self, t: Place) -> str:
        flash = "NULL"
        if t.flash is not None:
            source, byte = t.flash
            flash = f"{self.array(Array('int8_t', self._constants[source].params['value']))} + {byte}"
        return (f"{{{flash}, {t.place}, {t.state}, {t.rows}, {t.pitch}, {t.columns}, {t.kept}, {t.stride}, "
                f"{int(t.ring)}}}")

    def _comment(self, c: Call) -> str:
        shapes = ", ".join(str(self.graph.tensors[t].shape) for t in c.node.inputs)
        return f"    /* {_plain(c.node.name)}: {c.node.kind} {shapes} -> {self.graph.tensors[c.node.output].shape} */\n"

    def stream(self, name: str, s: Streaming) -> None:
        """Tables and the ecg_stream `name`."""
        front, back = self._program(f"{name}_front", s.front), self._program(f"{name}_back", s.back)
        reads = ", ".join(map(str, s.last_read))
        self.parts += [f"static const uint16_t {name}_last_read[] ECG_DATA = {{{reads}}};\n",
                       f"static const ecg_stream {name} ECG_DATA = {{{front}, {back}, {name}_last_read, {s.hop}, "
                       f"{s.stride}, {s.ring}, {s.cut}, {s.start}, {s.window}, {s.state}}};\n"]


def _described(source: Source, text: _Writer, graph: Graph, manifest: Manifest | None, prefix: str,
               fs_in: float | None) -> Source:
    """The source with its ecg_model, its rate and its header."""
    classes = graph.tensors[graph.output].shape[0]
    fields = {"magic": "ECG_MAGIC", "version": "ECG_API_VERSION", "arena": source.arena, "scratch": source.scratch,
              "state": source.state, "counters": source.counters, "classes": classes,
              "leads": graph.tensors[graph.inputs[0]].shape[0], "side_count": len(graph.inputs) - 1}
    for name in source.programs:
        fields[name] = f"&{prefix}_{name}"
    title, rate, more = "a graph without a manifest", None, ""
    if manifest is not None:
        title = (f"model {_plain(manifest.name)}, {manifest.arch} {manifest.preset}, "
                 f"identity {manifest.identity.hex()[:16]}")
        fields |= _promise(text, manifest)
        rate = front_data.rate(fs_in or manifest.fs, manifest.fs)
        more = f"const ecg_rate {prefix}_rate ECG_DATA = {text.initialiser(rate)};\n"
    body = ",\n    ".join(f".{k} = {v if isinstance(v, str) else _number(v)}" for k, v in fields.items())
    head = (f"/* Generated by LeadEdge: {title}. Constant data and a call list; do not edit. */\n"
            f'#include "{prefix}.h"\n\n')
    end = f"{more}\nconst ecg_model {prefix} ECG_MODEL_HEAD = {{\n    {body}}};\n"
    bytes_ = ram.total(source, classes, manifest, rate)
    return replace(source, code=head + "".join(text.parts) + end, ram=bytes_,
                   header=_header(manifest, title, prefix, bytes_, fs_in))


def _served(m: Manifest) -> None:
    """ManifestError for what targets/c/ecg.c does not do."""
    def need(ok: bool, key: str, got, expected: str) -> None:
        if not ok:
            raise ManifestError(f"{key} is {got}", f"{expected} in generated C")
    t = m.trigger
    need(len(m.classes) <= CLASSES, "the number of classes", len(m.classes), f"at most {CLASSES}")
    need(not m.streaming or "rr" not in {i.kind for i in m.inputs}, "an input of a stream", "rr",
         "an r-peak trigger for features of one beat,")
    if t.kind != "r-peak":
        return
    need(t.beats_after <= 1, "trigger.beats_after", t.beats_after, "0 or 1")
    # beats are decided REFRACTORY_MS apart at least, no sooner than `after` behind their R; ram.QUEUE of them can wait
    most = ram.QUEUE * ((REFRACTORY_MS * m.fs + 500) // 1000) + rpeak.Detector(m.fs).after - 1
    need(m.window - 1 - t.offset <= most, "the part of the window behind R", f"{m.window - 1 - t.offset} samples",
         f"at most {most}")


def _promise(text: _Writer, m: Manifest) -> dict:
    """Fields of the ecg_model that the manifest decides."""
    sides = [SIDES[i.kind] for i in m.inputs if i.kind != "waveform"]
    return {
        "identity": "{" + ", ".join(map(str, m.identity)) + "}", "name": _quoted(m.name),
        "front": "&" + text.layer(front_data.front_spec(m)),
        "offsets": text.array(Array("int32_t", np.array(m.decision.offsets))),
        "fs": m.fs, "samples": m.window, "hop": m.trigger.hop, "r_offset": m.trigger.offset,
        "beats_after": m.trigger.beats_after, "trigger": "ECG_R_PEAK" if m.trigger.kind == "r-peak" else "ECG_HOP",
        "rule": "ECG_THRESHOLD" if m.decision.rule == "threshold" else "ECG_ARGMAX", "vote": m.decision.vote,
        "sides": "{" + ", ".join(sides or ["0"]) + "}",
    }


def _header(m: Manifest | None, title: str, prefix: str, bytes_: int, fs_in: float | None) -> str:
    """The header; everything a program may want to know at compile time."""
    guard, upper = f"{prefix.upper()}_H", prefix.upper()
    lines = [f"/* Generated by LeadEdge: {title}. */", f"#ifndef {guard}", f"#define {guard}", '#include "ecg.h"', "",
             f"extern const ecg_model {prefix};", f"#define {upper}_RAM {bytes_}    /* what ecg_memory() says */"]
    if m is not None:
        lines += [f"extern const ecg_rate {prefix}_rate;    /* from {fs_in or m.fs:g} Hz */", "",
                  f"#define {upper}_FS {m.fs}    /* Hz */", f"#define {upper}_LEADS {m.waveform.shape[0]}",
                  f"#define {upper}_WINDOW {m.window}    /* samples */", f"#define {upper}_HOP {m.trigger.hop}",
                  f"#define {upper}_CLASSES {len(m.classes)}",
                  f"#define {upper}_IDENTITY {_quoted(m.identity.hex())}"]
        lines += [f"#define {upper}_CLASS_{re.sub(r'[^A-Za-z0-9]', '_', c.name)} {i}   /* {_plain(c.code)} */"
                  for i, c in enumerate(m.classes)]
    return "\n".join([*lines, "", "#endif", ""])


def kernel_table(kernels) -> str:
    """The C file that tells an image which kernels it holds: those of one model or of several."""
    names = sorted(set(kernels))
    rows = "".join(f"    [ECG_KERNEL_{k}] = ecg_{k},\n" for k in names)
    return f'#include "ecg_net.h"\n\necg_kernel *const ecg_kernels[ECG_KERNELS] = {{\n{rows}}};\n'


def _number(v) -> str:
    """An integer constant: the least one has no literal in C."""
    v = v if isinstance(v, str) else int(v)
    return v if isinstance(v, str) else f"(-{-v - 1} - 1)" if v in (-(1 << 31), -(1 << 63)) else \
        f"{v}LL" if abs(v) >= 1 << 31 else str(v)


def _plain(text: str) -> str:
    """Text that can stand in a comment."""
    return re.sub(r"[^\x20-\x7e]", "?", text).replace("*/", "* /").replace("/*", "/ *")


def _quoted(text: str) -> str:
    """A C string."""
    return '"' + "".join(c if c.isalnum() or c in " .,:;+-_()[]" else f"\\{ord(c) & 0xff:03o}" for c in text) + '"'
