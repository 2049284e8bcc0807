# SPDX-License-Identifier: Apache-2.0
"""Live inference on a Jetson: the frames, both generations of TensorRT's Python interface, and what goes wrong.

The module tensorrt and libcudart are stand-ins; the program and its pipes are the real ones.
"""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from targets import jetson_ssh
from targets.jetson_ssh import Worker
from tests.jetson_fakes.boards import DEVICE, HERE, Jetson, cudart, golden
from tests.test_jetson_device import QUICK, command, old_python
from train.say import MissingError, UserError

API = pytest.mark.parametrize("api", ("8", "10"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cudart(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def jetson(tmp_path, library, monkeypatch):
    """A board whose Python has the module tensorrt, with engines."""
    jetson = Jetson(tmp_path, windows=2)
    jetson.environment |= {"LEADEDGE_CUDART": library, "PYTHONPATH": str(HERE / "python"), "STANDIN_API": "10"}
    jetson.engine(jetson.folder)
    for name, value in jetson.environment.items():
        monkeypatch.setenv(name, value)
    return jetson


def serve(jetson) -> list[str]:
    return [sys.executable, "-S", str(jetson.folder / "jetson_device.py"), "--serve", "int8"]


@API
def test_live_logits_are_the_golden_ones(jetson, api, monkeypatch):
    monkeypatch.setenv("STANDIN_API", api)
    inputs, logits = golden(jetson)
    with Worker(serve(jetson), jetson.job) as worker:
        assert worker.about["tensorrt"].split(".")[0] == api
        for window, expected in enumerate(logits):
            got = worker({name: codes[window] for name, codes in inputs.items()})
            assert got.dtype == np.int8 and np.array_equal(got, expected)


def test_live_runs_on_the_python_of_an_old_jetpack(jetson, monkeypatch):
    python = old_python()
    if python is None:
        pytest.skip("no Python 3.6 to 3.8: pyenv install 3.6.15")
    monkeypatch.setenv("STANDIN_API", "8")
    inputs, logits = golden(jetson)
    with Worker([python, *serve(jetson)[2:]], jetson.job) as worker:
        assert np.array_equal(worker({name: codes[0] for name, codes in inputs.items()}), logits[0])


def test_inputs_go_by_name_whatever_the_engines_order(jetson):
    path = jetson.folder / "engines/int8.engine"
    plan = json.loads(path.read_text())
    window, age, output = plan["tensors"]
    path.write_text(json.dumps(plan | {"tensors": [output, age, window]}))
    inputs, _ = golden(jetson)
    reals = np.concatenate([inputs["age"][0] * 0.5, inputs["window"][0].reshape(-1) * 0.0625])
    logits = [sum(x * ((i * 7 + k * 3) % 5 - 2) for i, x in enumerate(reals)) for k in range(4)]
    expected = np.clip(np.floor(np.array(logits) / 0.75 + 0.5), -128, 127)
    with Worker(serve(jetson), jetson.job) as worker:
        assert np.array_equal(worker({"window": inputs["window"][:1], "age": inputs["age"][:1]}), expected)


def test_golden_outputs_are_checked_by_the_worker_where_it_runs(jetson):
    done = command(jetson, *QUICK, "--cpu-python", "false")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {entry["by"] for entry in result["parity"].values()} == {"worker"}
    assert all(entry["holds"] and entry["worst"] == 0 for entry in result["parity"].values())
    assert not any("--exportOutput=output.json" in argv for argv in jetson.calls())


@pytest.mark.parametrize("frame, answer", [
    (struct.pack("<cI", b"I", 3) + b"abc", b"a frame b'I' of 3 bytes came, I of 68 is expected"),
    (struct.pack("<cI", b"X", 68) + bytes(68), b"a frame b'X' of 68 bytes came, I of 68 is expected")])
def test_a_wrong_frame_is_answered_and_the_next_one_is_served(jetson, frame, answer):
    right = struct.pack("<cI", b"I", 68) + np.ones(17, np.float32).tobytes()
    done = subprocess.run(serve(jetson), input=frame + right + right, capture_output=True)
    assert done.returncode == 0, done.stderr
    frames, rest = [], done.stdout
    while rest:
        kind, length = struct.unpack_from("<cI", rest)
        frames.append((kind, rest[5:5 + length]))
        rest = rest[5 + length:]
    assert [kind for kind, _ in frames] == [b"H", b"E", b"O", b"O"] and frames[1][1] == answer
    about = json.loads(frames[0][1])
    assert about["inputs"] == [{"name": "window", "shape": [1, 2, 8]}, {"name": "age", "shape": [1, 1]}]
    assert about["outputs"] == [{"name": "logits", "shape": [1, 4]}] and about["tensorrt"] == "10.3.0"
    expected = [sum((i * 7 + k * 3) % 5 - 2 for i in range(17)) for k in range(4)]
    assert np.array_equal(np.frombuffer(frames[2][1], np.float32), np.array(expected, np.float32))


def test_what_tensorrt_prints_does_not_get_between_the_frames(jetson):
    right = struct.pack("<cI", b"I", 68) + bytes(68)
    done = subprocess.run(serve(jetson), input=right, capture_output=True)
    assert b"a line on the standard output" in done.stderr and b"running" in done.stderr
    assert done.stdout.startswith(b"H") and b"[TRT]" not in done.stdout


@pytest.mark.parametrize("cut", (3, 5, 30))
def test_an_input_that_ends_within_a_frame_ends_the_worker(jetson, cut):
    frame = struct.pack("<cI", b"I", 68) + bytes(68)
    done = subprocess.run(serve(jetson), input=frame[:cut], capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b"O") == 0


@pytest.mark.parametrize("break_it, code, words", [
    (lambda j: (j.folder / "engines/int8.engine").write_text("half"), 2, "damaged, or of another version or GPU"),
    (lambda j: (j.folder / "engines/int8.engine").unlink(), 1, "cannot be read"),
    (lambda j: (j.folder / "engines/int8.json").unlink(), 2, "there is no int8 engine"),
    (lambda j: (j.folder / "job.json").write_text(json.dumps(j.job | {"sha256": {"model.int8.onnx": "0" * 64}})), 2,
     "of another model"),
    (lambda j: os.environ.__setitem__("STANDIN_CUDA", "cudaMalloc"), 2, "cudaMalloc failed: out of memory"),
    (lambda j: os.environ.__setitem__("LEADEDGE_CUDART", "/nowhere"), 2, "libcudart is not here"),
    (lambda j: os.environ.__setitem__("PYTHONPATH", ""), 2, "no module tensorrt")])
def test_a_worker_that_cannot_start_says_why_on_both_pipes(jetson, break_it, code, words, monkeypatch):
    monkeypatch.setenv("STANDIN_CUDA", "")
    break_it(jetson)
    done = subprocess.run(serve(jetson), stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == code and done.stdout[:1] == b"E" and words in done.stdout[5:].decode()
    assert words in done.stderr.decode() and b"Traceback" not in done.stderr
    with pytest.raises(MissingError, match=words):
        Worker(serve(jetson), jetson.job)


@API
def test_an_engine_that_takes_something_else_than_float32_is_refused(jetson, api, monkeypatch):
    monkeypatch.setenv("STANDIN_API", api)
    path = jetson.folder / "engines/int8.engine"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"half": 1}))
    with pytest.raises(MissingError, match=r"window is DataType\.HALF \[1, 2, 8\], not float32"):
        Worker(serve(jetson), jetson.job)


@API
def test_a_failure_of_the_gpu_ends_the_worker_with_a_sentence(jetson, api, monkeypatch):
    monkeypatch.setenv("STANDIN_API", api)
    monkeypatch.setenv("STANDIN_CUDA", "cudaStreamSynchronize")
    inputs, _ = golden(jetson)
    with Worker(serve(jetson), jetson.job) as worker, pytest.raises(MissingError, match="cudaStreamSynchronize failed"):
        worker({name: codes[0] for name, codes in inputs.items()})


def test_a_worker_that_died_is_started_again(jetson):
    inputs, logits = golden(jetson)
    window = {name: codes[1] for name, codes in inputs.items()}
    with Worker(serve(jetson), jetson.job) as worker:
        worker(window)
        worker._child.kill()
        worker._child.wait()
        assert np.array_equal(worker(window), logits[1])


def test_a_worker_that_dies_each_time_is_announced(jetson, tmp_path):
    program = tmp_path / "once.py"
    program.write_text("import os, struct, sys\n"
                       f"about = {json.dumps(hello(jetson)).encode()!r}\n"
                       "os.write(1, struct.pack('<cI', b'H', len(about)) + about)\n"
                       "os.read(0, 5)\nsys.exit('the GPU fell off the bus')\n")
    inputs, _ = golden(jetson)
    with Worker([sys.executable, str(program)], jetson.job) as worker, pytest.raises(MissingError, match="ended"):
        worker({name: codes[0] for name, codes in inputs.items()})


def hello(jetson) -> dict:
    inputs = [{"name": one["name"], "shape": one["shape"]} for one in jetson.job["inputs"]]
    return {"tensorrt": "10.3.0", "inputs": inputs, "outputs": [{"name": "logits", "shape": [1, 4]}]}


@pytest.mark.parametrize("time", (8, 50_000))
def test_a_worker_that_does_not_answer_is_announced(jetson, tmp_path, monkeypatch, time):
    """Nor one that does not even read: a window of 12 leads is more than a pipe holds."""
    monkeypatch.setattr(jetson_ssh, "ANSWER", 0.2)
    jetson.job["inputs"][0]["shape"] = [1, 2, time]
    program = tmp_path / "mute.py"
    program.write_text("import os, struct, time\n"
                       f"about = {json.dumps(hello(jetson)).encode()!r}\n"
                       "os.write(1, struct.pack('<cI', b'H', len(about)) + about)\ntime.sleep(60)\n")
    window = {"window": np.zeros((2, time), np.int8), "age": np.zeros(1, np.int8)}
    with Worker([sys.executable, str(program)], jetson.job) as worker, pytest.raises(MissingError, match="in time"):
        worker(window)


def test_an_engine_of_another_model_is_refused(jetson):
    jetson.job["inputs"][0]["shape"] = [1, 12, 8]
    with pytest.raises(UserError, match="the engine takes"):
        Worker(serve(jetson), jetson.job)


@pytest.mark.parametrize("change, words", [
    (lambda w: w.pop("age"), "age"), (lambda w: w.update(sex=w["age"]), "sex"),
    (lambda w: w.update(age=w["age"].astype(float)), "float64"), (lambda w: w.update(age=w["window"]), "age is int8")])
def test_wrong_inputs_are_refused_by_name(jetson, change, words):
    window = {name: codes[0] for name, codes in golden(jetson)[0].items()}
    change(window)
    with Worker(serve(jetson), jetson.job) as worker, pytest.raises(UserError, match=words):
        worker(window)


def test_the_workers_command_names_the_file_beside_the_job(tmp_path):
    _, program, *options = jetson_ssh.worker_command(tmp_path, "fp16")
    assert program == str(tmp_path / DEVICE.name) and options == ["--serve", "fp16"]
