# SPDX-License-Identifier: Apache-2.0
"""C compilers for a core: which one is here, how it is called, what an image holds.

gcc makes the smaller and faster code for all cores but the M55, whose vectors only clang (inside ziglang) uses for
plain C. Either compiles everything. Images are ELF files for bare metal, with the start-up code of firmware/boot/.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import string
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from train.say import MissingError, UserError, choose, need

HERE = Path(__file__).parent
BOOT = HERE / "firmware" / "boot"
KERNELS = HERE / "c"
STARTUP = (BOOT / "ecg_boot.S", BOOT / "ecg_boot.c")
SEMIHOST = BOOT / "ecg_semihost.c"
GET_GCC = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
GET_ZIG = "pip install ziglang"
COMMON = ("-std=c99", "-O2", "-g", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra")

# core -> flags of gcc, zig's name of the processor. zig's M33 and M55 come without DSP and MVE unless asked.
CORES = {
    "m0plus": (("-mcpu=cortex-m0plus", "-mfloat-abi=soft"), "cortex_m0plus"),
    "m3": (("-mcpu=cortex-m3", "-mfloat-abi=soft"), "cortex_m3"),
    "m4": (("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "cortex_m4"),
    "m7": (("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "cortex_m7"),
    "m33": (("-mcpu=cortex-m33", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "cortex_m33+dsp"),
    "m55": (("-mcpu=cortex-m55", "-mfloat-abi=hard"), "cortex_m55+mve"),
}


@dataclass(frozen=True)
class Compiler:
    """command: what starts it, flags of the core included. name: gcc, zig, or cc for this computer."""

    name: str
    command: tuple[str, ...]

    def version(self) -> str:
        """The first line of --version."""
        if "ziglang" in self.command:
            return f"zig {run([*self.command[:3], 'version']).strip()}"
        return run([self.command[0], "--version"]).splitlines()[0]


@dataclass(frozen=True)
class Region:
    """A memory: first address and bytes."""

    origin: int
    length: int


def available(core: str) -> list[str]:
    """The compilers for a core that are here, the preferred one first."""
    if core == "host":
        return ["cc"] if _host() else []
    choose(core, CORES, "core")
    found = [name for name, here in (("gcc", shutil.which("arm-none-eabi-gcc")), ("zig", find_spec("ziglang"))) if here]
    return found[::-1] if core == "m55" else found


def missing(core: str) -> str | None:
    """What keeps code for a core from being compiled here, with the command that gets it; None when nothing does."""
    if available(core):
        return None
    if core == "host":
        return "no C compiler (cc, gcc, clang): apt-get install gcc"
    return f"no C compiler for a Cortex-{core_name(core)}: {GET_ZIG}, or {GET_GCC}"


def core_name(core: str) -> str:
    """As ARM writes it: M0+, M4."""
    return core.upper().replace("PLUS", "+")


def compiler(core: str, using: str | None = None) -> Compiler:
    """The compiler for a core, the preferred one or the one asked for; MissingError when it is not here."""
    names = available(core)
    if not names or (using and using not in names):
        raise MissingError(missing(core) or f"{using} for {core} is not here",
                           "a compiler", missing(core) and missing(core).split(": ")[1])
    name = using or names[0]
    if name == "cc":
        return Compiler("cc", _host())
    flags, cpu = CORES[core]
    if name == "gcc":
        return Compiler("gcc", (shutil.which("arm-none-eabi-gcc"), "-mthumb", *flags))
    abi = "eabi" if core in ("m0plus", "m3") else "eabihf"
    return Compiler("zig", (sys.executable, "-m", "ziglang", "cc", "-target", f"thumb-freestanding-{abi}",
                            f"-mcpu={cpu}", "-fno-sanitize=undefined", "-fno-stack-protector",
                            "-isystem", os.fspath(BOOT / "include")))


def compile(core: str, sources, out: Path, include=(), flags=(), using: str | None = None) -> list[Path]:
    """Compile C and assembler files into objects in the folder `out`; UserError with the compiler's words.

    Files of targets/c and firmware/boot include nothing but each other: their objects are kept from call to call.
    """
    chosen = compiler(core, using)
    out.mkdir(parents=True, exist_ok=True)
    objects = []
    for number, source in enumerate(map(Path, sources)):
        ours = source.resolve().parent in (KERNELS, BOOT)
        words = [*chosen.command, *(() if source.suffix == ".S" else COMMON), *flags,
                 *(f"-I{folder}" for folder in ((KERNELS, BOOT) if ours else (*include, KERNELS, BOOT))),
                 "-c", os.fspath(source)]
        objects.append(_kept(source, words) if ours else out / f"{number:03d}-{source.stem}.o")
        if not (ours and objects[-1].is_file()):
            # another process may make the same one: the name appears when it is whole
            half = objects[-1].with_suffix(f".{os.getpid()}")
            run([*words, "-o", os.fspath(half)])
            half.replace(objects[-1])
    return objects


def cache() -> Path:
    """The user's folder for what can be made again."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadedge"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kept(source: Path, words: list[str]) -> Path:
    """Where the object of a file lies; its name changes with the file, any header of ours and the command."""
    texts = [p.read_bytes() for p in (source, *sorted(p for f in (KERNELS, BOOT) for p in f.rglob("*.[hd]*")))]
    key = hashlib.sha256(b"\0".join([repr(words).encode(), _version(words[0]), *texts])).hexdigest()[:24]
    return cache() / f"{source.stem}-{key}.o"


@lru_cache
def _version(program: str) -> bytes:
    """What tells one compiler from the next."""
    return f"{program} {os.stat(program).st_mtime_ns} {os.stat(program).st_size}".encode()


def link(core: str, objects, elf: Path, script: Path, using: str | None = None) -> Path:
    """Link objects with a linker script (`script`) into an image without a C library's start-up."""
    chosen = compiler(core, using)
    last = ("-lc", "-lgcc") if chosen.name == "gcc" else ()
    silent = ("-Wl,--no-warn-rwx-segments",) if chosen.name == "gcc" else ()
    first = ("--specs=nano.specs",) if chosen.name == "gcc" else ()
    run([*chosen.command, *first, "-nostartfiles", *map(os.fspath, objects), f"-Wl,-T,{script}", "-Wl,--gc-sections",
         *silent, *last, "-o", os.fspath(elf)])
    return elf


def script(path: Path, flash: Region, ram: Region, stack: int = 2048, model: int | Region | None = None) -> Path:
    """Write the linker script of a device. stack: bytes.

    model: where the section .ecg_model goes: an address inside the flash, which it then ends; another memory; or None,
    behind the code.
    """
    if isinstance(model, int):
        end = flash.origin + flash.length
        if model % 16 or not flash.origin < model < end:
            raise UserError(f"the model cannot lie at {model:#x}",
                            f"a multiple of 16 inside {flash.origin:#x}..{end:#x}")
        flash, model = Region(flash.origin, model - flash.origin), Region(model, end - model)
    memory = [("FLASH", "rx", flash), ("RAM", "rwx", ram)] + ([("MODEL", "r", model)] if model else [])
    path.write_text(string.Template((BOOT / "link.ld").read_text()).substitute(
        memory="\n".join(f"    {n} ({a}) : ORIGIN = {r.origin:#x}, LENGTH = {r.length:#x}" for n, a, r in memory),
        stack=stack, where="MODEL" if model else "FLASH"))
    return path


def image(core: str, sources, elf: Path, flash: Region, ram: Region, *, stack: int = 2048,
          model: int | Region | None = None, include=(), flags=(), startup=STARTUP, using: str | None = None) -> Path:
    """Sources to a bootable ELF file; objects and linker script lie beside it in <name>.build/."""
    work = elf.with_suffix(".build")
    objects = compile(core, [*startup, *sources], work, include, flags, using)
    return link(core, objects, elf, script(work / "link.ld", flash, ram, stack, model), using)


def run(command: list[str]) -> str:
    """Output of a tool; UserError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()][:30]
        raise UserError("\n".join([f"{Path(command[0]).name} could not build this (exit {done.returncode})", *words]),
                        "code that compiles and fits", " ".join(command))
    return done.stdout


@lru_cache
def _host() -> tuple[str, ...] | None:
    """How this computer's C compiler is called: its own, else zig's."""
    own = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))), None)
    if own:
        return (own,)
    return (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined") if find_spec("ziglang") else None


@dataclass(frozen=True)
class Symbol:
    """A function or an object of an image: address (without the Thumb bit), bytes, section."""

    address: int
    size: int
    section: str
    function: bool


class Image:
    """What an ELF file holds."""

    def __init__(self, path: Path):
        need("elftools", "mcu")
        from elftools.elf.elffile import ELFFile
        self.sections: dict[str, Region] = {}
        self.symbols: dict[str, Symbol] = {}            # of several with one name (static functions) the last
        self.code: list[tuple[str, Symbol]] = []        # all functions
        self._loaded: list[tuple[int, bytes]] = []
        with open(path, "rb") as file:
            elf = ELFFile(file)
            names = [s.name for s in elf.iter_sections()]
            for part in elf.iter_sections():
                if part["sh_flags"] & 2:                    # SHF_ALLOC: it is in the device's memory
                    self.sections[part.name] = Region(part["sh_addr"], part["sh_size"])
                    if part["sh_type"] != "SHT_NOBITS":
                        self._loaded.append((part["sh_addr"], part.data()))
            for symbol in elf.get_section_by_name(".symtab").iter_symbols():
                at, kind = symbol["st_shndx"], symbol["st_info"]["type"]
                if symbol.name and isinstance(at, int) and kind in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE"):
                    function = kind == "STT_FUNC"
                    found = Symbol(symbol["st_value"] & ~int(function), symbol["st_size"], names[at], function)
                    self.symbols[symbol.name] = found
                    if function:
                        self.code.append((symbol.name, found))

    @property
    def flash(self) -> int:
        """Bytes in flash: code, constants, the model, first values of variables."""
        return sum(self.size(name) for name in (".vectors", ".text", ".rodata", ".ecg_model", ".data"))

    @property
    def ram(self) -> int:
        """Bytes of RAM, stack included."""
        return sum(self.size(name) for name in (".stack", ".data", ".bss", ".noinit"))

    def size(self, section: str) -> int:
        """Bytes of a section, 0 when it is not there."""
        return self.sections[section].length if section in self.sections else 0

    def read(self, address: int, size: int) -> bytes:
        """Bytes that the file puts at an address; fewer than `size` at the end of a section."""
        for origin, data in self._loaded:
            if origin <= address < origin + len(data):
                return data[address - origin:address - origin + size]
        raise KeyError(hex(address))
