# SPDX-License-Identifier: Apache-2.0
"""A Jetson, here or behind ssh: runs jetson_device.py there and brings back what it says.

Only the system's ssh and scp, never asking for a password. The folder on the device is ~/leadedge-engines/<identity>:
engines that were built once are found again, and a checkout in ~/leadedge is none of its business.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from train import runs
from train.say import MissingError, UserError

DEVICE = "jetson_device.py"
SYSTEM_PYTHON = "/usr/bin/python3"      # the one that has JetPack's module tensorrt
OPTIONS = {"BatchMode": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "10", "ServerAliveCountMax": "3"}
ROOM = 300_000                          # kB free on the device: the files and three engines
FRAME = struct.Struct("<cI")
START = 60.0                            # seconds that a worker may take to load an engine
ANSWER = 10.0                           # seconds that it may take for a window
MEASURING = "while it measured"
NOT_FOUND, SSH_FAILED = 127, 255        # exit status of a shell without the program, of ssh itself
# what ssh prints -> what is wrong, what to type
TROUBLES = (("Could not resolve hostname", "there is no host of this name", "ping {host}"),
            ("REMOTE HOST IDENTIFICATION HAS CHANGED", "it is another machine than before, or was installed anew",
             "if you know why: ssh-keygen -R {host}, then ssh {device} once"),
            ("Host key verification failed", "its key is not known yet", "ssh {device} once, and check the key"),
            ("Permission denied", "it lets nobody in without a password", "ssh-copy-id {device}"),
            ("Connection refused", "nothing listens for ssh there", "sudo systemctl start ssh, on the Jetson"),
            ("timed out", "it does not answer", "is it on, and in this network? ping {host}"),
            ("No route to host", "it cannot be reached", "is it on, and in this network? ping {host}"),
            ("No space left", "its disk is full", "ssh {device} df -h . ; ssh {device} rm -r leadedge-engines"))


def on_jetson() -> bool:
    """Whether this computer is a Jetson."""
    root = os.environ.get("LEADEDGE_JETSON_ROOT", "/")
    with contextlib.suppress(OSError):
        if "nvidia,tegra" in Path(root, "proc/device-tree/compatible").read_text(errors="replace"):
            return True
    return Path(root, "etc/nv_tegra_release").is_file()


def local(folder: Path, seconds: float) -> dict:
    """Measure on this Jetson: the result of jetson_device.py, also stored as result.json in the folder."""
    if not on_jetson():
        raise MissingError("this computer is not a Jetson", "a Jetson, here or behind ssh",
                           "python bench/latency.py --target jetson --run R --device user@host")
    # this Python may have onnxruntime, for the row of the processor
    argv = [_python(), DEVICE, f"--seconds={seconds:g}", f"--cpu-python={shlex.quote(sys.executable)}"]
    return _finish(argv, folder, "this Jetson", None)


def measure(device: str, folder: Path, seconds: float) -> dict:
    """Measure on a Jetson behind ssh: the result of jetson_device.py, also stored as result.json in the folder."""
    with Connection(device) as line:
        place = line.send(folder)
        return _finish(line.ssh(f"cd {place} && exec {SYSTEM_PYTHON} {DEVICE} --seconds={seconds:g}"), folder, device,
                       line)


def worker_command(folder: Path, engine: str = "int8", device: str | None = None) -> list[str]:
    """The command of live inference, for Worker: on this Jetson, or on one that has measured the folder before.

    engine: int8, fp16, fp32, or a file of this Jetson.
    """
    if device is None:
        return [_python(), str(folder / DEVICE), "--serve", engine]
    place = _place(read_job(folder))
    return ["ssh", *(f"-o{name}={value}" for name, value in OPTIONS.items()), "-T", Connection(device).device,
            f"cd {place} && exec {SYSTEM_PYTHON} {DEVICE} --serve {shlex.quote(engine)}"]


def _place(job: dict) -> str:
    """The job's folder on a device, from the user's home."""
    return f"leadedge-engines/{job['identity'][:16]}"


def _python() -> str:
    return SYSTEM_PYTHON if Path(SYSTEM_PYTHON).is_file() else sys.executable


def _finish(argv: list[str], folder: Path, where: str, line: Connection | None) -> dict:
    """Run jetson_device.py, show what it says, and take its JSON."""
    status, text, said = _run(argv, folder)
    if status == 0:
        # a login shell may have greeted before
        answers = [one for one in text.splitlines() if one.startswith('{"schema"')]
        try:
            result = json.loads(answers[-1])
        except (ValueError, IndexError):
            raise MissingError(f"{where} answered with {text[:80].strip()!r}", "one JSON object of jetson_device.py",
                               "repeat the command; what does the device's login shell print?") from None
        runs.write(folder, {"result.json": json.dumps(result, indent=1) + "\n"})
        return result
    if line is not None:
        line.check(status, said, MEASURING)
    what, _, fix = said.partition("\n  fix: ")
    kind = UserError if status == UserError.code else MissingError
    raise kind(f"{where}: {what.splitlines()[-1] if what else f'jetson_device.py ended with {status}'}", "",
               fix.split("\n")[0])


def _run(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit status, standard output, and the last lines of stderr, which go on to ours as they come."""
    tail: collections.deque = collections.deque(maxlen=20)

    def follow(stream):
        for text in stream:
            print(text, end="", file=sys.stderr, flush=True)
            tail.append(text)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          encoding="utf-8", errors="replace", cwd=folder) as child:
        reader = threading.Thread(target=follow, args=(child.stderr,), daemon=True)
        reader.start()
        text = child.stdout.read()
        child.wait()
        reader.join(5)
    return child.returncode, text, "".join(tail).strip()


class Connection:
    """One ssh connection for all that is sent and run; ends with the `with`."""

    def __init__(self, device: str):
        if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*", device):
            raise UserError(f"--device {device!r}", "user@host, or a host of ~/.ssh/config (a port belongs there)",
                            "--device user@host")
        absent = [name for name in ("ssh", "scp") if not shutil.which(name)]
        if absent:
            raise MissingError(f"{' and '.join(absent)} not found", "OpenSSH's client",
                               "sudo apt-get install openssh-client")
        self.device = device

    def __enter__(self) -> Connection:
        self._private = tempfile.mkdtemp()          # mode 700; short enough for a socket's name
        options = OPTIONS | {"ControlMaster": "auto", "ControlPersist": "60", "ControlPath": f"{self._private}/c"}
        self._options = [f"-o{name}={value}" for name, value in options.items()]
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["ssh", *self._options, "-Oexit", self.device], capture_output=True, timeout=10)
        shutil.rmtree(self._private, ignore_errors=True)

    def ssh(self, command: str) -> list[str]:
        """The command line that runs a shell command there."""
        return ["ssh", *self._options, "-T", self.device, command]

    def ask(self, command: str, doing: str) -> str:
        """Output of a shell command there."""
        done = subprocess.run(self.ssh(command), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace")
        self.check(done.returncode, done.stderr.strip(), doing)
        if done.returncode:
            raise MissingError(f"{self.device} failed {doing}: {_last(done.stderr)}", "", f"ssh {self.device}")
        return done.stdout

    def check(self, status: int, said: str, doing: str) -> None:
        """MissingError when ssh or scp is what failed, or Python is absent."""
        facts = {"device": self.device, "host": self.device.rpartition("@")[2]}
        for sign, what, fix in TROUBLES if status else ():
            if sign in said and (sign == "No space left" or (status == SSH_FAILED and doing != MEASURING)):
                raise MissingError(f"{self.device}: {what}", "a Jetson that ssh reaches without a password",
                                   fix.format(**facts))
        if status == SSH_FAILED:
            raise MissingError(f"the connection to {self.device} was lost {doing}: {_last(said)}",
                               "engines that are done stay there", "repeat the command")
        if status == NOT_FOUND:
            raise MissingError(f"{self.device} has no {SYSTEM_PYTHON}", "JetPack's own Python",
                               f"ssh {self.device} sudo apt-get install python3")

    def send(self, folder: Path) -> str:
        """Copy what the device lacks of the job; returns its folder there."""
        job = read_job(folder)
        place, names = _place(job), list(dict.fromkeys([*job["sha256"], "job.json", DEVICE]))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)}", "what targets/deploy.py wrote",
                            "python targets/deploy.py --run R --target jetson")
        told = self.ask(f"{SYSTEM_PYTHON} -c pass && mkdir -p {place} && cd {place} && df -Pk . && "
                        f"(sha256sum {shlex.join(names)} 2>/dev/null || true)", "when it was asked what it has")
        free = re.search(r"^\S.*?\s(\d+)\s+\d+%\s", told, re.MULTILINE)
        if free and int(free.group(1)) < ROOM:
            raise MissingError(f"{self.device}: its disk is full, {int(free.group(1)) // 1000} MB free",
                               f"{ROOM // 1000} MB",
                               f"ssh {self.device} df -h . ; ssh {self.device} rm -r leadedge-engines")
        there = dict(reversed(line.split(maxsplit=1)) for line in told.splitlines() if re.match(r"[0-9a-f]{64} ", line))
        lacking = [name for name in names if there.get(name) != runs.sha256(folder / name)]
        if lacking:
            done = subprocess.run(["scp", "-q", *self._options, "--", *(f"./{name}" for name in lacking),
                                   f"{self.device}:{place}/"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  errors="replace", cwd=folder)
            self.check(done.returncode, done.stderr.strip(), "while files were copied")
            if done.returncode:
                raise MissingError(f"files could not be copied to {self.device}: {_last(done.stderr)}", "",
                                   f"ssh {self.device} df -h .")
        return place


def read_job(folder: Path) -> dict:
    """job.json of a jetson folder, fit to be named in a shell."""
    try:
        job = json.loads((folder / "job.json").read_text())
        safe = re.fullmatch(r"[0-9a-f]{16,}", job["identity"]) and all(
            re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in job["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/job.json cannot be read: {error}", "what targets/deploy.py wrote",
                        "python targets/deploy.py --run R --target jetson") from error
    if not safe:
        raise UserError(f"{folder}/job.json names files that no shell shall see", "what targets/deploy.py wrote",
                        "python targets/deploy.py --run R --target jetson")
    return job


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


class Worker:
    """Live inference by `jetson_device.py --serve` in another process: named int8 codes of one window in, logits out.

    A worker that dies is started again once for the window it died on; then it is announced.
    """

    def __init__(self, command: list[str], job: dict):
        self.command, self.job = command, job
        self._child = None
        self._start()

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (class,) of {name: int8 of the job's shape}."""
        wrong = set(inputs) ^ {one["name"] for one in self.job["inputs"]}
        if wrong:
            raise UserError(f"inputs {', '.join(sorted(wrong))} are missing or too many",
                            ", ".join(one["name"] for one in self.job["inputs"]))
        try:
            return self._answer(inputs)
        except OSError:
            self._start()
        try:
            return self._answer(inputs)
        except OSError as error:
            raise MissingError(f"the worker on the Jetson ended: {error.strerror} {self.complaint()}",
                               "an engine that runs", f"python3 {DEVICE} --build, beside job.json") from error

    def complaint(self) -> str:
        """The sentence that the worker ended with."""
        return self._refusal or _last("".join(self._tail))

    def close(self) -> None:
        """End the worker."""
        if self._child is None:
            return
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        try:
            self._child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise MissingError(f"{self.command[0]} does not start: {error.strerror}", "the system's Python") from error
        os.set_blocking(self._child.stdin.fileno(), False)
        self._tail, self._refusal = collections.deque(maxlen=20), ""
        threading.Thread(target=self._follow, args=(self._child.stderr, self._tail), daemon=True).start()
        try:
            self.about = json.loads(self._receive(b"H", START))
        except OSError as error:
            self.close()
            raise MissingError(f"the worker on the Jetson does not start: {self.complaint()}",
                               "JetPack's module tensorrt and an engine", f"python3 {DEVICE} --build") from error
        self._prepare()

    @staticmethod
    def _follow(stream, tail) -> None:
        with stream:
            for line in stream:
                tail.append(line.decode(errors="replace"))

    def _prepare(self) -> None:
        """Buffers in the engine's own order of inputs."""
        known = {one["name"]: one for one in self.job["inputs"]}
        shapes = {one["name"]: list(one["shape"]) for one in known.values()}
        classes = int(np.prod(self.job["output"]["shape"]))
        sizes = [int(np.prod(one["shape"])) for one in self.about["outputs"]]
        if {one["name"]: one["shape"] for one in self.about["inputs"]} != shapes or sizes != [classes]:
            about, self.about = self.about, None
            self.close()
            raise UserError(f"the engine takes {about['inputs']} and gives {about['outputs']}", "what job.json names",
                            f"python3 {DEVICE} --build")
        sizes = [int(np.prod(one["shape"])) for one in self.about["inputs"]]
        self._frame = bytearray(FRAME.size + 4 * sum(sizes))
        FRAME.pack_into(self._frame, 0, b"I", 4 * sum(sizes))
        values = np.frombuffer(self._frame, np.float32, offset=FRAME.size)
        starts = np.cumsum([0, *sizes[:-1]])
        self._places = [(one["name"], values[start:start + size], tuple(one["shape"]),
                         np.float32(known[one["name"]]["scale"]))
                        for one, start, size in zip(self.about["inputs"], starts, sizes, strict=True)]

    def _answer(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Send one window and take the logits' codes."""
        for name, place, shape, scale in self._places:
            codes = np.asarray(inputs[name])
            if codes.shape not in (shape, shape[1:]) or codes.dtype != np.int8:
                raise UserError(f"input {name} is {codes.dtype} {codes.shape}", f"int8 {shape[1:]}")
            np.multiply(codes.reshape(-1), scale, out=place)
        rest, until = memoryview(self._frame), time.monotonic() + ANSWER
        while rest:
            if not select.select([], [self._child.stdin], [], max(until - time.monotonic(), 0))[1]:
                self._late()
            rest = rest[self._child.stdin.write(rest) or 0:]
        reals = np.frombuffer(self._receive(b"O", ANSWER), np.float32)
        if not np.isfinite(reals).all():
            raise MissingError("the engine answers with values that are no numbers", "finite logits",
                               "python bench/latency.py --target jetson --run R, which checks the golden windows")
        codes = np.floor(reals.astype(float) / self.job["output"]["scale"] + 0.5)
        return np.clip(codes, -128, 127).astype(np.int8)

    def _receive(self, wanted: bytes, seconds: float) -> bytes:
        """Payload of the next frame; OSError when the worker has gone or is late."""
        until = time.monotonic() + seconds
        kind, length = FRAME.unpack(self._exactly(FRAME.size, until))
        payload = self._exactly(length, until)
        if kind == b"E":
            self._refusal = payload.decode(errors="replace")
            raise BrokenPipeError(0, "it refused:")
        if kind != wanted:
            raise BrokenPipeError(0, f"it sent a frame {kind!r}:")
        return payload

    def _late(self) -> None:
        self._child.kill()
        raise BrokenPipeError(0, "it did not answer in time:")

    def _exactly(self, count: int, until: float) -> bytes:
        parts = []
        while count:
            if not select.select([self._child.stdout], [], [], max(until - time.monotonic(), 0))[0]:
                self._late()
            part = self._child.stdout.read(count)
            if not part:
                self._child.wait()
                raise BrokenPipeError(0, "its pipe closed:")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
