# SPDX-License-Identifier: Apache-2.0
"""ARM Linux on this computer: Python and the runtimes' own aarch64 wheels under an emulated Cortex-A.

    python targets/arm_userland.py [--to DIR] [--mirror URL]

sets it up in the user's cache folder, without root, containers or binfmt. What runs there is what a Raspberry Pi
runs: labels, logits and crashes are real. Times are not: they say nothing about any board.

The folder holds bin/qemu-aarch64, root/ (C library and Python of Debian), site/ (the wheels) and ready.json, which
vouches for the rest. The system's package manager fetches and verifies the packages, with lists and settings of its
own; pip fetches the wheels, in the versions of constraints.txt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from targets import toolchain
from train import say
from train.say import MissingError, UserError

CPUS = ("cortex-a53", "cortex-a76")             # without and with the instructions for int8 dot products
# Debian 12's emulator (7.2) crashes on importing ONNX Runtime; that of Debian 13 (10.0) does not
QEMU_SUITE, SUITE = "trixie", "bookworm"
PACKAGES = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libcrypt1",
            "libssl3", "libuuid1", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal")
PYTHON = "3.11"                                 # of SUITE
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
GLIBC = ("2_28", "2_27", "2_17")                # that the wheels may need; SUITE has 2.36
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = {"bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
COMMAND = "python targets/arm_userland.py"
# the import writes the bytecode that every later start reads; the versions say that it was the emulated Python
SMOKE = """
import ctypes, json, platform
from importlib.metadata import version
import numpy, onnxruntime
from ai_edge_litert.interpreter import Interpreter
print(json.dumps({"machine": platform.machine(), "python": platform.python_version(),
                  **{name: version(name) for name in ("numpy", "onnxruntime", "ai-edge-litert")}}))
"""


@dataclass(frozen=True)
class Userland:
    """A folder that `setup` made."""

    path: Path

    @property
    def versions(self) -> dict[str, str]:
        """Of Python and of the wheels."""
        return json.loads((self.path / "ready.json").read_text())

    def python(self, cpu: str, *arguments, paths=(), write: bool = False,
               timeout: float = 900) -> subprocess.CompletedProcess:
        """Run the aarch64 Python; `paths` come first on its sys.path, `write` lets it keep bytecode. timeout: s."""
        root = self.path / "root"
        path = os.pathsep.join(map(os.fspath, (*paths, self.path / "site")))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QEMU_", "LD_"))}
        return subprocess.run(
            [self.path / "bin" / "qemu-aarch64", "-cpu", cpu, "-L", root, root / "usr" / "bin" / f"python{PYTHON}",
             *(() if write else ("-B",)), "-s", *map(str, arguments)],
            env=kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, errors="replace",
            timeout=timeout)


def missing(to: Path | None = None, mirror: str | None = None) -> str | None:
    """What keeps an ARM userland from being set up here, with what to type; None when nothing does or it is there."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the emulated ARM userland needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if whole(to or home()):
        return None
    absent = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    if absent:
        return f"{' and '.join(absent)} not found: the ARM userland is made of Debian's packages, run it on Debian"
    if not KEYRING.is_file():
        return f"{KEYRING} is not there, without which no package is verified: apt-get install debian-archive-keyring"
    if not (mirror or debian_mirror()):
        return f"apt's sources name no mirror of Debian: {COMMAND} --mirror URL"
    return None


def home() -> Path:
    """The folder in the user's cache; its name changes with whatever goes into it."""
    recipe = repr((QEMU_SUITE, SUITE, PACKAGES, wheels(), SMOKE)).encode()
    return toolchain.cache() / f"arm-userland-{hashlib.sha256(recipe).hexdigest()[:12]}"


def whole(path: Path) -> bool:
    """Was it made to the end?"""
    return (path / "ready.json").is_file()


def wheels() -> list[str]:
    """WHEELS with the versions of constraints.txt."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    return [f"{name}=={pinned[name]}" for name in WHEELS]


@lru_cache
def debian_mirror() -> str | None:
    """The mirror that this machine's own sources name for Debian's main component."""
    done = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                           "Created-By: Packages"], capture_output=True, text=True, errors="replace")
    rows = [line.split() for line in done.stdout.splitlines()]
    return next((row[0] for row in rows if len(row) == 3 and row[1] in DEBIAN and row[2] == "main"), None)


def setup(to: Path | None = None, mirror: str | None = None) -> Userland:
    """The userland, made on first use; MissingError in words where it cannot be had."""
    path = to or home()
    if not whole(path):
        absent = missing(path, mirror)
        if absent:
            raise MissingError(absent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{path.name}.lock")):
            if not whole(path):             # another process may just have made it
                _make(path, mirror or debian_mirror())
    return Userland(path)


@contextlib.contextmanager
def _alone(lock: Path):
    """One process at a time."""
    import fcntl
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(path: Path, mirror: str) -> None:
    """Make it beside `path`, try it, and give it its name when all is well."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} holds something else than a whole ARM userland", "a folder that does not exist yet",
                        f"delete it, or {COMMAND} --to another folder")
    for left in filter(Path.is_dir, path.parent.glob(f"{path.name}.*")):     # of one that was killed; we hold the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as work:
        work, made = Path(work), Path(work) / "made"
        for package in _packages(work / "qemu", mirror, QEMU_SUITE, "amd64", ("qemu-user",)):
            _run("unpacking", ["dpkg-deb", "-x", package, work / "emulators"])
        (made / "bin").mkdir(parents=True)
        shutil.copy2(work / "emulators" / "usr" / "bin" / "qemu-aarch64", made / "bin")
        for package in _packages(work / "debian", mirror, SUITE, "arm64", PACKAGES):
            _run("unpacking", ["dpkg-deb", "-x", package, made / "root"])
        _wheels(made / "site")
        for cpu in CPUS:
            versions = _smoke(Userland(made), cpu)
        (made / "ready.json").write_text(json.dumps(versions, indent=2) + "\n")
        os.replace(made, path)


def _packages(work: Path, mirror: str, suite: str, architecture: str, names) -> list[Path]:
    """Download packages of a suite, checked against Debian's keys, with lists that are not the system's."""
    for folder in ("etc", "lists/partial", "cache/archives/partial", "debs"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "etc" / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    options = {"Dir::Etc": work / "etc", "Dir::State::Lists": work / "lists", "Dir::State::status": work / "status",
               "Dir::Cache": work / "cache", "APT::Architecture": architecture, "APT::Architectures": architecture,
               "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any", "Acquire::Languages": "none",
               "Acquire::AllowInsecureRepositories": "false", "APT::Get::AllowUnauthenticated": "false"}
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    _run(f"Debian's list of {suite}", [*apt, "update"])
    _run(f"packages of {suite}", [*apt, "download", *names], cwd=work / "debs")
    found = sorted((work / "debs").glob("*.deb"))
    if len(found) != len(names):
        raise MissingError(f"of {len(names)} packages {len(found)} arrived", " ".join(names))
    return found


def _wheels(site: Path) -> None:
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_aarch64")]
    _run("the aarch64 wheels", [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", site,
                                "--only-binary=:all:", "--python-version", PYTHON, *platforms,
                                "--platform", "manylinux2014_aarch64", *wheels()])


def _smoke(userland: Userland, cpu: str) -> dict[str, str]:
    """Import every runtime under a processor."""
    done = userland.python(cpu, "-c", SMOKE, write=True)
    if done.returncode:
        raise MissingError(f"the ARM userland does not run under {cpu} (exit {done.returncode}): "
                           f"{_last(done.stderr)}", "Python, ONNX Runtime and LiteRT that can be imported")
    return json.loads(done.stdout)


def _run(what: str, command, cwd: Path | None = None) -> None:
    """Run a tool; MissingError with its last words when it fails."""
    done = subprocess.run(list(map(os.fspath, command)), capture_output=True, text=True, errors="replace", cwd=cwd)
    if done.returncode:
        words = _last(done.stderr + done.stdout)
        fix = "apt-get install --only-upgrade debian-archive-keyring" if "NO_PUBKEY" in words \
            else f"with a network: {COMMAND}"
        raise MissingError(f"{what} could not be had: {words}", "packages from the mirror that apt's sources name", fix)


def _last(text: str) -> str:
    """The last lines of a tool's output."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:]) or "it said nothing"


def parser() -> say.Parser:
    """Options of the script."""
    made = say.Parser(description=__doc__.split("\n\n")[0])
    made.add_argument("--to", type=Path, metavar="DIR", help="folder to make; by default one in the user's cache")
    made.add_argument("--mirror", metavar="URL", help="mirror of Debian; by default the one of apt's own sources")
    return made


def main(args) -> dict:
    """Set up and say what is there."""
    userland = setup(args.to and args.to.resolve(), args.mirror)
    versions = userland.versions
    say.info(f"{userland.path}: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return {"path": str(userland.path), "versions": versions}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
