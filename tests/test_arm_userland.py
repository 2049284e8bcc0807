# SPDX-License-Identifier: Apache-2.0
"""The real aarch64 runtimes under an emulated Cortex-A53 and A76: what a board computes, from the runners it uses.

The builds are made on this computer and run there by a Python that has numpy and the runtimes alone.
"""

import functools
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from targets import arm, arm_userland, litert, target, toolchain, twin
from targets.arm_userland import CPUS
from targets.target import Built
from tests import graphs as make
from tests import tiny
from tests.once import once
from train import say
from train.say import MissingError

ROOT = Path(__file__).parents[1]
SYNTHETIC = {
    "every-kind": make.every_kind,
    "gates": make.gated,
    "norms-and-lstms": make.learned,
    "neighbourhood": functools.partial(make.attending, **make.FORMS["neighbourhood with bias"]),
    "pair-of-maps": functools.partial(make.attending, **make.FORMS["pair in a band"]),
}
WINDOWS = 6
MODELS = (*SYNTHETIC, *tiny.TINY)
# as C, too: compiled for which processors
TWINS = {"every-kind": CPUS, "norms-and-lstms": CPUS[:1]}
# file -> largest difference to the reference in LSB, as on this computer
NEAR = {"model.int8.onnx": 12, "model.mixed.onnx": 8, "model.int8.tflite": 12}


@pytest.fixture(scope="module")
def userland():
    """Set up at the first use."""
    absent = arm_userland.missing()
    if absent:
        pytest.skip(absent)
    try:
        return arm_userland.setup()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders with every form that arm and litert ship, and some as aarch64 libraries."""
    absent = arm.missing() or litert.missing() or (not find_spec("ziglang") and toolchain.GET_ZIG)
    if absent:
        pytest.skip(absent)

    def build(folder):
        for name, graph in SYNTHETIC.items():
            make.write_run(folder / name, graph(), golden=WINDOWS)
        for name in tiny.TINY:
            shutil.copytree(tiny.run(tmp_path_factory, name), folder / name)
        for name in MODELS:
            manifest, graph = target.open_run(folder / name)
            for module, out in (arm, "arm"), (litert, "litert"):
                module.lower(graph, manifest, folder / name / out)
        cross_compile(folder)
    return once(tmp_path_factory, "arm-models", build)


def cross_compile(folder):
    """host/<cpu>.so of TWINS for each processor; objects are kept, as they depend on no model."""
    zig = toolchain.Compiler("zig", (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined", "-target",
                                     "aarch64-linux-gnu.2.28"))
    kept = toolchain.cache() / zig.version().replace(" ", "-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "compiler", lambda core: zig)
        for cpu in CPUS:
            objects = twin.Objects(kept, (*twin.FLAGS, f"-mcpu={cpu.replace('-', '_')}"))
            for name in (name for name, cpus in TWINS.items() if cpu in cpus):
                manifest, graph = target.open_run(folder / name)
                out = folder / name / "host"
                twin.build(graph, manifest, out / cpu, objects=objects).rename(out / f"{cpu}.so")


@pytest.fixture(scope="module")
def emulated(userland, models, tmp_path_factory):
    """A function: processor -> what worker.py found there, by model and file."""
    def evaluate(cpu, folder):
        job = [(str(models / name), out, path.name) for name in MODELS for out in ("arm", "litert")
               for path in sorted((models / name / out).iterdir())]
        job += [(str(models / name), "host", f"{built}.so") for name, built in libraries(cpu)]
        (folder / "job.json").write_text(json.dumps(job))
        done = userland.python(cpu, ROOT / "tests" / "worker.py", folder / "job.json", folder / "out.npz", WINDOWS,
                               paths=[ROOT])
        assert done.returncode == 0, done.stderr[-2000:]

    @functools.cache
    def found(cpu):
        folder = once(tmp_path_factory, f"emulated-{cpu}", functools.partial(evaluate, cpu))
        with np.load(folder / "out.npz") as arrays:
            return dict(arrays)
    return found


def libraries(cpu):
    """(model, processor it is compiled for) of the libraries that a processor can run; what an A53 can, an A76 can."""
    return [(name, built) for name, cpus in TWINS.items() for built in cpus if built <= cpu]


def forms(folder, name):
    """(key, this computer's logits, the reference's) of each ONNX and TFLite file of a model."""
    manifest, graph = target.open_run(folder / name)
    inputs, expected = target.golden(folder / name, graph, WINDOWS)
    for module, out in (arm, "arm"), (litert, "litert"):
        for path in sorted((folder / name / out).iterdir()):
            yield f"{name}/{path.name}", module.run(Built(path, 0, None), inputs), expected, manifest


def gap(a, b):
    """Differences of logits in LSB."""
    return np.abs(a.astype(int) - b)


def test_the_userland_is_an_arm_with_the_tested_runtimes(userland):
    assert userland.versions["machine"] == "aarch64"
    assert [f"{name}=={userland.versions[name]}" for name in arm_userland.WHEELS] == arm_userland.wheels()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_form_computes_there_what_it_computes_here(emulated, models, cpu, name):
    for key, here, _, manifest in forms(models, name):
        there = emulated(cpu)[key]
        assert gap(there, here).max() <= 2, key
        assert np.array_equal(target.labels(manifest, there), target.labels(manifest, here)), key


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cpu", CPUS)
def test_a_quantized_form_is_near_the_reference_there(emulated, models, cpu, name):
    for key, _, expected, manifest in forms(models, name):
        there, file = emulated(cpu)[key], key.split("/")[1]
        if file in NEAR:
            assert gap(there, expected).max() <= NEAR[file], key
            assert np.array_equal(target.labels(manifest, there), target.labels(manifest, expected)), key


def test_both_processors_find_the_same_bits(emulated):
    a, b = map(emulated, CPUS)
    assert set(a) <= set(b) and len(a) > 2 * len(MODELS)
    assert [key for key in a if not np.array_equal(a[key], b[key])] == []


@pytest.mark.parametrize("cpu", CPUS)
def test_a_runner_for_live_use_finds_the_bits_of_the_batch(emulated, cpu):
    found = emulated(cpu)
    live = [key for key in found if key.endswith("/live")]
    assert len(live) == len(found) / 2
    assert [key for key in live if not np.array_equal(found[key], found[key[:-5]][:len(found[key])])] == []


@pytest.mark.parametrize("cpu", CPUS)
def test_the_generated_c_has_the_bits_of_the_reference(emulated, models, cpu):
    for name, built in libraries(cpu):
        _, expected = target.golden(models / name, target.open_run(models / name)[1], WINDOWS)
        assert np.array_equal(emulated(cpu)[f"{name}/{built}.so"], expected), (name, built)


# ---- the set-up itself

def test_other_computers_are_told_why(monkeypatch):
    monkeypatch.setattr(arm_userland.platform, "machine", lambda: "riscv64")
    assert "x86-64" in arm_userland.missing() and "riscv64" in arm_userland.missing()


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb"])
def test_without_debians_tools_it_is_refused(monkeypatch, tmp_path, tool):
    here = arm_userland.shutil.which
    monkeypatch.setattr(arm_userland.shutil, "which", lambda name: None if name == tool else here(name) or name)
    assert tool in arm_userland.missing(tmp_path / "land")
    assert say.run(arm_userland.main, arm_userland.parser(), ["--to", str(tmp_path / "land")]) == say.MISSING


def test_without_debians_keys_nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(arm_userland.shutil, "which", lambda name: name)
    monkeypatch.setattr(arm_userland, "KEYRING", tmp_path / "none.gpg")
    assert "debian-archive-keyring" in arm_userland.missing(tmp_path / "land")


@pytest.mark.skipif(not shutil.which("apt-get"), reason="apt-get not found")
def test_a_mirror_that_does_not_answer_leaves_nothing_behind(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "targets" / "arm_userland.py", "--to", tmp_path / "land",
                           "--mirror", (tmp_path / "nothing").as_uri()], capture_output=True, text=True)
    assert done.returncode == say.MISSING, done.stderr
    assert "trixie could not be had" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["land.lock"]


def test_a_folder_of_something_else_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(arm_userland, "missing", lambda *_: None)
    (tmp_path / "land").mkdir()
    (tmp_path / "land" / "thesis.txt").write_text("mine")
    assert say.run(arm_userland.main, arm_userland.parser(),
                   ["--to", str(tmp_path / "land"), "--mirror", "x"]) == say.WRONG_INPUT
    assert (tmp_path / "land" / "thesis.txt").read_text() == "mine"
