# SPDX-License-Identifier: Apache-2.0
"""The manifest `model.json`: what a model promises to the firmware, the bridge and the people who use it.

Standard library only, because it travels to every device. Every key is required and every unknown key is an error; a
draft (before `compress/qat.py` froze it) has null in `decision` and `graph_sha256` and cannot be given to a device.

The identity of a model is the SHA-256 of the canonical JSON of the promise: everything but `provenance`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from train.say import ManifestError

SCHEMA = "1.0"
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6",
         "MLII", "MLI", "MLIII", "ECG")     # standard 12, Holter-modified limb leads, and an unnamed single lead
UNITS = {"waveform": "uV", "rr": "1/32", "beats": "1/32", "age": "year", "sex": "code"}


@dataclass(frozen=True)
class Input:
    """One named input of the graph. `lsb` is the value of one int8 step in `unit`; the zero point is always 0."""

    name: str
    kind: str                       # waveform | rr | beats | age | sex
    shape: tuple[int, ...]          # waveform (lead, window); beats (beat, feature); others (feature,)
    unit: str
    lsb: float
    leads: tuple[str, ...] = ()     # waveform only, in the order of axis 0


@dataclass(frozen=True)
class Label:
    """A class and its code in a public vocabulary, e.g. Label("A", "SNOMED:164889003")."""

    name: str
    code: str


@dataclass(frozen=True)
class Trigger:
    """When the model runs: every `hop` samples, or at each R peak once `beats_after` further beats are known."""

    kind: str                       # hop | r-peak
    hop: int = 0                    # samples at fs, kind "hop"
    offset: int = 0                 # index of R in the window, kind "r-peak"
    beats_after: int = 0


@dataclass(frozen=True)
class Decision:
    """The decision rule on int8 logits, integers only.

    argmax: class = argmax(sum of the last `vote` window logits + vote_n * offsets); threshold: class k is present when
    the sum reaches vote_n * offsets[k]. `offsets` count 1/256 of a logit LSB. Probability = softmax (or sigmoid) of
    the mean int8 logit times nats_per_lsb_q16 / 65536, the temperature.
    """

    rule: str                       # argmax | threshold
    offsets: tuple[int, ...]        # 1/256 of a logit LSB, one per class
    nats_per_lsb_q16: int
    vote: int                       # windows averaged; 0 = all windows since the start of the recording


@dataclass(frozen=True)
class Manifest:
    """The whole promise. See the classes above for the parts; `frontend` is the dict of `frontend.design`."""

    name: str
    arch: str
    preset: str
    task: str
    classes: tuple[Label, ...]
    multi_label: bool
    fs: int                         # Hz, the rate the network sees
    window: int                     # samples of one evaluation, the context of local layers included
    inputs: tuple[Input, ...]
    trigger: Trigger
    streaming: bool
    frontend: dict
    decision: Decision | None = None
    graph_sha256: str | None = None
    provenance: dict = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def waveform(self) -> Input:
        """The waveform input; every model has exactly one."""
        return next(i for i in self.inputs if i.kind == "waveform")

    @property
    def frozen(self) -> bool:
        """True once the graph's hash and the decision rule are in."""
        return self.decision is not None and self.graph_sha256 is not None

    @property
    def identity(self) -> bytes:
        """32 bytes: SHA-256 of the canonical JSON of everything but provenance."""
        promise = {k: v for k, v in asdict(self).items() if k != "provenance"}
        return hashlib.sha256(json.dumps(promise, sort_keys=True, separators=(",", ":")).encode()).digest()


_PARTS = {Manifest: {"classes": Label, "inputs": Input, "trigger": Trigger, "decision": Decision}}


def dumps(manifest: Manifest) -> str:
    """The manifest as readable JSON; check() has passed on it."""
    check(manifest)
    return json.dumps(asdict(manifest), indent=2) + "\n"


def loads(text: str, where: str = "model.json") -> Manifest:
    """Parse and check a manifest; ManifestError names the key that is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{where} is not JSON: {error}", "a manifest written by train/fit.py") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{where} holds {_name(data)}", "a JSON object")
    schema = data.get("schema")
    if not isinstance(schema, str) or schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise ManifestError(f"{where}: schema {schema!r}", f"major version {SCHEMA.split('.')[0]}",
                            "use the LeadEdge release that wrote it, or train again with this one")
    manifest = _build(Manifest, data, where)
    check(manifest, where)
    return manifest


def load(run: str | Path) -> Manifest:
    """The manifest of a run folder."""
    path = Path(run) / "model.json"
    if not path.is_file():
        raise ManifestError(f"no model.json in {run}", "a run folder",
                            f"python compress/qat.py --arch local-lead --run {run}")
    return loads(path.read_text(), str(path))


def _name(value) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "an integer",
            float: "a number", type(None): "null"}.get(type(value), type(value).__name__)


_KINDS = {"str": str, "int": int, "bool": bool, "float": float, "dict": dict}


def _build(cls, data, where: str):
    """A dataclass from a JSON object: unknown, missing and mistyped keys are errors that name the key."""
    if not isinstance(data, dict):
        raise ManifestError(f"{where} is {_name(data)}", "an object")
    fields = cls.__dataclass_fields__
    for key in data:
        if key not in fields:
            raise ManifestError(f"{where}: unknown key {key!r}", ", ".join(fields))
    values = {}
    for key, f in fields.items():
        if key not in data:
            raise ManifestError(f"{where}: key {key!r} is missing", f.type)
        values[key] = _value(f.type, _PARTS.get(cls, {}).get(key), data[key], f"{where}: {key}")
    return cls(**values)


def _value(kind: str, part, value, where: str):
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple"):
        if not isinstance(value, list):
            raise ManifestError(f"{where} is {_name(value)}", "a list")
        inner = kind[kind.index("[") + 1:kind.index(",")]
        return tuple(_value(inner, part, v, f"{where}[{i}]") for i, v in enumerate(value))
    if part is not None:
        return _build(part, value, where)
    want = _KINDS[kind.split(" ")[0]]
    right = isinstance(value, want) or (want is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and want is not bool):
        raise ManifestError(f"{where} is {_name(value)}", _name(want()))
    return want(value)


def check(m: Manifest, where: str = "model.json") -> None:
    """Raise ManifestError when the parts of a manifest contradict each other."""
    def need(ok, key, got, expected):
        if not ok:
            raise ManifestError(f"{where}: {key} is {got}", expected)
    need(m.classes, "classes", "empty", "at least one class")
    need(len({c.name for c in m.classes}) == len(m.classes), "classes", [c.name for c in m.classes], "each name once")
    need(0 < m.fs <= 4000, "fs", m.fs, "1..4000 Hz")
    need(m.window > 0, "window", m.window, "a number of samples")
    kinds = [i.kind for i in m.inputs]
    need(kinds.count("waveform") == 1, "inputs", kinds, "exactly one waveform")
    for i in m.inputs:
        _check_input(m, i, need)
    t = m.trigger
    need(t.kind in ("hop", "r-peak"), "trigger.kind", repr(t.kind), "hop or r-peak")
    need(t.kind != "hop" or t.hop > 0, "trigger.hop", t.hop, "> 0 samples")
    need(t.kind != "r-peak" or 0 <= t.offset < m.window, "trigger.offset", t.offset, f"0..{m.window - 1}")
    need(t.beats_after >= 0, "trigger.beats_after", t.beats_after, ">= 0")
    need(not m.streaming or t.kind == "hop", "streaming", m.streaming, "false for an r-peak trigger")
    need(_integers(m.frontend), "frontend", "not integers only", "the output of frontend.design")
    d = m.decision
    if d is not None:
        need(d.rule in ("argmax", "threshold"), "decision.rule", repr(d.rule), "argmax or threshold")
        need(len(d.offsets) == len(m.classes), "decision.offsets", d.offsets, f"{len(m.classes)} integers")
        need(d.vote >= 0, "decision.vote", d.vote, ">= 0 windows")
        need(d.nats_per_lsb_q16 > 0, "decision.nats_per_lsb_q16", d.nats_per_lsb_q16, "> 0")
    if m.graph_sha256 is not None:
        need(len(m.graph_sha256) == 64, "graph_sha256", m.graph_sha256, "64 hexadecimal digits")


def _check_input(m: Manifest, i: Input, need) -> None:
    key = f"input {i.name!r}"
    need(i.kind in UNITS, f"{key}: kind", repr(i.kind), " or ".join(UNITS))
    need(i.unit == UNITS[i.kind], f"{key}: unit", repr(i.unit), repr(UNITS[i.kind]))
    need(i.lsb > 0, f"{key}: lsb", i.lsb, "> 0")
    need(i.shape and all(n > 0 for n in i.shape), f"{key}: shape", i.shape, "positive sizes")
    if i.kind == "waveform":
        whole = (len(i.leads), m.window)
        need(i.shape == whole, f"{key}: shape", i.shape, f"(leads, window) = {whole}")
        once = len(set(i.leads)) == len(i.leads) and set(i.leads) <= set(LEADS)
        need(once, f"{key}: leads", i.leads, f"each once, of {', '.join(LEADS)}")
    else:
        need(not i.leads, f"{key}: leads", i.leads, "none for this kind")


def _integers(value) -> bool:
    """True when every leaf is an integer (or a string naming one)."""
    if isinstance(value, dict):
        return all(_integers(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_integers(v) for v in value)
    return isinstance(value, (int, str)) and not isinstance(value, bool)
