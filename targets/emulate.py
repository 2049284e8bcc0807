# SPDX-License-Identifier: Apache-2.0
"""Images in an emulator: run them, read what they print, count what they execute.

QEMU executes instructions exactly and knows nothing of pipelines, caches or wait states: counts are instructions, not
cycles. How to measure a kernel:

    found = emulate.bench_c("m4", [Path("targets/c/dense.c")], '''
        static int8_t x[64], y[64];
        int main(void)
        {
            ecg_mark("dense");          // counted from here ...
            ecg_dense(&layer, &in, &out, 0);
            ecg_mark("");               // ... to here
            ecg_exit(0);
        }''')
    found["dense"].total, found["dense"].functions
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from targets import target, toolchain
from targets.toolchain import Image, Region
from train.say import MissingError, UserError, choose

GET = "apt-get install qemu-system-arm"
PLUGIN = Path(__file__).parent / "counting" / "plugin.c"
SECONDS = 120.0


@dataclass(frozen=True)
class Machine:
    """A machine of QEMU. hz: of its SysTick. Code of smaller cores of the same family runs on it as well."""

    name: str
    core: str
    flash: Region
    ram: Region
    hz: int


def _machines() -> dict[str, Machine]:
    """The machines of boards.toml by QEMU's name."""
    boards = target.boards("mcu").values()
    return {b["qemu"]: Machine(b["qemu"], b["core"], Region(b["flash_at"], b["flash"]), Region(b["ram_at"], b["ram"]),
                               b["mhz"] * 1_000_000) for b in boards if "qemu" in b}


MACHINES = _machines()
OF_CORE = {"m0plus": "mps2-an385", "m3": "mps2-an385", "m4": "mps2-an386", "m7": "mps2-an500", "m33": "mps2-an505",
           "m55": "mps3-an547"}


def missing() -> str | None:
    """What keeps images from running here, with the command that gets it; None when nothing does."""
    return None if shutil.which("qemu-system-arm") else f"qemu-system-arm is not installed: {GET}"


def machine(core: str) -> Machine:
    """The machine that runs code for a core."""
    return MACHINES[OF_CORE[choose(core, OF_CORE, "core")]]


@dataclass(frozen=True)
class Done:
    """How a run ended: exit code of the image, what it printed."""

    code: int
    text: str


def command(elf: Path, on: Machine, *, words: str = "", serial: str = "none", extra=()) -> list[str]:
    """The emulator's command line. words: what ecg_command_line() gives. serial: the first UART, in QEMU's words."""
    if missing():
        raise MissingError(missing().split(":")[0], "QEMU for ARM", GET)
    return [shutil.which("qemu-system-arm"), "-M", on.name, "-display", "none", "-monitor", "none", "-serial", serial,
            "-chardev", "stdio,id=words,signal=off", "-semihosting-config",
            "enable=on,target=native,chardev=words" + (f",arg={words.replace(',', ',,')}" if words else ""),
            "-kernel", os.fspath(elf), *extra]


def run(elf: Path, on: Machine, *, seconds: float = SECONDS, words: str = "", extra=()) -> Done:
    """Run an image to its end; UserError when it does not end in time."""
    with subprocess.Popen(command(elf, on, words=words, extra=extra), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            raise UserError(f"{elf.name} did not end on {on.name} within {seconds:g} s; it printed\n"
                            f"{text.decode(errors='replace')[-2000:]}", "an image that calls ecg_exit()") from None
    return Done(process.returncode, text.decode(errors="replace"))


@contextlib.contextmanager
def running(elf: Path, on: Machine, *, serial: str = "none", words: str = "", extra=()):
    """Yield (process, file of what the emulator and the image print) while an image runs; it ends with the block."""
    with tempfile.TemporaryFile() as text:
        process = subprocess.Popen(command(elf, on, serial=serial, words=words, extra=extra),
                                   stdin=subprocess.DEVNULL, stdout=text, stderr=subprocess.STDOUT)
        try:
            yield process, text
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def on_tcp(elf: Path, on: Machine, *, words: str = "", extra=()):
    """Run an image with its first UART on a TCP port of this computer; yields pyserial's URL of it.

    The image starts when somebody connects, so nothing of what it sends is lost.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serial = f"tcp:127.0.0.1:{port},server=on,wait=on,nodelay=on"
    with running(elf, on, serial=serial, words=words, extra=extra) as (process, text):
        said(process, text, rb"waiting for connection")
        yield f"socket://127.0.0.1:{port}"


@contextlib.contextmanager
def on_pty(elf: Path, on: Machine, *, words: str = "", extra=()):
    """Run an image with its first UART on a pseudo terminal; yields (its path, start).

    Call start() once the terminal is open and raw: what a running image sends before that may be lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder) / "control"
        more = ("-S", "-qmp", f"unix:{control},server=on,wait=off", *extra)
        with running(elf, on, serial="pty", words=words, extra=more) as (process, text):
            path = said(process, text, rb"redirected to (/\S+)")[1].decode()
            yield path, lambda: _start(control)


def said(process: subprocess.Popen, text, pattern: bytes, seconds: float = 20) -> re.Match:
    """Wait until the emulator has printed something; UserError with its words when it ends or stays silent."""
    until = time.monotonic() + seconds
    while True:
        printed = os.pread(text.fileno(), 1 << 20, 0)
        if found := re.search(pattern, printed):
            return found
        if process.poll() is not None or time.monotonic() > until:
            raise UserError(f"the emulator did not start: {printed.decode(errors='replace')[-1000:]}",
                            "a free port and an image")
        time.sleep(0.01)


def _start(control: Path) -> None:
    """Let a stopped machine run, by QEMU's control protocol."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.fspath(control))
        with link.makefile("rw") as lines:
            lines.readline()                                    # its greeting
            for word in ("qmp_capabilities", "cont"):
                lines.write(json.dumps({"execute": word}) + "\n")
                lines.flush()
                while "return" not in json.loads(lines.readline()):
                    pass                                        # events come in between


@dataclass(frozen=True)
class Counts:
    """Instructions executed in a region. visits: of each time it ran, in order. functions: by name, over all visits."""

    visits: list[int] = field(default_factory=list)
    functions: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Over all visits."""
        return sum(self.visits)


def count(elf: Path, on: Machine, *, seconds: float = SECONDS, words: str = "") -> tuple[dict[str, Counts], Done]:
    """Instructions of an image by region; a region runs from ecg_mark(name) to the next mark, "" is what is in none.

    The two instructions that load the next name and call ecg_mark belong to the region before it.
    """
    image = Image(elf)
    mark, text = image.symbols.get("ecg_mark", toolchain.Symbol(0, 0, "", True)), image.sections[".text"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        options = f"base={text.origin},size={text.length + text.length % 2},mark={mark.address},marked={mark.size}"
        done = run(elf, on, seconds=seconds, words=words,
                   extra=("-plugin", f"{plugin()},{options},out={out}"))
        if not out.is_file():
            raise UserError(f"the emulator counted nothing: {done.text[-2000:]}", "QEMU with TCG plugins", GET)
        return read_counts(out.read_text(), image), done


def read_counts(text: str, image: Image) -> dict[str, Counts]:
    """What counting/plugin.c wrote, with names in place of addresses."""
    found: dict[str, Counts] = {}
    starts = {s.address + i: name for name, s in image.code for i in range(0, s.size, 2)}
    region = None
    for line in text.splitlines():
        first, *rest = line.split()
        if first == "visit":
            found.setdefault(_name(image, int(rest[0])), Counts()).visits.append(int(rest[1]))
        elif first == "region":
            region = found[_name(image, int(rest[0]))]
        else:
            region.functions[starts.get(int(first), "?")] += int(rest[0])
    return found


def _name(image: Image, address: int) -> str:
    """The string literal at an address."""
    return image.read(address, 200).split(b"\0")[0].decode() if address else ""


def plugin() -> Path:
    """The counting plugin, built at need into the user's cache folder."""
    built = toolchain.cache() / f"counting-{hashlib.sha256(PLUGIN.read_bytes()).hexdigest()[:16]}.so"
    if not built.is_file():
        half = built.with_suffix(f".{os.getpid()}")
        toolchain.run([*toolchain.compiler("host").command, "-std=c99", "-O2", "-shared", "-fPIC", os.fspath(PLUGIN),
                       "-o", os.fspath(half)])
        half.replace(built)
    return built


def bench_c(core: str, sources, main_c: str, *, include=(), flags=(), using: str | None = None, stack: int = 4096,
            keep: Path | None = None, seconds: float = SECONDS) -> dict[str, Counts]:
    """Compile C sources with a main() given as text, run it, count by region (see count).

    main_c need not include ecg_boot.h, ecg_semihost.h, ecg_kernels.h. It must end with ecg_exit(0). keep: folder for
    the image, bench.elf, and its objects. UserError when it ends otherwise, with what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        main = work / "main.c"
        main.write_text('#include "ecg_boot.h"\n#include "ecg_semihost.h"\n#include "ecg_kernels.h"\n' + main_c)
        on = machine(core)
        elf = toolchain.image(core, [main, toolchain.SEMIHOST, *sources], work / "bench.elf", on.flash, on.ram,
                              stack=stack, include=include, flags=flags, using=using)
        found, done = count(elf, on, seconds=seconds)
    if done.code:
        raise UserError(f"the image ended with {done.code} and printed\n{done.text[-2000:]}", "ecg_exit(0)")
    return found
