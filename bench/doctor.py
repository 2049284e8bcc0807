# SPDX-License-Identifier: Apache-2.0
"""What is installed, what is missing and the one command that gets it, which runs exist and what to type next.

python bench/doctor.py [--runs runs]
"""

from __future__ import annotations

import pathlib
import platform
import shutil
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import manifest as manifests
from train import runs, say

PYTHON = (3, 10)
# extra -> (what it is for, packages)
EXTRAS = {
    "core": ("every stage", ("numpy", "pyserial", "cobs", "rich")),
    "train": ("training", ("torch", "wfdb", "scipy", "safetensors", "h5py", "scikit-learn")),
    "compress": ("quantization", ("torchao",)),
    "arm": ("the arm target", ("onnx", "onnxruntime")),
    "mcu": ("microcontrollers", ("ziglang", "pyelftools", "pyocd", "esptool", "stm32loader")),
    "dev": ("the tests", ("pytest", "pytest-xdist", "hypothesis", "ruff")),
}
COMPILERS = ("cc", "gcc", "clang", "arm-none-eabi-gcc")


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Tell what is installed, what is missing, which runs exist and what to type next.")
    p.add_argument("--runs", default="runs", metavar="DIR", help="folder of run folders (default runs)")
    return p


def packages() -> list[dict]:
    """Installed version of every package of every extra, None where it is absent. Nothing is imported."""
    from importlib import metadata
    rows = []
    for extra, (purpose, names) in EXTRAS.items():
        for name in names:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                version = None
            rows.append({"package": name, "extra": extra, "for": purpose, "version": version})
    return rows


def install(extra: str) -> str:
    """The command that installs an extra."""
    return "pip install -e ." if extra == "core" else f'pip install -e ".[{extra}]"'


def serial_ports() -> list[dict] | None:
    """Ports with what is plugged in; None without pyserial."""
    try:
        from serial.tools import list_ports
    except ImportError:
        return None
    return [{"port": p.device, "what": p.description} for p in sorted(list_ports.comports())]


def find_runs(folder: pathlib.Path) -> list[dict]:
    """State of every run folder: trained, quantized, the targets it is built for."""
    return [_state(path.parent) for path in sorted(folder.glob("*/model.json"))]


def _state(run: pathlib.Path) -> dict:
    """A run that cannot be read keeps its place in the list, with the reason."""
    state = {"run": str(run), "arch": None, "task": None, "trained": (run / "weights.safetensors").is_file(),
             "quantized": False, "built": [], "stale": [], "broken": None}
    try:
        from targets import target
        manifest = manifests.load(run)
        state |= {"arch": manifest.arch, "task": manifest.task}
        graph = [run / "graph.json", run / "graph.npz"]
        if manifest.frozen:
            state["quantized"] = all(p.is_file() for p in graph) and runs.sha256(*graph) == manifest.graph_sha256
            if not state["quantized"]:
                state["broken"] = "graph.json or graph.npz is not the one that model.json vouches for"
        for name, entry in target.read_builds(run).items():
            fresh = entry["identity"] == manifest.identity.hex() and (run / entry["path"]).is_file()
            state["built" if fresh else "stale"].append(name)
    except (say.UserError, OSError, KeyError) as error:
        state["broken"] = getattr(error, "what", str(error))
    return state


def advise(missing: list[str], found: list[dict]) -> str:
    """The next command: install, train and quantize, deploy, or check."""
    if "core" in missing:
        return install("core")
    broken = next((r for r in found if r["broken"]), None)
    raw = next((r for r in found if not r["broken"] and not r["quantized"]), None)
    unbuilt = next((r for r in found if r["quantized"] and not r["built"]), None)
    built = next((r for r in found if r["built"]), None)
    if unbuilt and "arm" not in missing:
        return f"python targets/deploy.py --run {unbuilt['run']} --target {next(iter(targets.TARGETS))}"
    if built and not raw:
        return f"python bench/parity.py --run {built['run']} --target {built['built'][0]}"
    for extra in ("train", "compress", "arm"):
        if extra in missing:
            return install(extra)
    if raw or broken:
        run = raw or broken
        return f"python compress/qat.py --arch {run['arch'] or 'local-lead'} --run {run['run']}"
    return "python compress/qat.py --arch local-lead"


def main(args) -> dict:
    """Print everything, then one line of advice."""
    rows = packages()
    missing = list(dict.fromkeys(r["extra"] for r in rows if r["version"] is None))
    # without the core packages neither targets nor runs can be looked at
    found = [] if "core" in missing else find_runs(pathlib.Path(args.runs))
    states = {} if "core" in missing else {name: targets.load(name).missing() for name in targets.TARGETS}
    python_ok = sys.version_info[:2] >= PYTHON
    say.info(f"Python {platform.python_version()} on {platform.platform()}"
             + ("" if python_ok else f": too old, {'.'.join(map(str, PYTHON))} or later is needed"))
    say.table([(r["package"], r["version"] or "missing", r["for"], "" if r["version"] else install(r["extra"]))
               for r in rows], ("package", "version", "for", "get it with"))
    compilers = {name: shutil.which(name) for name in COMPILERS}
    present = [name for name, path in compilers.items() if path]
    say.info("C compiler: " + (", ".join(present) or "none (apt-get install gcc)"))
    emulator = _emulator() if "core" not in missing else None
    say.info(f"emulator of microcontrollers: {emulator or 'ready'}")
    for name, absent in states.items():
        say.info(f"target {name}: {absent or 'ready'}")
    ports = serial_ports()
    say.info("serial ports: " + ("unknown, " + install("core") if ports is None else
                                 ", ".join(f"{p['port']} ({p['what']})" for p in ports) or "none; plug a front-end in"))
    _print_runs(found, args.runs)
    step = advise(missing, found)
    say.info(f"next: {step}")
    return {"python": platform.python_version(), "python_ok": python_ok, "packages": rows, "compilers": compilers,
            "targets": states, "emulator": emulator, "serial_ports": ports, "runs": found, "next": step}


def _emulator() -> str | None:
    """What keeps images from running here."""
    from targets import emulate
    return emulate.missing()


def _print_runs(found: list[dict], folder: str) -> None:
    if not found:
        say.info(f"runs in {folder}: none; python compress/qat.py --arch local-lead makes one")
        return
    say.table([(r["run"], r["arch"], r["task"], "yes" if r["trained"] else "no", "yes" if r["quantized"] else "no",
                ", ".join(r["built"] + [f"{t} (of an older model)" for t in r["stale"]]) or "-", r["broken"] or "")
               for r in found], ("run", "arch", "task", "trained", "quantized", "built for", "broken"))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
