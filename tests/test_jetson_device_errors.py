# SPDX-License-Identifier: Apache-2.0
"""What the file for the Jetson does when something is not as it should be: the cache, the outputs, the refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.jetson_fakes.boards import Jetson
from tests.test_jetson_device import QUICK, command


@pytest.fixture
def jetson(tmp_path):
    return Jetson(tmp_path)


def build(jetson, *options, **environment):
    """What --build says of each form, after it has ended well."""
    done = command(jetson, "--build", *options, **environment)
    assert done.returncode == 0, done.stderr
    return {form: entry["reason"] for form, entry in json.loads(done.stdout)["engines"].items()}


def edit(jetson, **changes):
    jetson.job.update(changes)
    (jetson.folder / "job.json").write_text(json.dumps(jetson.job))


def test_an_engine_is_built_once(jetson):
    assert set(build(jetson).values()) == {"there is none yet"}
    jetson.forget()
    assert set(build(jetson).values()) == {None}
    assert not jetson.calls()


@pytest.mark.parametrize("change, reason", [
    (lambda j: j.set(version=110000), "tensorrt was 10.3.0, is 11.0.0"),
    (lambda j: j.tool("nvpmodel", "echo NV Power Mode: 15W"), "power mode was MAXN_SUPER, is 15W"),
    (lambda j: (j.root / "proc/device-tree/model").write_text("NVIDIA Jetson Orin NX"), "is tegra234 NVIDIA Jetson Or"),
    (lambda j: (j.folder / "engines/fp16.engine").write_bytes(b"half"), "damaged"),
    (lambda j: (j.folder / "engines/fp16.engine").unlink(), "gone"),
    (lambda j: (j.folder / "engines/fp16.json").write_text("{"), "there is none yet")])
def test_an_engine_of_another_kind_or_a_damaged_one_is_built_again_with_the_reason(jetson, change, reason):
    build(jetson)
    change(jetson)
    assert reason in build(jetson)["fp16"]
    assert build(jetson)["fp16"] is None


def test_another_model_gets_another_engine(jetson):
    import hashlib
    build(jetson)
    (jetson.folder / "model.int8.onnx").write_bytes(b"another")
    edit(jetson, sha256=jetson.job["sha256"] | {"model.int8.onnx": hashlib.sha256(b"another").hexdigest()})
    assert build(jetson) == {"int8": "model changed", "fp16": None, "fp32": None}


def test_a_build_that_was_killed_leaves_no_engine_behind(jetson):
    jetson.set(hang=30)
    with subprocess.Popen([sys.executable, "jetson_device.py", "--build"], cwd=jetson.folder, stderr=subprocess.PIPE,
                          env=jetson.environment, text=True) as child:
        while "building" not in child.stderr.readline():
            pass
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 2
    jetson.set(hang=0)
    assert not list((jetson.folder / "engines").glob("*.engine"))
    assert set(build(jetson).values()) == {"there is none yet"}


def test_a_job_for_an_old_jetpack_has_no_int8_and_no_float16_body(jetson):
    edit(jetson, jetpack="4.6", forms={form: {"default": "model.float.onnx"} for form in ("fp16", "fp32")})
    assert set(build(jetson)) == {"fp16", "fp32"}
    jetson.set(version=110000)
    done = command(jetson, "--build")
    assert set(json.loads(done.stdout)["engines"]) == {"fp32"}      # or float32 would be called fp16
    assert "JetPack 4.6" in done.stderr and "no fp16 file for TensorRT 11.0.0" in done.stderr


def test_a_failed_build_leaves_the_old_engine(jetson):
    build(jetson)
    jetson.tool("nvpmodel", "echo NV Power Mode: 15W")
    jetson.set(fail={"fp16": ["Engine could not be created from network"]})
    old = (jetson.folder / "engines/fp16.engine").read_bytes()
    assert "fp16" not in build(jetson)
    assert (jetson.folder / "engines/fp16.engine").read_bytes() == old


def test_an_option_that_this_trtexec_does_not_know_is_left_out_and_named(jetson):
    jetson.set(unknown=["exportLayerInfo", "useSpinWait"])
    result = json.loads(command(jetson, *QUICK, "--cpu-python", "false").stdout)
    assert result["engines"]["int8"]["dropped"] == ["--exportLayerInfo"] and result["layers_int8"] is None
    assert result["measured"]["fp16"]["dropped"] == ["--useSpinWait"]
    assert "--useSpinWait" not in result["measured"]["fp16"]["argv"]


def test_an_option_that_cannot_be_left_out_is_a_failure(jetson):
    jetson.set(unknown=["loadInputs"])
    done = command(jetson, *QUICK)
    assert done.returncode == 2 and "Unknown option: --loadInputs" in done.stderr and not done.stdout


def test_a_dump_of_names_alone_counts_nothing(jetson):
    jetson.set(names_only=True)
    build(jetson)
    from targets.jetson_device import layers_int8
    assert layers_int8(jetson.folder / "engines/int8.layers.json") is None


def test_a_form_whose_outputs_differ_cannot_win(jetson):
    jetson.set(offset={"int8": 30})
    done = command(jetson, *QUICK, "--cpu-python", "false")
    result = json.loads(done.stdout)
    assert not result["parity"]["int8"]["holds"] and result["parity"]["int8"]["worst"] == 30
    assert result["parity"]["fp16"] == {"windows": 1, "labels": 1.0, "p99": 0.0, "worst": 0, "holds": True,
                                        "by": "trtexec"}
    assert result["won"]["form"] == "fp16" and result["won"]["over"]["int8"] < 1
    assert "int8: golden outputs DIFFER" in done.stderr


def test_outputs_that_are_no_numbers_do_not_hold(jetson, monkeypatch):
    from targets import jetson_device as device
    build(jetson)
    jetson.set(nan=True)
    for name, value in jetson.environment.items():
        monkeypatch.setenv(name, value)
    trt = device.Trtexec(device.Board(str(jetson.root)), None, 20)
    found = device.parity("fp16", str(jetson.folder / "engines/fp16.engine"), str(jetson.folder), jetson.job, trt)
    assert found == {"windows": 1, "labels": 0.0, "p99": None, "worst": None, "holds": False, "by": "trtexec"}
    assert device.winner({"fp16": {"p50_ms": 1.0}}, {"fp16": found}) is None


def test_labels_follow_the_decision_of_the_job():
    from targets.jetson_device import label
    assert label({"rule": "argmax", "offsets": [0, 256 * 3, 0]}, [5, 3, 1]) == 1
    assert label({"rule": "argmax", "offsets": [0, 0, 0]}, [5, 5, 1]) == 0
    assert label({"rule": "threshold", "offsets": [256, -256]}, [1, -2]) == [True, False]


def test_a_form_that_fails_leaves_the_others(jetson):
    jetson.set(fail={"int8": ["Error[10]: Could not find any implementation for node stem."]})
    done = command(jetson, *QUICK, "--cpu-python", "false")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and "no kernel for this GPU" in result["measured"]["int8"]["failed"]
    assert result["won"]["form"] == "fp16" and result["layers_int8"] is None


def refused(jetson, code, *words, options=("--build",), **environment):
    """One sentence and the next command, and nothing on stdout."""
    done = command(jetson, *options, **environment)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "  fix: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("lines, code, words", [
    (["ModelImporter.cpp:949: While parsing node number 3", "Failed to parse onnx file"], 1, ("cannot read",)),
    (["Error[2]: OutOfMemory (no further information)"], 2, ("out of memory", "close other")),
    (["Saving engine to file failed: No space left on device"], 2, ("disk is full", "rm -r engines")),
    (["Cuda failure: unspecified launch failure"], 2, ("Cuda failure", "--verbose"))])
def test_a_build_that_fails_in_every_form_says_why(jetson, lines, code, words):
    jetson.set(fail={form: lines for form in ("int8", "fp16", "fp32")})
    refused(jetson, code, *words)


def test_a_computer_that_is_no_jetson_is_refused(jetson, tmp_path):
    refused(jetson, 2, "not a Jetson", "--device user@host", LEADEDGE_JETSON_ROOT=str(tmp_path))


def test_no_trtexec_is_refused(jetson):
    (jetson.root / "usr/src/tensorrt/bin/trtexec").unlink()
    refused(jetson, 2, "no trtexec", "nvidia-jetpack", PATH="/usr/bin:/bin")


def test_a_trtexec_on_path_is_found(jetson):
    (jetson.root / "usr/src/tensorrt/bin/trtexec").rename(jetson.tools / "trtexec")
    assert set(build(jetson)) == {"int8", "fp16", "fp32"}


def test_an_old_tensorrt_is_refused(jetson):
    jetson.tool("trtexec", "echo '&&&& RUNNING TensorRT.trtexec [TensorRT v8001] # trtexec --help'")
    refused(jetson, 2, "8.0.1", "8.2.0", "JetPack 4.6.1", options=("--build", f"--trtexec={jetson.tools}/trtexec"))


def test_a_version_is_taken_from_the_library_where_the_banner_has_none(jetson):
    jetson.tool("trtexec", "echo === Model Options ===")
    refused(jetson, 2, "of which version", options=("--build", "--trtexec", str(jetson.tools / "trtexec")))
    library = jetson.root / "usr/lib/aarch64-linux-gnu/libnvinfer.so.7.1.3"
    library.parent.mkdir(parents=True)
    library.touch()
    refused(jetson, 2, "7.1.3", options=("--build", "--trtexec", str(jetson.tools / "trtexec")))


def test_a_full_disk_is_refused_before_anything_is_built(jetson):
    refused(jetson, 2, "disk is full", "df -h", options=("--build", "--free-mb", "1e9"))
    assert not jetson.calls()


def test_a_build_that_does_not_end_is_ended(jetson):
    jetson.set(hang=60)
    start = time.monotonic()
    # the banner has its own limit, and does not hang
    refused(jetson, 2, "did not end within 1 s", "--timeout", options=("--build", "--timeout", "1"))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("name", ("model.int8.onnx", "golden.logits.bin", "job.json"))
def test_a_missing_file_is_named(jetson, name):
    (jetson.folder / name).unlink()
    refused(jetson, 1, name, "targets/deploy.py")


def test_a_changed_file_is_named(jetson):
    (jetson.folder / "golden.age.bin").write_bytes(b"1234")
    refused(jetson, 1, "golden.age.bin is not the file")


def test_a_job_that_lacks_a_part_is_refused(jetson):
    del jetson.job["limits"]
    edit(jetson)
    refused(jetson, 1, "job.json lacks limits")


def test_two_at_once_are_refused(jetson):
    import fcntl
    (jetson.folder / "engines").mkdir()
    with open(jetson.folder / "engines/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(jetson, 2, "another run")


def test_clocks_are_locked_on_the_users_word_and_given_back(jetson, tmp_path):
    log = tmp_path / "sudo"
    jetson.tool("sudo", f"printf '%s\\n' \"$*\" >> {log}")
    command(jetson, *QUICK, "--cpu-python", "false", "--lock-clocks")
    stored, locked, restored = log.read_text().splitlines()
    assert stored.startswith("-n jetson_clocks --store ") and locked == "-n jetson_clocks"
    assert restored == stored.replace("--store", "--restore")


def test_sudo_that_asks_for_a_password_is_refused(jetson):
    jetson.tool("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    refused(jetson, 2, "password", "sudo jetson_clocks", options=("--lock-clocks",))


@pytest.mark.parametrize("options", (("--seconds", "0"), ("--seconds", "x"), ("--no-such-option",)))
def test_a_wrong_option_exits_with_1(jetson, options):
    refused(jetson, 1, options=options)


def test_a_folder_that_cannot_be_written_is_named(jetson):
    if os.geteuid() == 0:
        (jetson.folder / "engines").write_text("a file is in the way")
    else:
        jetson.folder.chmod(0o500)
    try:
        refused(jetson, 2, "engines")
    finally:
        jetson.folder.chmod(0o700)
