# SPDX-License-Identifier: Apache-2.0
"""Build and measure a run on another computer over the system's ssh, with its runtime and this repository's scripts.

The computer needs a checkout of this repository with the target's extra installed, and a login without a password. The
run's folder there is runs/NAME-IDENTITY, so that no other run is touched.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

from targets import jetson_ssh
from train import say

FILES = ("model.json", "graph.json", "graph.npz", "golden.npz")
LATE = 1200             # seconds that building or measuring may take beside --seconds


def measure(device: str, checkout: str, run: Path, identity: str, target: str, seconds: float) -> dict:
    """What bench/latency.py --json says there, after targets/deploy.py built the run there."""
    if not re.fullmatch(r"[\w./][\w./-]*", checkout):
        say.fail(f"--checkout {checkout!r}", "letters, digits and . / -")
    there = f"runs/{re.sub(r'[^A-Za-z0-9_.-]', '_', run.name)}-{identity[:8]}"
    with jetson_ssh.Connection(device) as line:
        _send(line, checkout, there, run, target)
        say.info(f"building and measuring in {checkout}/{there} on {device}")
        built = _script(line, checkout, ["targets/deploy.py", "--run", there, "--target", target], LATE)
        if built["identity"] != identity:
            say.fail(f"{device} built another model ({built['identity'][:16]})", identity[:16],
                     f"the same version of LeadEdge in {checkout} on {device}")
        words = ["bench/latency.py", "--run", there, "--target", target, "--seconds", f"{seconds:g}"]
        return _script(line, checkout, words, LATE + 20 * seconds)


def _send(line: jetson_ssh.Connection, checkout: str, there: str, run: Path, target: str) -> None:
    """Copy the quantized run into the checkout."""
    if _call(line, f"test -f {checkout}/bench/latency.py", doing="when it was asked for LeadEdge").returncode:
        extra = "." if target == "host" else f'".[{target}]"'
        raise say.MissingError(f"no LeadEdge in {checkout} on {line.device}", "a checkout of this repository",
                               f"put one there, and in it: pip install -e {extra}; --checkout says where it is")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in FILES:
            archive.add(run / name, name)
    done = _call(line, f"mkdir -p {checkout}/{there} && tar -xf - -C {checkout}/{there}", packed.getvalue(),
                 doing="while the run was copied")
    if done.returncode:
        raise say.MissingError(f"the run does not get to {line.device}: {_last(done)}", "room for a few hundred kB",
                               f"ssh {line.device} df -h {checkout}")


def _script(line: jetson_ssh.Connection, checkout: str, words: list[str], late: float) -> dict:
    """The JSON object that a script there prints; its error becomes ours."""
    done = _call(line, f"cd {checkout} && P=.venv/bin/python; [ -x $P ] || P=python3; "
                       f"$P {shlex.join([*words, '--json'])}", late=late)
    try:
        said = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise say.MissingError(f"{words[0]} on {line.device} says no JSON: {_last(done)}",
                               f"the same version of LeadEdge in {checkout} there", f"ssh {line.device}") from error
    if "error" in said:
        kind = say.MissingError if done.returncode == say.MISSING else say.UserError
        raise kind(f"on {line.device}: {said['error']['what']}", said["error"]["expected"], said["error"]["fix"])
    return said


def _call(line: jetson_ssh.Connection, command: str, stdin: bytes = b"", late: float = 120,
          doing: str | None = None) -> subprocess.CompletedProcess:
    """A finished shell command there; MissingError when it is late or there is no connection (any more)."""
    try:
        done = subprocess.run(line.ssh(command), input=stdin, capture_output=True, timeout=late)
    except subprocess.TimeoutExpired as error:
        raise say.MissingError(f"{line.device} did not answer within {late:g} s", "",
                               f"ssh {line.device} uptime") from error
    if done.returncode == jetson_ssh.SSH_FAILED:
        if doing:
            line.check(done.returncode, done.stderr.decode(errors="replace"), doing)
        raise say.MissingError(f"the connection to {line.device} was lost while it built or measured: {_last(done)}",
                               "nothing of it is kept", "repeat the command")
    return done


def _last(done: subprocess.CompletedProcess) -> str:
    """The last words on stderr."""
    return (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
