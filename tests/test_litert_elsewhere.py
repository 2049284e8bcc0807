# SPDX-License-Identifier: Apache-2.0
"""The int8 .tflite files of every `tiny` preset in runtimes that are not ours: tflite-runtime 2.14, TFLite Micro, Vela.

The first two round twice where the reference and LiteRT's kernels of today round once, so that some codes in a thousand
of every convolution land one beside, and layers behind it magnify that. What matters is that the labels stay.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from targets import litert, litert_npu, target
from tests import graphs as make
from tests import sites, tiny
from tests.once import once
from train import say
from train.say import MissingError, UserError

ROOT = Path(__file__).parents[1]
absent = litert.missing()
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))
needs_vela = pytest.mark.skipif(litert_npu.missing() is not None, reason=str(litert_npu.missing()))

# runtime -> what it is called in worker.py, what pip installs
RUNTIMES = {
    "tflite-runtime": ("litert", "tflite-runtime==2.14.0", "numpy<2"),
    "TFLite Micro": ("micro", "tflite-micro==0.dev20261023182759"),
}
LABELS, P99, WORST = 0.98, 6, 12        # share of equal labels; difference of logits in LSB
# share of the operators that an Ethos-U55 runs: norms and LSTMs have products of int16, which stay on the processor
ON_NPU = {"hierarchical": 0.75, "efficient": 0.85}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function: name -> run folder with the int8 file."""
    def lowered(name):
        def build(folder):
            shutil.copytree(tiny.run(tmp_path_factory, name), folder, dirs_exist_ok=True)
            manifest, graph = target.open_run(folder)
            litert.lower(graph, manifest, folder / "litert")
        return once(tmp_path_factory, f"tflite-{name}", build)
    return lowered


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """A function: runtime -> what worker.py found by it, for all models."""
    def found(runtime):
        name, *requirements = RUNTIMES[runtime]
        site = sites.site(*requirements)

        def evaluate(folder):
            job = [(str(models(model)), name, "model.int8.tflite") for model in tiny.TINY]
            (folder / "job.json").write_text(json.dumps(job))
            done = sites.python(site, ROOT / "tests" / "worker.py", folder / "job.json", folder / "out.npz",
                                paths=[ROOT])
            assert done.returncode == 0, done.stderr[-2000:]
        with np.load(once(tmp_path_factory, f"by-{name}", evaluate) / "out.npz") as arrays:
            return dict(arrays)
    return found


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_runtime_finds_the_labels_of_the_reference(evaluated, models, runtime, name):
    manifest, graph = target.open_run(models(name))
    _, expected = target.golden(models(name), graph)
    got = evaluated(runtime)[f"{models(name).name}/model.int8.tflite"]
    agreement = target.compare(manifest, expected, got)
    print(f"{runtime}, {name}: {agreement}")
    assert len(np.unique(target.labels(manifest, expected))) > 1
    assert agreement.labels >= LABELS and agreement.p99 <= P99 and agreement.worst <= WORST


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_its_runner_for_live_use_finds_the_same(evaluated, runtime):
    found = evaluated(runtime)
    live = [key for key in found if key.endswith("/live")]
    assert len(live) == len(tiny.TINY)
    assert all(np.array_equal(found[key], found[key[:-5]][:len(found[key])]) for key in live)


# ---- Vela

@needs_vela
@pytest.mark.parametrize("name", tiny.TINY)
def test_an_ethos_u55_runs_the_operators(models, tmp_path, name):
    found = litert_npu.compile(models(name) / "litert" / "model.int8.tflite", tmp_path)
    print(name, litert_npu.describe(found))
    assert found["share"] >= ON_NPU.get(name, 1), found["on_cpu"]
    assert litert_npu.operators((tmp_path / found["file"]).read_bytes())[litert_npu.COMMANDS] >= 1
    assert 0 < found["memory_used"]["SRAM"] < 512 * 1024


@needs_vela
@pytest.mark.parametrize("npu", ["ethos-u55-32", "ethos-u65-512", "ethos-u85-256"])
def test_other_npus_are_compiled_for(models, tmp_path, npu):
    found = litert_npu.compile(models("lga") / "litert" / "model.int8.tflite", tmp_path, npu)
    assert found["share"] >= 0.95 and found["file"] == f"model.int8.{npu}.tflite"
    assert "not measured" in litert_npu.describe(found)


@needs_vela
def test_what_the_npu_cannot_run_is_named(models, tmp_path):
    found = litert_npu.compile(models("lga") / "litert" / "model.float.tflite", tmp_path)
    assert found["share"] < 0.5 and found["on_cpu"]["CONV_2D"] > 0
    assert "left to the processor" in litert_npu.describe(found) and "CONV_2D" in litert_npu.describe(found)


@needs_vela
def test_an_npu_that_does_not_exist_names_those_that_do(tmp_path):
    with pytest.raises(UserError, match="ethos-u55-129") as raised:
        litert_npu.compile(tmp_path / "model.int8.tflite", tmp_path, "ethos-u55-129")
    assert "ethos-u55-128" in raised.value.fix


@needs_vela
def test_a_file_that_is_none_is_velas_to_refuse(tmp_path):
    (tmp_path / "model.int8.tflite").write_bytes(b"not a model")
    with pytest.raises(UserError, match="Vela could not compile"):
        litert_npu.compile(tmp_path / "model.int8.tflite", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.int8.tflite"]


def test_without_vela_the_command_that_gets_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(litert_npu, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install ethos-u-vela"):
        litert_npu.compile(tmp_path / "model.int8.tflite", tmp_path)


@needs_vela
def test_the_script_compiles_what_was_built(tmp_path):
    run = make.write_run(tmp_path / "r", make.streaming(), golden=16)
    manifest, graph = target.open_run(run)
    litert.lower(graph, manifest, run / "litert")
    words = [sys.executable, ROOT / "targets" / "litert_npu.py", "--run", run, "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == say.WRONG_INPUT and "--target litert" in done.stderr      # it is not built yet
    path = run / "litert" / "model.int8.tflite"
    target.record_build(run, "litert", target.Built(path, path.stat().st_size, None), manifest.identity)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["share"] == 1 and (run / "litert" / "model.int8.ethos-u55-128.tflite").is_file()
