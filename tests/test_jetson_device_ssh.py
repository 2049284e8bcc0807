# SPDX-License-Identifier: Apache-2.0
"""A Jetson behind ssh, and on the spot: what is copied, what is run, and each way in which a connection fails."""

import json
import shutil

import pytest

from targets import jetson_ssh
from tests.jetson_fakes.boards import HERE, Jetson, cudart, golden, script
from train.say import MissingError, UserError

PLACE = "leadedge-engines/" + "ab" * 8


@pytest.fixture
def jetson(tmp_path, monkeypatch):
    """A board, ssh and scp that reach it, and a folder on this side."""
    jetson = Jetson(tmp_path, windows=2)
    jetson.home, jetson.log = tmp_path / "home", tmp_path / "log"
    jetson.home.mkdir()
    for name in ("ssh", "scp"):
        script(jetson.tools / name, HERE / "ssh.py")
    for name, value in jetson.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STANDIN_HOME", str(jetson.home))
    monkeypatch.setenv("STANDIN_LOG", str(jetson.log))
    # the options of a quick measurement, which the program's own file has as its defaults
    device = jetson.folder / "jetson_device.py"
    device.write_text(device.read_text().replace("default=1.0, help", "default=0.05, help")
                      .replace("default=10.0, help", "default=0.1, help")
                      .replace("default=sys.executable", 'default="false"'))
    return jetson


def calls(jetson, name: str) -> list[list[str]]:
    """The words of each call of ssh or scp, options left out."""
    found = [json.loads(line) for line in jetson.log.read_text().splitlines()]
    return [[word for word in words[1:] if not word.startswith("-")] for words in found
            if words[0] == name and "-Oexit" not in words]


def test_a_measurement_comes_back_and_is_kept(jetson, capsys, monkeypatch):
    monkeypatch.setenv("STANDIN_SSH", "banner")         # a login shell may greet
    result = jetson_ssh.measure("me@orin", jetson.folder, 0.1)
    assert result["won"]["form"] == "int8" and result["environment"]["tensorrt"] == "10.3.0"
    assert json.loads((jetson.folder / "result.json").read_text()) == result
    assert "int8: golden outputs hold" in capsys.readouterr().err
    there = jetson.home / PLACE
    assert {path.name for path in there.iterdir()} == {*jetson.job["sha256"], "job.json", "jetson_device.py", "engines"}


def test_only_what_the_device_lacks_is_copied(jetson):
    with jetson_ssh.Connection("me@orin") as line:
        line.send(jetson.folder)
        jetson.log.unlink()
        (jetson.folder / "golden.age.bin").touch()
        line.send(jetson.folder)
        assert not calls(jetson, "scp")
        (jetson.home / PLACE / "model.fp16.onnx").write_bytes(b"m")     # cut off over there
        line.send(jetson.folder)
    assert calls(jetson, "scp") == [["./model.fp16.onnx", f"me@orin:{PLACE}/"]]


def test_ssh_is_never_let_to_ask_and_one_connection_serves_all(jetson):
    with jetson_ssh.Connection("orin") as line:
        line.send(jetson.folder)
    words = [json.loads(text) for text in jetson.log.read_text().splitlines()]
    assert all("-oBatchMode=yes" in line and "-oConnectTimeout=10" in line for line in words)
    sockets = {word for line in words for word in line if word.startswith("-oControlPath=")}
    assert len(sockets) == 1 and "-Oexit" in words[-1]
    import os
    assert not os.path.exists(os.path.dirname(sockets.pop().partition("=")[2]))


@pytest.mark.parametrize("how, what, fix", [
    ("unknown", "no host of this name", "ping orin"), ("refused", "nothing listens for ssh", "systemctl start ssh"),
    ("late", "does not answer", "ping orin"), ("denied", "without a password", "ssh-copy-id me@orin"),
    ("new", "not known yet", "ssh me@orin once"), ("changed", "another machine", "ssh-keygen -R orin"),
    ("lost", "lost while it measured: client_loop", "repeat"), ("lost-copy", "lost while files were copied", "repeat"),
    ("full", "disk is full", "rm -r leadedge-engines"), ("full-sftp", "could not be copied", "df -h"),
    ("small", "90 MB free", "rm -r leadedge-engines"),
    ("no-python", "has no /usr/bin/python3", "apt-get install python3"),
    ("garbled", "Welcome to the laboratory", "login shell")])
def test_each_failure_of_a_connection_is_one_sentence_and_the_next_command(jetson, how, what, fix, monkeypatch):
    monkeypatch.setenv("STANDIN_SSH", how)
    with pytest.raises(MissingError) as caught:
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)
    assert what in caught.value.what and fix in caught.value.fix and caught.value.code == 2
    assert "\n" not in caught.value.what and "orin" in caught.value.what
    assert not (jetson.folder / "result.json").exists()


@pytest.mark.parametrize("lines, kind, words", [
    (["Failed to parse onnx file"], UserError, "cannot read the model"),
    (["Cuda failure: 700"], MissingError, "Cuda failure")])
def test_what_the_device_says_is_passed_on(jetson, lines, kind, words):
    jetson.set(fail={form: lines for form in ("int8", "fp16", "fp32")})
    with pytest.raises(UserError, match=words) as caught:
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)
    assert type(caught.value) is kind and caught.value.what.startswith("me@orin: TensorRT 10.3.0") and caught.value.fix


@pytest.mark.parametrize("device", ("-oProxyCommand=x", "me@orin; rm -r .", "me@", "", "a b", "me@-x"))
def test_a_device_that_is_no_host_is_refused(jetson, device):
    with pytest.raises(UserError, match="--device"):
        jetson_ssh.measure(device, jetson.folder, 0.1)
    assert not jetson.log.exists()


@pytest.mark.parametrize("change", (
    {"identity": "../../etc"}, {"identity": "$(reboot)0000000000"}, {"sha256": {"a b": "0"}},
    {"sha256": {"../x": "0"}}, {"sha256": {"-rf": "0"}}))
def test_names_that_a_shell_would_read_otherwise_are_refused(jetson, change):
    (jetson.folder / "job.json").write_text(json.dumps(jetson.job | change))
    with pytest.raises(UserError, match="no shell"):
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)


def test_a_folder_without_a_job_or_a_file_is_refused(jetson):
    (jetson.folder / "model.fp16.onnx").unlink()
    with pytest.raises(UserError, match=r"lacks model\.fp16\.onnx"):
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)
    (jetson.folder / "job.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)


def test_without_ssh_the_package_is_named(jetson, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingError, match="ssh and scp not found"):
        jetson_ssh.measure("me@orin", jetson.folder, 0.1)


def test_live_inference_runs_over_ssh(jetson, monkeypatch):
    """The frames pass through two pipes; an engine is there once a measurement was."""
    place = jetson.home / PLACE
    shutil.copytree(jetson.folder, place)
    jetson.engine(place, "fp16")
    monkeypatch.setenv("PYTHONPATH", str(HERE / "python"))
    monkeypatch.setenv("LEADEDGE_CUDART", cudart(jetson.base))
    command = jetson_ssh.worker_command(jetson.folder, "fp16", "me@orin")
    inputs, logits = golden(jetson)
    with jetson_ssh.Worker(command, jetson.job) as worker:
        assert (worker({name: codes[1] for name, codes in inputs.items()}) == logits[1]).all()
    monkeypatch.setenv("STANDIN_SSH", "denied")
    with pytest.raises(MissingError, match="Permission denied"):
        jetson_ssh.Worker(command, jetson.job)


def test_on_a_jetson_the_same_is_measured_on_the_spot(jetson):
    result = jetson_ssh.local(jetson.folder, 0.1)
    assert jetson_ssh.on_jetson() and result["won"]["form"] == "int8"
    assert json.loads((jetson.folder / "result.json").read_text()) == result


def test_elsewhere_there_is_no_jetson(jetson, tmp_path, monkeypatch):
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", str(tmp_path / "nothing"))
    assert not jetson_ssh.on_jetson()
    with pytest.raises(MissingError, match="not a Jetson") as caught:
        jetson_ssh.local(jetson.folder, 0.1)
    assert "--device" in caught.value.fix
