# SPDX-License-Identifier: Apache-2.0
"""Build and measure a run on another computer over the system's ssh, with its runtime and this repository's scripts.

The computer needs a checkout of this repository with the target's extra installed, and a login without a password. The
run's folder there is runs/NAME-IDENTITY, so that no other run is touched.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

from train import say

OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
FILES = ("model.json", "graph.json", "graph.npz", "golden.npz")
LATE = 1200             # seconds that building or measuring may take beside --seconds
LOST = 255              # ssh's own exit status: no connection, or none any more


def measure(device: str, checkout: str, run: Path, identity: str, target: str, seconds: float) -> dict:
    """What bench/latency.py --json says there, after targets/deploy.py built the run there."""
    for word, what in ((device, "--device"), (checkout, "--checkout")):
        if not re.fullmatch(r"[\w./][\w.:@/-]*", word):
            say.fail(f"{what} {word!r}", "letters, digits and . / : @ -")
    there = f"runs/{run.name}-{identity[:8]}"
    found = _call(device, ["ssh", *OPTIONS, device,
                           f"test -f {shlex.quote(checkout)}/bench/latency.py && mkdir -p "
                           f"{shlex.quote(checkout)}/{shlex.quote(there)}"])
    if found.returncode:
        extra = "." if target == "host" else f'".[{target}]"'
        raise say.MissingError(f"no LeadEdge in {checkout} on {device}", "a checkout of this repository",
                               f"put one there, and in it: pip install -e {extra}; --checkout says where it is")
    copied = _call(device, ["scp", *OPTIONS, "-q", *(str(run / f) for f in FILES), f"{device}:{checkout}/{there}/"])
    if copied.returncode:
        raise say.MissingError(f"the run does not get to {device}: {_last(copied)}", f"room in {checkout}/runs there",
                               f"ssh {device} df -h {checkout}")
    say.info(f"building and measuring in {checkout}/{there} on {device}")
    built = _script(device, checkout, ["targets/deploy.py", "--run", there, "--target", target], LATE)
    if built["identity"] != identity:
        say.fail(f"{device} built another model ({built['identity'][:16]})", identity[:16],
                 f"the same version of LeadEdge in {checkout} on {device}")
    words = ["bench/latency.py", "--run", there, "--target", target, "--seconds", f"{seconds:g}"]
    return _script(device, checkout, words, LATE + 20 * seconds)


def _script(device: str, checkout: str, words: list[str], late: float) -> dict:
    """The JSON object that a script there prints; its error becomes ours."""
    command = (f"cd {shlex.quote(checkout)} && P=.venv/bin/python; [ -x $P ] || P=python3; "
               f"$P {shlex.join([*words, '--json'])}")
    done = _call(device, ["ssh", *OPTIONS, device, command], late)
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise say.MissingError(f"{words[0]} on {device} says no JSON: {_last(done)}",
                               f"the same version of LeadEdge in {checkout} there", f"ssh {device}") from error
    if "error" in said:
        kind = say.MissingError if done.returncode == say.MISSING else say.UserError
        raise kind(f"on {device}: {said['error']['what']}", said["error"]["expected"], said["error"]["fix"])
    return said


def _call(device: str, argv: list[str], late: float = 120) -> subprocess.CompletedProcess:
    """A finished ssh or scp; MissingError when it is absent, late or has no connection."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=late)
    except FileNotFoundError as error:
        raise say.MissingError(f"{argv[0]} is not installed", "OpenSSH's client", "install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise say.MissingError(f"{device} did not answer within {late:g} s", "", f"ssh {device} uptime") from error
    if done.returncode == LOST:
        raise say.MissingError(f"no connection to {device}: {_last(done)}", "a login by key, without a password",
                               f"ssh-copy-id {device}, then ssh {device} once by hand")
    return done


def _last(done: subprocess.CompletedProcess) -> str:
    """The last words on stderr."""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
