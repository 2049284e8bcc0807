# SPDX-License-Identifier: Apache-2.0
"""Every C file of the device: no warning under any compiler, small stack frames, no heap, no floating point; C++."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import graphs as make
import pytest
from test_engine import beat_model, hop_model

from targets import c_model, firmware_image, pack, target, toolchain, twin

C, FIRMWARE = toolchain.KERNELS, firmware_image.FIRMWARE
ENGINE = sorted(C.glob("*.c"))          # the link's codec included
APPLICATION = [*sorted(FIRMWARE.glob("app*.c")), firmware_image.MAIN, *sorted(FIRMWARE.glob("sensors/*.c"))]
BOOT = sorted((FIRMWARE / "boot").glob("*.c"))
INCLUDE = [f"-I{folder}" for folder in (C, FIRMWARE, FIRMWARE / "boot")]
SIZES = ["-DAPP_MODELS=2", "-DAPP_CLASSES=5", "-DHAL_CHANNELS=3"]
STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wshadow", "-Wcast-qual",
          "-Wvla", "-Wstrict-prototypes", "-Wundef", "-pedantic", "-Werror"]
FRAME = 512         # bytes of a function's stack frame; less is asked for
CORES = ("m0plus", "m3", "m4", "m33", "m55")
BOARDS = {key: board for key, board in target.boards("mcu").items() if "hal" in board}
# what clang has to say about that is taste: names, C11, layout, a switch that has a default
TASTE = ["sign-conversion", "padded", "declaration-after-statement", "unsafe-buffer-usage", "switch-default",
         "missing-prototypes", "missing-variable-declarations", "pre-c23-compat", "pre-c11-compat",
         "unknown-warning-option"]
# of the C library and of libgcc: copies, and integers that a core cannot multiply or divide
HELPERS = {"memcpy", "memmove", "memset", "memcmp", "strlen", "__aeabi_idiv", "__aeabi_uidiv", "__aeabi_idivmod",
           "__aeabi_uidivmod", "__aeabi_lmul", "__aeabi_ldivmod", "__aeabi_uldivmod", "__aeabi_lasr", "__aeabi_llsl",
           "__aeabi_llsr", "__gnu_thumb1_case_uqi", "__gnu_thumb1_case_sqi", "__gnu_thumb1_case_uhi",
           "__gnu_thumb1_case_shi", "__gnu_thumb1_case_si"}
FORBIDDEN = re.compile(r"__aeabi_c?[fd](?!iv)\w*|__aeabi_\w*2[fd]\b|__aeabi_[fd]div|__\w+[sd]f[23]|\w*printf\w*"
                       r"|_*(malloc|calloc|realloc|free|sbrk)(_r)?")
MODELS = {"every kind": (make.every_kind, None), "learned": (make.learned, None), "gated": (make.gated, None),
          "hops": (lambda: hop_model()[1], lambda: hop_model()[0]),
          "beats": (lambda: beat_model()[1], lambda: beat_model()[0])}


def clean(command: list, folder: Path, files) -> None:
    """Compile into `folder`; fails with the compiler's words."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*map(str, command), "-c", *map(str, files)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[:4000]


def tool(name: str) -> str:
    """The path of a program; skips without it."""
    found = shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


@lru_cache
def clang() -> str:
    """clang-19, or whatever clang is here."""
    return shutil.which("clang-19") or tool("clang")


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """core -> folder with the object of every file, compiled once without a warning, and gcc's word on its stack."""
    folder, done = tmp_path_factory.mktemp("objects"), set()

    def compiled(core: str) -> Path:
        if toolchain.missing(core):
            pytest.skip(toolchain.missing(core))
        chosen = toolchain.compiler(core)
        if core not in done:
            extra = ["-fstack-usage"] if chosen.name == "gcc" else [f"-Wframe-larger-than={FRAME - 1}"]
            clean([*chosen.command, *STRICT, *extra, *INCLUDE, *SIZES], folder / core, [*ENGINE, *APPLICATION, *BOOT])
            done.add(core)
        return folder / core
    return compiled


@pytest.mark.parametrize("files", ([*ENGINE], [*APPLICATION, FIRMWARE / "hal_host.c"]), ids=("engine", "firmware"))
def test_gcc_and_its_analyzer_find_nothing_on_this_computer(files, tmp_path):
    clean([tool("gcc"), *STRICT, "-fanalyzer", *INCLUDE, *SIZES], tmp_path, files)


def test_what_python_calls_is_clean_as_well(tmp_path):
    newer = ["-std=c11" if flag == "-std=c99" else flag for flag in STRICT]        # for aligned_alloc
    clean([tool("gcc"), *newer, "-fanalyzer", *INCLUDE], tmp_path, sorted(C.glob("host/*.c")))


@pytest.mark.parametrize("files", ([*ENGINE], [*APPLICATION]), ids=("engine", "firmware"))
def test_clang_with_every_warning_finds_nothing(files, tmp_path):
    flags = ["-std=c99", "-O2", "-Weverything", "-Werror", *(f"-Wno-{name}" for name in TASTE)]
    clean([clang(), *flags, *INCLUDE, *SIZES], tmp_path, files)


@pytest.mark.parametrize("core", CORES)
def test_every_core_compiles_every_file_without_a_warning_in_small_frames(core, objects):
    rows = [line.split("\t") for path in objects(core).glob("*.su") for line in path.read_text().splitlines()]
    if toolchain.compiler(core).name != "gcc":      # there the compiler itself has held each frame against the limit
        return
    sizes = {where.split(":")[-1]: int(size) for where, size, _ in rows}
    largest = max(sizes, key=sizes.get)
    print(f"{core}: {sizes[largest]} bytes in {largest}")
    assert len(sizes) > 150 and sizes[largest] < FRAME, f"{largest} takes {sizes[largest]} bytes of stack"
    assert {kind for *_, kind in rows} <= {"static", "dynamic,bounded"}


@pytest.mark.parametrize("core", ("m0plus", "m4"))
def test_the_only_helpers_are_those_of_integers_and_copies(core, objects):
    names = subprocess.run([tool("arm-none-eabi-nm"), *sorted(map(str, objects(core).glob("*.o")))],
                           capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in names.splitlines() if line.strip() and not line.endswith(":")]
    asked, made = ({row[-1] for row in rows if (row[-2] == "U") == wanted} for wanted in (True, False))
    ours = re.compile(r"ecg_|hal_|app_|max30003_|ads1292r_|parity_|main$")
    assert {name for name in asked - made if not ours.match(name)} <= HELPERS


@pytest.mark.parametrize("core", ("m4", "m33"))
def test_no_instruction_computes_in_floating_point(core, objects):
    listing = subprocess.run([tool("arm-none-eabi-objdump"), "-d", *sorted(map(str, objects(core).glob("*.o")))],
                             capture_output=True, text=True, check=True).stdout
    assert listing.count("\n") > 10_000
    assert not re.findall(r"\tv(?!mov|ldr|str|ldm|stm|push|pop)\w+\.(?:f16|f32|f64)\b", listing)


@pytest.mark.parametrize("core", ("m0plus", "m4"))
def test_a_linked_image_holds_neither_heap_nor_floating_point(core, tmp_path):
    if toolchain.missing(core):
        pytest.skip(toolchain.missing(core))
    m, graph = beat_model()
    source = c_model.generate(graph, m, pack.CORES[core])
    twin.write(source, tmp_path)
    (tmp_path / "main.c").write_text(USES_ALL)
    on = toolchain.Region(0, 1 << 20), toolchain.Region(0x2000_0000, 1 << 20)
    elf = toolchain.image(core, [tmp_path / "main.c", toolchain.SEMIHOST, tmp_path / "model.c", tmp_path / "kernels.c",
                                 *(C / name for name in twin.ENGINE), *twin.sources(source.kernels)],
                          tmp_path / "image.elf", *on, include=[tmp_path])
    image = toolchain.Image(elf)
    assert {"ecg_push", "ecg_window", "ecg_check"} <= set(image.symbols)
    assert not [name for name in image.symbols if FORBIDDEN.fullmatch(name)]


USES_ALL = """
#include "ecg_semihost.h"
#include "model.h"

static uint64_t memory[MODEL_RAM / 8];
static ecg_t engine;
static int8_t codes[4096], logits[MODEL_CLASSES];

int main(void)
{
    const int8_t *at[] = {codes, codes, codes, codes, codes};
    const int32_t frames[MODEL_LEADS] = {0};
    ecg_result r;
    int wrong = ecg_check(&model) | ecg_init(&engine, &model, &model_rate, memory, sizeof memory);
    ecg_patient(&engine, 60, 1);
    wrong |= ecg_window(&engine, at, logits);
    ecg_push(&engine, frames, 1, &r);
    ecg_push_codes(&engine, codes, 1, &r);
    ecg_bad(&engine);
    ecg_reset(&engine);
    ecg_exit(wrong + r.ready);
}
"""


@pytest.mark.parametrize("name", ("malloc", "_malloc_r", "__aeabi_fadd", "__aeabi_dmul", "__aeabi_i2d", "__aeabi_f2iz",
                                  "__aeabi_cdcmple", "__adddf3", "printf", "__aeabi_d2f", "__aeabi_fdiv"))
def test_these_names_would_be_found(name):
    assert FORBIDDEN.fullmatch(name)


def test_these_names_are_no_floating_point():
    assert not [name for name in HELPERS if FORBIDDEN.fullmatch(name)]


@pytest.mark.parametrize("name", BOARDS)
def test_the_hal_of_a_board_is_clean(name, tmp_path):
    board = BOARDS[name]
    if toolchain.missing(board["core"]):
        pytest.skip(toolchain.missing(board["core"]))
    files = [path for path in firmware_image.hal(board) if Path(path).suffix == ".c"]
    extra = ["-fstack-usage"] if toolchain.compiler(board["core"]).name == "gcc" else []
    clean([*toolchain.compiler(board["core"]).command, *STRICT, *extra, *INCLUDE, *SIZES, *board.get("flags", ())],
          tmp_path, files)
    for line in (line for path in tmp_path.glob("*.su") for line in path.read_text().splitlines()):
        assert int(line.split("\t")[1]) < FRAME, line


@pytest.mark.parametrize("chip", ("1292", "30003"))
@pytest.mark.parametrize("core", ("m0plus", "m4"))
def test_the_hal_of_a_chip_is_clean(core, chip, tmp_path):
    if toolchain.missing(core):
        pytest.skip(toolchain.missing(core))
    flags = [f"-DHAL_SENSOR={chip}", "-DHAL_SENSOR_FS=250", "-DHAL_SENSOR_GAIN=6"]
    clean([*toolchain.compiler(core).command, *STRICT, *INCLUDE, *SIZES, *flags], tmp_path, [FIRMWARE / "hal_sensor.c"])


def test_the_programs_of_the_emulator_are_clean(tmp_path):
    if toolchain.missing("m4"):
        pytest.skip(toolchain.missing("m4"))
    m, graph = hop_model()
    twin.write(c_model.generate(graph, m, pack.CORES["m4"]), tmp_path)
    clean([*toolchain.compiler("m4").command, *STRICT, *INCLUDE, f"-I{tmp_path}", "-DRUN_INPUT_BYTES=160",
           "-DRUN_CLASSES=3"], tmp_path, [FIRMWARE / "run_main.c", FIRMWARE / "parity_main.c"])


@pytest.mark.parametrize("core", ("host", "m0plus", "m4", "m4 wide", "m55"))
@pytest.mark.parametrize("name", MODELS)
def test_a_generated_model_is_clean(name, core, tmp_path):
    graph, manifest = (function and function() for function in MODELS[name])
    packed = pack.CORES[core.split()[0]]
    packed = replace(packed, name=core, wide=True) if core.endswith("wide") else packed
    twin.write(c_model.generate(graph, manifest, packed, fs_in=360 if manifest else None), tmp_path)
    files = [tmp_path / "model.c", tmp_path / "kernels.c"]
    clean([tool("gcc"), *STRICT, f"-I{C}", '-DECG_MODEL_SECTION=".ecg_model"'], tmp_path, files)
    everything = ["-std=c99", "-Weverything", "-Werror", *(f"-Wno-{name}" for name in TASTE)]
    clean([clang(), *everything, f"-I{C}"], tmp_path, files)


def test_a_program_in_cpp_includes_the_engine_and_links_with_it(tmp_path):
    m, graph = hop_model()
    source = c_model.generate(graph, m, pack.CORES["host"])
    twin.write(source, tmp_path)
    (tmp_path / "user.cpp").write_text(IN_CPP)
    compiler, folders = tool("g++"), [f"-I{C}", f"-I{tmp_path}"]
    clean([compiler, "-std=c++11", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-pedantic", "-Werror",
           *folders], tmp_path, [tmp_path / "user.cpp"])
    clean([tool("gcc"), "-std=c99", "-O1", *folders], tmp_path,
          [tmp_path / "model.c", tmp_path / "kernels.c", *(C / name for name in twin.ENGINE), C / "ecg_link.c",
           *twin.sources(source.kernels)])
    subprocess.run([compiler, *map(str, tmp_path.glob("*.o")), "-o", tmp_path / "user"], check=True)
    done = subprocess.run([tmp_path / "user"], capture_output=True, text=True, check=True)
    assert done.stdout == f"0 {m.trigger.hop} {len(m.classes)}\n"


IN_CPP = """
#include "model.h"
#include "ecg_link.h"
#include <cstdio>
#include <vector>

int main()
{
    static ecg_t engine;
    std::vector<uint64_t> memory(MODEL_RAM / 8);
    int error = ecg_init(&engine, &model, &model_rate, memory.data(), MODEL_RAM);
    int32_t uv[MODEL_LEADS] = {0};
    ecg_result result;
    while (ecg_push(&engine, uv, 1, &result) == 1 && !result.ready)
        ;
    int same = ecg_kernels[ECG_KERNEL_concat] == ecg_concat;
    std::printf("%d %d %d\\n", error, MODEL_HOP, same * int(model.classes));
    return 0;
}
"""
