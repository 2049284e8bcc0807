# SPDX-License-Identifier: Apache-2.0
"""The whole engine under sanitizers, in memory of exactly its size, on signals nobody has measured; bad samples."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import graphs as make
import numpy as np
import pytest
from test_engine import beat_model, hop_model, patient

from compress import reference
from targets import c_model, pack, ram, toolchain, twin
from train import frontend, rpeak, score
from train.manifest import Input, Label, Trigger
from train.say import ManifestError

pytestmark = pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))
SANITIZE = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
            "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
HERE = Path(__file__).parent
CORES = [pack.CORES["host"], pack.CORES["m4"], replace(pack.CORES["m4"], name="m4 wide", wide=True),
         pack.CORES["m0plus"]]
FS, FS_IN, OFFSET = 250, 360, 64
LARGEST = 2 ** 31 - 1
PUSH, RESET, BAD, PATIENT, WINDOW, CODES, LATER = range(7)


def narrow(behind: int, after: int = 0) -> tuple:
    """(manifest, graph) of a small model of beats, whose window ends `behind` samples behind R."""
    shapes = {"ecg": (1, OFFSET + 1 + behind), "rr": (12,)}
    b = make.Builder(5, shapes)
    x = b.reduce("mean", b.conv(b.reshape("ecg", "channel"), 4, 9, stride=8))
    graph = b.graph(b.classifier(b.concat([x, b.dense("rr", 4)]), 3))
    m, _ = beat_model()
    inputs = (replace(m.inputs[0], shape=shapes["ecg"], leads=("I",)),
              next(i for i in m.inputs if i.kind == "rr"))
    return replace(m, inputs=inputs, window=OFFSET + 1 + behind,
                   trigger=Trigger("r-peak", offset=OFFSET, beats_after=after)), graph


# samples behind R for which no beat is lost, as c_model knows it
MOST = ram.QUEUE * 45 + rpeak.Detector(FS).after - 1


@dataclass
class Program:
    """tests/hostile.c with all models, and how each is packed."""

    path: Path
    names: list[str] = field(default_factory=list)

    def __call__(self, name: str, script: bytes, *words: str) -> list[str]:
        """The lines it prints; fails with the sanitizer's words."""
        file = self.path.with_suffix(".script")
        file.write_bytes(script)
        done = subprocess.run([self.path, str(self.names.index(name)), file, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """One sanitized program with every model in every packing."""
    folder = tmp_path_factory.mktemp("sanitized")
    models = {f"{name} {core.name}": (*model(), core, FS_IN) for core in CORES
              for name, model in (("hop", lambda: hop_model(leads=2)), ("beat", beat_model))}
    with pytest.MonkeyPatch.context() as patch:
        models |= {"at once": (*narrow(MOST), CORES[0], FS), "later": (*narrow(MOST, 1), CORES[0], FS)}
        sources = [c_model.generate(graph, m, core, prefix=f"m{i}", fs_in=fs)
                   for i, (m, graph, core, fs) in enumerate(models.values())]
        patch.setattr(c_model, "_served", lambda m: None)
        m, graph = narrow(MOST + 120)
        models["overfull"] = m, graph, CORES[0], FS
        sources.append(c_model.generate(graph, m, CORES[0], prefix=f"m{len(sources)}"))
    kernels = {k for s in sources for k in s.kernels}
    rows = "".join(f"    {{&m{i}, &m{i}_rate}},\n" for i in range(len(models)))
    (folder / "hostile.h").write_text("".join(f'#include "m{i}.h"\n' for i in range(len(models))) + (
        "typedef struct {\n    const ecg_model *model;\n    const ecg_rate *rate;\n} hostile_model;\n"
        "extern const hostile_model hostile_models[];\n"))
    for i, s in enumerate(sources):
        (folder / f"m{i}.h").write_text(s.header)
    (folder / "models.c").write_text("".join(s.code for s in sources) + '#include "hostile.h"\n'
                                     f"const hostile_model hostile_models[] = {{\n{rows}}};\n"
                                     + c_model.kernel_table(kernels))
    objects = twin.Objects(folder / "objects", SANITIZE)
    made = [objects(p) for p in [*twin.sources(kernels), *(twin.C / name for name in twin.ENGINE)]]
    twin.cc(SANITIZE, f"-I{folder}", HERE / "hostile.c", folder / "models.c", *made, "-o", folder / "hostile")
    return Program(folder / "hostile", list(models))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """name -> a plain build of the model, started anew."""
    folder = tmp_path_factory.mktemp("plain")
    objects, built = twin.Objects(folder / "objects"), {}

    def made(name: str, fs_in: float | None = FS_IN) -> twin.Twin:
        m, graph = {"hop": lambda: hop_model(leads=2), "beat": beat_model}[name]()
        if name not in built:
            built[name] = twin.build(graph, m, folder / name, objects=objects)
        return twin.Twin(built[name], graph, fs_in, m.fs)
    return made


def call(number: int, count: int = 0, data: np.ndarray | None = None) -> bytes:
    """A call of the script."""
    return np.array([number, count], "<i4").tobytes() + (b"" if data is None else np.ascontiguousarray(data).tobytes())


def hostile(seed: int) -> np.ndarray:
    """int32 (2, time) microvolts at 360 Hz: a patient, then rails, steps, noise of any size, spikes, silence."""
    rng = np.random.default_rng(seed)
    t = np.arange(4 * FS_IN)
    parts = [patient(FS_IN, 14, 2), rng.integers(-LARGEST - 1, LARGEST, (2, 3 * FS_IN), endpoint=True),
             np.where(t // rng.integers(1, 200) % 2, LARGEST, -LARGEST - 1) * np.array([[1], [0]]),
             rng.integers(-3000, 3000, (2, 4 * FS_IN)), np.where(rng.random((2, len(t))) < 0.01, 1 << 20, -5),
             np.zeros((2, 2 * FS_IN)), patient(FS_IN, 14, 2) + 300_000, np.full((2, 999), LARGEST)]
    return np.concatenate(parts, axis=1).astype(np.int32)


def calls_of(uv: np.ndarray, seed: int) -> list[tuple]:
    """A record in chunks of any size, among them none at all, with resets, bad marks and changes of the patient."""
    rng, at, calls = np.random.default_rng(seed), 0, []
    while at < uv.shape[1]:
        n = int(rng.choice([0, 1, 2, 7, 64, 1000]))
        calls.append((PUSH, uv[:, at:at + n]))
        at += n
        if rng.random() < 0.08:
            calls.append((int(rng.choice([BAD, BAD, BAD, PATIENT, RESET], p=[0.3, 0.3, 0.25, 0.1, 0.05])),
                          int(rng.integers(-5, 200))))
    return calls


def told(found: np.ndarray) -> list[str]:
    """Decisions as the program prints them."""
    numbers = ("sample", "present", "top", "unreliable")
    return [" ".join(map(str, [*(int(row[k]) for k in numbers), *row["logits"].tolist()])) for row in found]


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ("hop", "beat"))
def test_hostile_signals_touch_no_foreign_byte_and_decide_as_anywhere(name, core, program, twins):
    seed = CORES.index(core)
    plain, script, expected = twins(name), b"", []
    for number, data in calls_of(hostile(seed), seed):
        if number == PUSH:
            script += call(PUSH, data.shape[1], data.T)
            expected += told(plain.decide(data))
            continue
        script += call(number, data)
        {RESET: plain.reset, BAD: plain.bad, PATIENT: lambda: plain.patient(data, data & 3)}[number]()  # noqa: B023
    assert program(f"{name} {core.name}", script) == expected
    unreliable = [line.split()[3] for line in expected]
    assert len(expected) > 20 and {"0", "1"} == set(unreliable)


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ("hop", "beat"))
def test_windows_touch_no_foreign_byte_and_are_the_references(name, core, program):
    _, graph = hop_model(leads=2) if name == "hop" else beat_model()
    rng = np.random.default_rng(3)
    batch = {t: rng.choice([-128, -1, 0, 127], (6, *graph.tensors[t].shape)).astype(np.int8) for t in graph.inputs}
    script = b"".join(call(WINDOW) + b"".join(x[i].tobytes() for x in batch.values()) for i in range(6))
    found = [list(map(int, line.split())) for line in program(f"{name} {core.name}", script)]
    np.testing.assert_array_equal(found, reference.run(graph, batch))


def test_codes_in_chunks_touch_no_foreign_byte_and_are_the_references(program):
    _, graph = hop_model(leads=2)
    codes = np.random.default_rng(4).choice([-128, 127, 0], (2, 2000)).astype(np.int8)
    script = b"".join(call(CODES, len(part), part) for part in np.split(codes.T, [1, 2, 50, 700, 701, 1500]))
    found = [list(map(int, line.split()))[4:] for line in program("hop host", script)]
    np.testing.assert_array_equal(found, reference.stream(graph, {"ecg": codes}, 32))


def test_nothing_becomes_unreliable_after_half_of_all_sample_numbers(program):
    uv = patient(FS_IN, 4, 2).T
    steps = b"".join(call(PUSH, len(uv), uv) + call(LATER, 1 << 29) for _ in range(9))
    rows = [line.split() for line in program("hop host", steps)]
    assert int(rows[-1][0]) < int(rows[0][0]) + (1 << 30), "sample numbers have wrapped"
    assert len(rows) > 200 and {row[3] for row in rows} == {"0"}


# ---- no beat is lost

def pulses(rng: np.random.Generator, seconds: int, gaps, width, gain) -> np.ndarray:
    """int32 (time,) microvolts: complexes at gaps (ms) of any width (ms) and gain, both drawn for each."""
    x = np.zeros(seconds * FS + FS)
    at = FS
    while at < seconds * FS:
        w = rng.uniform(*width) * FS / 1000
        reach = int(4 * w) + 1
        t = np.arange(-reach, reach + 1)
        x[at - reach:at + reach + 1] += rng.uniform(*gain) * rng.choice([1, 1, -1]) * np.exp(-(t / w) ** 2)
        at += max(int(rng.uniform(*gaps) * FS / 1000), 1)
    return np.rint(1000 * x[:seconds * FS]).astype(np.int32)


def racing() -> np.ndarray:
    """int32 (1000 s,) at 250 Hz: 270 beats a minute and faster, growing and shrinking, with artefacts among them."""
    rng = np.random.default_rng(8)
    kinds = [((222, 223), (8, 9), (1, 1.01)), ((180, 186), (6, 8), (0.9, 1.1)), ((180, 260), (5, 20), (0.5, 2)),
             ((90, 200), (4, 12), (0.2, 4)), ((20, 400), (3, 30), (0.1, 6))]
    parts = [pulses(rng, 190, *kind) for kind in kinds]
    ramp = 1.22 ** (np.arange(50 * FS) // 46 % 40)      # every 184 ms one that is larger than the last
    parts.append(np.rint(20 * ramp * (np.arange(50 * FS) % 46 < 8)).clip(-10 ** 6, 10 ** 6).astype(np.int32))
    return np.concatenate(parts)


@pytest.mark.parametrize("name, most", (("at once", ram.QUEUE), ("later", ram.QUEUE - 1)))
def test_no_beat_is_lost_in_a_thousand_seconds_at_the_highest_rates(name, most, program):
    uv = racing()
    *decided, last = program(name, call(PUSH, len(uv), uv), "alone")
    _, beats, _, waiting, _, longest = last.split()
    print(name, len(uv) / FS, "s:", last)
    assert int(beats) == len(decided) + int(waiting) + (name == "later")       # the last one waits for the next
    assert int(beats) > 2000 and 2 <= int(longest) <= most


def test_a_longer_window_would_lose_beats(program):
    uv = racing()
    *decided, last = program("overfull", call(PUSH, len(uv), uv), "alone")
    assert int(last.split()[1]) > len(decided) + int(last.split()[3])


def many_classes() -> tuple:
    m, graph = hop_model()
    count = c_model.CLASSES + 1
    return replace(m, classes=tuple(Label(f"c{i}", f"TEST:{i}") for i in range(count)),
                   decision=replace(m.decision, offsets=(0,) * count)), graph


def of_one_beat() -> tuple:
    m, graph = hop_model()
    return replace(m, inputs=(*m.inputs, Input("rr", "rr", (12,), "1/32", 1.0))), graph


@pytest.mark.parametrize("model", (lambda: narrow(MOST + 1), lambda: narrow(MOST, 2), many_classes, of_one_beat),
                         ids=("too many beats at once", "two beats behind", "more classes than bits",
                              "features of one beat in a stream"))
def test_what_the_engine_does_not_do_is_refused(model):
    m, graph = model()
    with pytest.raises(ManifestError, match="in generated C"):
        c_model.generate(graph, m, CORES[0])


# ---- bad samples

@pytest.mark.parametrize("vote", (0, 1, 3))
def test_a_window_with_a_bad_sample_is_unreliable_and_has_no_vote(vote, tmp_path):
    m, graph = hop_model(leads=2)
    m = replace(m, decision=replace(m.decision, vote=vote))
    c = twin.Twin(twin.build(graph, m, tmp_path), graph)
    uv = patient(FS, 30, 2)
    last, parts = [], []            # index of the newest sample at each mark
    for a, b in ((0, 2000), (2000, 2001), (2001, 5333), (5333, 7500)):
        parts.append(c.decide(uv[:, a:b]))
        if b < 7500:
            c.bad()
            last.append(b - 1)
    found = np.concatenate(parts)
    codes = frontend.quantize(frontend.filter_record(m.frontend, uv, FS), 16)[:, frontend.SETTLE_S * FS:]
    logits = reference.stream(graph, {"ecg": codes}, m.trigger.hop)
    np.testing.assert_array_equal(found["logits"], logits)
    first = found["sample"].astype(int) - m.window + 1
    bad = np.any([(first <= at + frontend.SETTLE_S * FS) & (at < found["sample"]) for at in last], axis=0)
    np.testing.assert_array_equal(found["unreliable"], bad)
    good = score.decide(*score.vote(logits[~bad], vote), "argmax", m.decision.offsets)
    np.testing.assert_array_equal(found["top"][~bad], good)
    assert (found["top"][bad] == -1).all() and not found["present"][bad].any() and 20 < bad.sum() < 70


def test_a_beat_with_a_bad_sample_around_it_is_unreliable(twins):
    m, _ = beat_model()
    c, whole = twins("beat", None), twins("beat", None)
    uv = patient(FS, 40, 2)
    clean = whole.decide(uv)
    mark = int(clean["sample"][len(clean) // 2]) + 20       # within the complex of a beat in the middle
    parts = [c.decide(uv[:, :mark])]
    c.bad()
    found = np.concatenate([*parts, c.decide(uv[:, mark:])])
    np.testing.assert_array_equal(found["logits"], clean["logits"])
    later = np.arange(len(found)) >= len(parts[0])
    bad = later & (found["sample"].astype(int) - m.trigger.offset < mark + frontend.SETTLE_S * FS)
    np.testing.assert_array_equal(found["unreliable"], bad | (clean["unreliable"] == 1))
    assert 1 <= bad.sum() <= 12 and (found["top"][bad] == -1).all()


def test_a_reset_forgets_what_was_bad(twins):
    c, fresh = twins("hop", None), twins("hop", None)
    uv = patient(FS, 8, 2)
    c.decide(uv)
    c.bad()
    c.reset()
    np.testing.assert_array_equal(c.decide(uv), fresh.decide(uv))
