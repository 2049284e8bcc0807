# SPDX-License-Identifier: Apache-2.0
"""The file that measures on a Jetson, run as a user runs it, beside stand-ins for trtexec 8.2, 10.3 and 11.0.

No Jetson took part: what is tested is that the right options are passed and that what comes back is read rightly.
"""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from targets import jetson_device as device
from tests.jetson_fakes.boards import DEVICE, HWMON, IIO, KINDS, Jetson

QUICK = ("--seconds", "0.15", "--warm-up", "0.05", "--idle-seconds", "0.15")


def command(jetson: Jetson, *options: str, python: str = sys.executable, **environment: str):
    """Run the file in its folder; without site packages, since a Jetson's Python has none of ours."""
    argv = [python, "-S", "jetson_device.py", *options]
    return subprocess.run(argv, cwd=jetson.folder, capture_output=True, text=True,
                          env=jetson.environment | environment)


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    """kind -> (board, its result, what was said), measured once."""
    @functools.cache
    def measured(kind: str):
        jetson = Jetson(tmp_path_factory.mktemp(kind), kind, windows=3)
        jetson.tool("sudo", f"touch {jetson.base}/sudo")
        done = command(jetson, *QUICK, "--cpu-python", "false")
        assert done.returncode == 0, done.stderr
        return jetson, json.loads(done.stdout), done.stderr
    return measured


every = pytest.mark.parametrize("kind", KINDS)      # TensorRT 8.2, 10.3 and 11.0


def test_the_file_is_python_3_6():
    text = DEVICE.read_text()
    ast.parse(text, feature_version=(3, 6))
    tree = ast.parse(text)
    loaded = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
              for alias in node.names}
    assert loaded - {"tensorrt", "numpy", "onnxruntime"} <= set(sys.stdlib_module_names) - {"dataclasses", "tomllib"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    newer = {"capture_output", "text", "missing_ok", "strict", "dirs_exist_ok", "removeprefix", "removesuffix",
             "pairwise", "comb", "prod", "dist", "quantiles", "fmean", "batched", "cache", "cached_property",
             "perf_counter_ns", "monotonic_ns", "time_ns", "nullcontext", "is_relative_to", "bit_count"}
    used = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & newer
    assert "shlex.join" not in text and "from __future__" not in text


def old_python() -> str | None:
    """A Python 3.6 to 3.8, as JetPack 4 and 5 have, where this computer has one."""
    names = [Path.home() / f".pyenv/versions/{version}/bin/python" for version in ("3.6.15", "3.8.18")]
    for name in ["python3.6", "python3.7", "python3.8", *map(str, names)]:
        try:
            if subprocess.run([name, "-c", "pass"], capture_output=True).returncode == 0:
                return name
        except OSError:
            continue
    return None


def test_the_file_runs_on_the_python_of_an_old_jetpack(tmp_path):
    python = old_python()
    if python is None:
        pytest.skip("no Python 3.6 to 3.8: pyenv install 3.6.15")
    jetson = Jetson(tmp_path, "nano")
    done = command(jetson, *QUICK, "--cpu-python", "false", python=python)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["won"]["form"] == "fp16"


@every
def test_a_result_says_on_what_it_was_measured(of, kind):
    jetson, result, _ = of(kind)
    environment = result["environment"]
    assert environment["tensorrt"] == {"nano": "8.2.1", "orin": "10.3.0", "agx": "11.0.0"}[kind]
    assert environment["soc"] == ("tegra210" if kind == "nano" else "tegra234")
    assert environment["cuda"] == ("10.2.300" if kind == "nano" else "12.6.11")
    assert environment["device"].startswith("NVIDIA Jetson") and "\0" not in environment["device"]
    assert environment["power_mode"] == "MAXN_SUPER" and environment["jetpack"] == "6.2+b77"
    assert environment["l4t"].startswith("R3") and "GCID" not in environment["l4t"]
    assert environment["before"]["clocks"]["gpu"]["max"] > 9e8
    assert result["identity"] == jetson.job["identity"] and result["sha256"] == jetson.job["sha256"]
    zones = environment["after"]["temperatures"]
    assert zones == ({"AO-therm": 41.0} if kind == "nano" else {"cpu-thermal": 48.25})


@every
def test_nothing_is_done_as_root_unasked(of, kind):
    assert not (of(kind)[0].base / "sudo").exists()


@every
def test_unlocked_clocks_are_named(of, kind):
    _jetson, result, _ = of(kind)
    assert ("clocks not locked" in " ".join(result["warnings"])) == (kind == "nano")


@every
def test_each_version_gets_its_own_options(of, kind):
    jetson, _, _ = of(kind)
    builds = [" ".join(argv) for argv in jetson.calls() if any(word.startswith("--onnx") for word in argv)]
    timings = [" ".join(argv) for argv in jetson.calls() if any(word.startswith("--exportTimes") for word in argv)]
    goldens = [" ".join(argv) for argv in jetson.calls() if any(word.startswith("--exportOutput") for word in argv)]
    for line in builds:
        assert ("--workspace=512" in line) == (kind == "nano")
        assert ("--memPoolSize=workspace:512" in line) == (kind != "nano")
        assert ("--builderOptimizationLevel=5" in line) == (kind != "nano")
        assert kind != "agx" or not {"--int8", "--fp16"} & set(line.split())
        assert "--profilingVerbosity=detailed" in line and "--timingCacheFile=" in line
    assert all(("--useCudaGraph --useSpinWait" in line) == (kind != "agx") for line in timings)
    assert all(("--includeDataTransfers" in line) == (kind == "agx") for line in timings + goldens)
    assert len(goldens) == len(timings) * jetson.job["windows"]


@every
def test_int8_runs_from_the_file_of_its_version(of, kind):
    _jetson, result, _ = of(kind)
    models = {form: entry["model"] for form, entry in result["engines"].items()}
    assert models == {"nano": {"fp16": "model.float.onnx", "fp32": "model.float.onnx"},
                      "orin": {"int8": "model.int8.onnx", "fp16": "model.float.onnx", "fp32": "model.float.onnx"},
                      "agx": {"int8": "model.int8.onnx", "fp16": "model.fp16.onnx", "fp32": "model.float.onnx"}
                      }[kind]


def test_a_nano_has_no_int8_and_says_so(of):
    _, result, said = of("nano")
    assert "no int8" in result["measured"]["int8"]["failed"] and "no int8" in said
    assert set(result["engines"]) == {"fp16", "fp32"} and result["layers_int8"] is None


@every
def test_percentiles_are_those_of_the_windows_after_the_warm_up(of, kind):
    """Version 8 writes the warm-up too: those windows took 9 ms here."""
    _, result, _ = of(kind)
    for form, low in (("int8", 0.21), ("fp16", 0.25), ("fp32", 0.4)):
        entry = result["measured"][form]
        if "failed" in entry:
            continue
        expected = np.array([low + 0.02 + 0.001 * (k * 37 % 11) + (0.3 if k % 100 == 99 else 0) for k in range(400)])
        assert entry["samples"] == 400
        for share in (50, 90, 99):
            assert entry[f"p{share}_ms"] == pytest.approx(np.percentile(expected, share), abs=1e-5)
        assert entry["compute"]["p50_ms"] == pytest.approx(entry["p50_ms"] - 0.02, abs=1e-5)
        assert entry["enqueue"] == {"p50_ms": 0.0130615, "mean_ms": 0.0136421, "p99_ms": 0.0249023}
        assert entry["resolution_ms"] == 2 ** (7 - 23)      # of float32, when the last window ended after 128 ms
        assert entry["p99_interval_ms"][0] < entry["p99_interval_ms"][1] and entry["p999_ms"] is None
        assert entry["warnings"][0].startswith("Throughput may be bound by Enqueue Time")


@every
def test_the_winner_has_fp16_beside_it(of, kind):
    _jetson, result, _ = of(kind)
    assert result["won"]["form"] == ("fp16" if kind == "nano" else "int8")
    assert result["won"]["fp16_p50_ms"] == result["measured"]["fp16"]["p50_ms"]
    assert result["won"]["over"]["fp32"] > 1.4


@pytest.mark.parametrize("kind, expected", [
    ("orin", {"ran": 3, "of": 4, "hidden": 0, "others": ["head"]}),
    ("agx", {"ran": 2, "of": 3, "hidden": 0, "others": ["block"]})])
def test_layers_that_really_ran_int8_are_counted(of, kind, expected):
    assert of(kind)[1]["layers_int8"] == expected


def test_layers_of_the_oldest_version_are_counted_too(tmp_path):
    """On a Xavier, which has int8: a block that shows no types is counted apart."""
    jetson = Jetson(tmp_path, "nano")
    (jetson.root / "proc/device-tree/compatible").write_text("nvidia,p3668-0000\0nvidia,tegra194\0")
    done = command(jetson, "--build")
    assert done.returncode == 0, done.stderr
    found = device.layers_int8(jetson.folder / "engines/int8.layers.json")
    assert found == {"ran": 2, "of": 3, "hidden": 1, "others": ["head"]}


@every
def test_energy_comes_from_the_total_rail(of, kind):
    _jetson, result, _ = of(kind)
    energy = result["energy"]
    idle = {"nano": 2.4, "orin": 6.0, "agx": 6.0 + 1.5 + 2.0}[kind]
    assert energy["rail"] == {"nano": "POM_5V_IN", "orin": "VDD_IN",
                              "agx": "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"}[kind]
    assert energy["idle_w"] == pytest.approx(idle)
    for form, entry in energy["forms"].items():
        assert entry["load_w"] == pytest.approx(idle) and entry["net_mj"] == pytest.approx(0, abs=1e-9)
        assert entry["gross_mj"] == pytest.approx(1000 * idle / result["measured"][form]["rate_hz"])
        assert entry["day_j"] is None
    assert "period_s" in energy["day"] and "carrier" in energy["excludes"]


def test_energy_of_a_day_is_rest_plus_inferences():
    found = device.energy_of(([5.0, 7.0], 30.0), [2.0, 2.0], 1000.0, 10.0)
    assert found["net_mj"] == pytest.approx(4.0) and found["gross_mj"] == pytest.approx(6.0)
    assert found["day_j"] == pytest.approx(86400 * 2.0 + 8640 * 0.004)


def test_a_board_without_power_sensors_gives_the_reason(tmp_path):
    jetson = Jetson(tmp_path)
    for path in (jetson.root / HWMON).iterdir():
        path.unlink()
    done = command(jetson, *QUICK, "--cpu-python", "false")
    result = json.loads(done.stdout)
    assert result["energy"] is None and "INA3221" in result["energy_missing"]


def test_the_processors_row_says_why_it_is_missing(of):
    missing = of("orin")[1]["cpu"]["missing"]
    assert "--cpu-python" in missing and "false" in missing


def test_a_python_with_onnxruntime_gives_the_processors_row(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    jetson = Jetson(tmp_path)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(one["name"], kind, one["shape"]) for one in jetson.job["inputs"]]
    graph = helper.make_graph([helper.make_node("ReduceMax", ["window"], ["logits"], keepdims=0)], "g", inputs,
                              [helper.make_tensor_value_info("logits", kind, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for name in ("model.int8.onnx", "model.float.onnx"):
        (jetson.folder / name).write_bytes(model.SerializeToString())
        jetson.job["sha256"][name] = device.digest(jetson.folder / name)
    (jetson.folder / "job.json").write_text(json.dumps(jetson.job))
    found = device.cpu(str(jetson.folder), sys.executable, 0.05)
    assert {row["form"] for row in found["rows"]} == {"int8", "float"} and found["onnxruntime"]
    assert all(row["p50_ms"] > 0 and row["samples"] >= 10 for row in found["rows"])


@pytest.mark.parametrize("n", (100, 400, 5000))
def test_the_interval_of_p99_is_that_of_resampling(n):
    rng = np.random.default_rng(n)
    values = np.sort(rng.gamma(2.0, size=n))
    k = int(np.ceil(0.99 * n)) - 1
    resampled = np.sort(rng.choice(values, (2000, n)), 1)[:, k]
    low, high = device.bootstrap_interval(list(values), 0.99)
    counts = [(resampled < low).mean(), (resampled > high).mean()]
    assert max(counts) < 0.045 and (resampled <= low).mean() > 0.015 and (resampled >= high).mean() > 0.015


def test_p999_asks_for_a_hundred_thousand_windows():
    assert device.statistics_of([0.1] * 99_999)["p999_ms"] is None
    assert device.statistics_of([0.1] * 100_000)["p999_ms"] == 0.1


@pytest.mark.parametrize("text, version", [
    ("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec", (8, 2, 1)), ("[TensorRT v8502]", (8, 5, 2)),
    ("[TensorRT v100300] [b17]", (10, 3, 0)), ("[TensorRT v101600]", (10, 16, 0)),
    ("[TensorRT v110000] [b114]", (11, 0, 0)), ("[TensorRT v11.1.0.106]", (11, 1, 0)), ("no banner", None)])
def test_versions_are_read_off_the_banner(text, version):
    assert device.version_of(text) == version


def test_rails_of_both_kernels_are_found(tmp_path):
    for kind, files in (("orin", [f"/{HWMON}in1_input", f"/{HWMON}curr1_input"]), ("nano", [f"/{IIO}in_power0_input"])):
        board = device.Board(str(Jetson(tmp_path / kind, kind).root))
        assert [list(names) for names in board.rails().values()] == [files]


def test_a_throttled_board_is_named(tmp_path):
    jetson = Jetson(tmp_path)
    jetson.tool("nvpmodel", f"echo 3 > {jetson.root}/sys/class/hwmon/hwmon4/oc1_event_cnt; echo Power Mode: 15W")
    jetson.tool("false", f"echo 9 > {jetson.root}/sys/class/hwmon/hwmon4/oc3_event_cnt; exit 1")
    result = json.loads(command(jetson, *QUICK, "--cpu-python", "false").stdout)
    assert any("throttled" in text for text in result["warnings"])
    assert os.path.isfile(jetson.folder / "engines/fp16.engine")
