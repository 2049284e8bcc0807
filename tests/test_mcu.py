# SPDX-License-Identifier: Apache-2.0
"""The target mcu as its user meets it: what is refused before anything is compiled, what is built, sealed and equal."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import graphs as make
import numpy as np
import pytest
from test_engine import beat_model, hop_model

import targets
from bench import latency, parity
from compress import reference
from targets import c_model, deploy, emulate, fit, image, mcu, pack, seal, target, toolchain, twin
from targets.target import Options
from targets.toolchain import Image
from train import say
from train.manifest import Trigger
from train.say import UserError

# core -> a board of it with firmware
BOARDS = {"m4": "stm32f405", "m0plus": "pico", "m3": "mps2-an385", "m55": "mps3-an547"}


def ask(module, *words: str) -> int:
    """A script's exit code."""
    return say.run(module.main, module.parser(), list(words))


def need(core: str, emulator: bool = False) -> None:
    """Skip in the tool's words."""
    absent = toolchain.missing(core) or (emulate.missing() if emulator else None)
    if absent:
        pytest.skip(absent)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A frozen run that streams two leads."""
    m, graph = hop_model(leads=2)
    return make.write_run(tmp_path_factory.mktemp("runs") / "hops", graph, golden=16, manifest=m)


@pytest.fixture
def uncompiled(monkeypatch):
    """Fails the test where anything is compiled."""
    def never(*words, **_):
        raise AssertionError(f"compiled: {words}")
    monkeypatch.setattr(toolchain, "run", never)
    monkeypatch.setattr(twin, "cc", never)


# ---- refused

def test_a_microcontroller_is_asked_for(run, uncompiled, capsys):
    need("m4")
    assert ask(deploy, "--run", str(run), "--target", "mcu") == 1
    told = capsys.readouterr().err
    assert "--board" in told and "nrf52840dk" in told and not (run / "mcu").exists()


@pytest.mark.parametrize("name, near", (("stm32f40", "stm32f405"), ("picco", "pico"), ("pi5", "pico")))
def test_an_unknown_board_is_told_from_those_that_are_served(name, near, run, uncompiled, capsys):
    need("m4")
    assert ask(deploy, "--run", str(run), "--target", "mcu", "--board", name) == 1
    told = capsys.readouterr().err
    assert name in told and near in told and not (run / "mcu").exists()


@pytest.mark.parametrize("bits", ("4", "12", "32"))
def test_weights_have_8_or_16_bits(bits, run, uncompiled, capsys):
    assert ask(deploy, "--run", str(run), "--target", "mcu", "--board", "pico", "--weights", bits) == 1
    assert "8" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"--weights {bits}"):
        mcu.core_of(target.read_board("pico", "mcu"), Options(int(bits)))


def test_a_board_without_firmware_gets_the_model_as_c_and_is_told_so(run, tmp_path, uncompiled):
    manifest, graph = target.open_run(run)
    bare = {k: v for k, v in target.read_board("stm32f405", "mcu").items() if k != "hal"}
    out = make.write_run(tmp_path / "r", graph, golden=4, manifest=manifest) / "mcu"
    mcu.lower(graph, manifest, out, bare)
    assert {p.name for p in out.iterdir()} == {"model.c", "model.h", "kernels.c", "build.json"}
    for board in (bare, None):
        with pytest.raises(UserError, match="no firmware for") as found:
            mcu.build(out, board)
        assert "stm32f405" in found.value.expected and "as C for a program of your own" in found.value.fix


@pytest.fixture(scope="module")
def large() -> tuple:
    """(manifest, graph, what an image takes on an M3) of a model that is too much for a small board."""
    graph = make.like_local_lead(widths=(16, 24, 48, 96))
    m = replace(make.manifest_of(graph, "0" * 64), streaming=True, trigger=Trigger("hop", hop=320))
    return m, graph, fit.need(c_model.generate(graph, m, pack.CORES["m3"], ("stream",)), graph, "m3")


def test_a_model_too_large_for_a_board_is_refused_with_the_shortfall_and_a_way_out(large, uncompiled, tmp_path, capsys):
    need("m4")
    m, graph, needed = large
    folder = make.write_run(tmp_path / "r", graph, golden=2, manifest=m)
    assert ask(deploy, "--run", str(folder), "--target", "mcu", "--board", "bluepill") == 1
    told, board = capsys.readouterr().err, target.read_board("bluepill", "mcu")
    for name, layer, short in (("flash", needed.heaviest, needed.flash - board["flash"]),
                               ("RAM", needed.widest, needed.ram - board["ram"])):
        assert f"{name} is {short / 1000:.1f} kB short, the largest layer is {layer[0]} " in told and short > 10_000
    roomy = {k for k, b in target.boards("mcu").items() if b["flash"] >= needed.flash and b["ram"] >= needed.ram}
    offered = told.split("it fits on ")[1].split(";")[0].split(", ")
    assert set(offered) == roomy and "nucleo-g071rb" not in roomy and "pico" in roomy
    assert "bench/memory.py" in told and not (folder / "mcu").exists()


def test_the_largest_layers_are_those_of_the_graph(large):
    _, graph, needed = large
    weights = {n.name: sum(v.nbytes for k, v in n.params.items() if k == "weight") for n in graph.nodes}
    assert weights[needed.heaviest[0]] == max(weights.values())
    assert needed.heaviest[1] >= max(weights.values())
    assert needed.widest[0] in {n.name for n in graph.nodes}


@pytest.mark.parametrize("memory, word", (("flash", "flash"), ("ram", "RAM")))
def test_a_byte_decides_about_a_board(memory, word, large):
    *_, needed = large
    board = target.read_board("nucleo-l4r5zi", "mcu") | {"flash": needed.flash, "ram": needed.ram}
    fit.check(needed, board)
    board[memory] -= 1
    with pytest.raises(UserError, match=f"does not fit on a Nucleo-L4R5ZI: {word} is") as found:
        fit.check(needed, board)
    assert {"flash": "RAM", "ram": "flash"}[memory] not in found.value.what


def test_what_fits_nowhere_is_told_so(large):
    *_, needed = large
    with pytest.raises(UserError) as found:
        fit.check(replace(needed, flash=1 << 30), target.read_board("pico", "mcu"))
    assert "no board of boards.toml" in found.value.fix


# ---- built

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(core, form, words) -> (run folder, what deploy.py told)."""
    made = {}

    def build(core: str, form: str = "hop", *words: str):
        need(core)
        key = core, form, words
        if key not in made:
            m, graph = hop_model(leads=2) if form == "hop" else beat_model()
            folder = make.write_run(tmp_path_factory.mktemp("built") / f"{form}-{core}", graph, golden=16, manifest=m)
            args = ["--run", str(folder), "--target", "mcu", "--board", BOARDS[core], *words]
            made[key] = folder, deploy.main(deploy.parser().parse_args(args))
        return made[key]
    return build


CASES = [("m4", "hop"), ("m0plus", "hop"), ("m3", "beat"), ("m55", "hop"),
         ("m4", "beat", "--rate", "360", "--weights", "16")]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_linked_image_takes_what_was_planned(case, built):
    folder, found = built(*case)
    board = target.read_board(BOARDS[case[0]], "mcu")
    elf, about = Image(folder / "mcu" / "firmware.elf"), json.loads((folder / "mcu" / "build.json").read_text())
    assert elf.symbols["memory0"].size == about["model_ram"] == found["notes"]["model_ram"]
    assert elf.symbols["memory0"].address % 8 == 0
    assert (elf.flash, elf.ram) == (found["flash"], found["ram"])
    assert elf.flash <= about["planned_flash"] <= board["flash"] and elf.ram <= about["planned_ram"] <= board["ram"]
    assert about["planned_flash"] < elf.flash + 12_000 and about["planned_ram"] < elf.ram + 1_000, "refuses what fits"
    assert found["notes"]["sections"][".ecg_model"] == elf.size(".ecg_model") > 1000


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_model_lies_in_its_own_section_sealed(case, built):
    folder, found = built(*case)
    elf = Image(folder / "mcu" / "firmware.elf")
    section = elf.sections[".ecg_model"]
    data = bytearray(elf.read(section.origin, section.length))
    magic, version, length, crc, mirror = struct.unpack_from("<5I", data)
    assert elf.symbols["model"].address == section.origin and bytes(data[:4]) == b"ECG1" and magic == seal.MAGIC
    assert (version, length, mirror) == (1, section.length, 0xffffffff - section.length)
    data[12:16] = bytes(4)
    assert crc == zlib.crc32(data)
    assert data[20:52].hex() == found["identity"]


@pytest.mark.parametrize("core", ("m4", "m0plus"))
def test_what_loaders_take_holds_the_bytes_of_the_image(core, built):
    folder, _ = built(core)
    pieces = image.read_elf(folder / "mcu" / "firmware.elf")
    lines = [bytes.fromhex(line[1:]) for line in (folder / "mcu" / "firmware.hex").read_text().split()]
    assert not any(sum(line) % 256 for line in lines)
    data = b"".join(line[4:-1] for line in lines if line[3] == 0)
    assert data == b"".join(piece for _, piece in pieces.pieces)
    if core == "m0plus":
        family, found = image.read_uf2((folder / "mcu" / "firmware.uf2").read_bytes())
        assert family == target.read_board("pico", "mcu")["uf2"]["family"] and found.pieces[0][0] == pieces.pieces[0][0]
    else:
        assert not (folder / "mcu" / "firmware.uf2").exists()


def test_builds_json_names_the_image(built):
    folder, found = built("m4")
    manifest, _ = target.open_run(folder)
    entry = target.open_build(folder, "mcu", manifest)
    assert entry.path == folder / "mcu" / "firmware.elf" and entry.notes["board"] == "stm32f405"
    assert found["notes"]["weights"] == 8 and entry.notes["core"] == "m4"


# ---- run

@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=" ".join)
def test_the_emulated_core_has_the_references_bits(case, built):
    need(case[0], emulator=True)
    folder, _ = built(*case)
    manifest, graph = target.open_run(folder)
    inputs, expected = target.golden(folder, graph, 16)
    got = mcu.run(target.open_build(folder, "mcu", manifest), inputs)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got, axis=0)) > 3


CHECK = """
#include "ecg_semihost.h"
#include "model.h"
#include <string.h>

extern const uint8_t ecg_model_start[], ecg_model_end[];
static uint8_t copy[1 << 16] __attribute__((aligned(8)));

int main(void)
{
    const uint32_t size = (uint32_t)(ecg_model_end - ecg_model_start);
    const ecg_model *m = (const ecg_model *)copy;
    if (size > sizeof copy || ecg_check(&model) != ECG_OK)
        ecg_exit(2);
    memcpy(copy, ecg_model_start, size);
    if (ecg_check(m) != ECG_OK)
        ecg_exit(3);
    uint32_t passed = 0, tried = 0;
    for (uint32_t at = 0; at < size; at += at < sizeof(ecg_model) || at + 4 >= size ? 1 : 61) {
        copy[at] = (uint8_t)(copy[at] ^ (1u << at % 8));
        passed += ecg_check(m) == ECG_OK;
        copy[at] = ecg_model_start[at];
        tried++;
    }
    ecg_print_int((int32_t)tried);
    ecg_print(" ");
    ecg_print_int((int32_t)passed);
    ecg_exit(ecg_check(m) == ECG_OK ? 0 : 4);
}
"""


@pytest.fixture(scope="module")
def checking(tmp_path_factory) -> Path:
    """An image that checks its model and damaged copies of it; sealed."""
    need("m4", emulator=True)
    out = tmp_path_factory.mktemp("checking")
    m, graph = hop_model()
    source = c_model.generate(graph, m, pack.CORES["m4"])
    twin.write(source, out)
    (out / "main.c").write_text(CHECK)
    on = emulate.machine("m4")
    elf = toolchain.image("m4", [out / "main.c", toolchain.SEMIHOST, out / "model.c", out / "kernels.c",
                                 *(toolchain.KERNELS / name for name in twin.ENGINE), *twin.sources(source.kernels)],
                          out / "check.elf", on.flash, on.ram, include=[out], flags=mcu.SECTION)
    seal.seal(elf)
    return elf


def test_a_sealed_model_is_whole_and_one_wrong_bit_is_found(checking):
    done = emulate.run(checking, emulate.machine("m4"))
    tried, passed = map(int, done.text.split())
    assert done.code == 0 and passed == 0 and tried > 200


def flipped(elf: Path, at: int, to: Path) -> Path:
    """A copy of an image with one byte of its model damaged."""
    from elftools.elf.elffile import ELFFile
    data = bytearray(elf.read_bytes())
    with open(elf, "rb") as file:
        section = ELFFile(file).get_section_by_name(seal.SECTION)
        data[section["sh_offset"] + at % section["sh_size"]] ^= 0x10
    to.write_bytes(data)
    return to


@pytest.mark.parametrize("at", (0, 11, 30, -1))         # 11: a length that reaches beyond all memory
def test_an_image_with_a_damaged_model_knows_it_at_boot(at, checking, tmp_path):
    assert emulate.run(flipped(checking, at, tmp_path / "damaged.elf"), emulate.machine("m4")).code == 2


def test_an_image_that_was_never_sealed_is_not_whole(checking, tmp_path):
    data = checking.read_bytes()
    crc = Image(checking).read(Image(checking).sections[seal.SECTION].origin + 8, 12)
    assert data.count(crc) == 1
    (tmp_path / "unsealed.elf").write_bytes(data.replace(crc, bytes(12)))
    assert emulate.run(tmp_path / "unsealed.elf", emulate.machine("m4")).code == 2


def test_only_an_image_with_a_model_can_be_sealed(tmp_path):
    need("m4")
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    elf = toolchain.image("m4", [tmp_path / "main.c"], tmp_path / "bare.elf", emulate.machine("m4").flash,
                          emulate.machine("m4").ram)
    with pytest.raises(UserError, match="model"):
        seal.seal(elf)


# ---- measured

def told(module, capsys, *words: str) -> dict:
    """The one JSON object that a script prints."""
    code = ask(module, *words, "--json")
    out = capsys.readouterr().out
    assert code == 0 and out.count("\n") == 1
    return json.loads(out)


def test_latency_counts_instructions_and_estimates_under_another_name(built, capsys):
    need("m4", emulator=True)
    folder, _ = built("m4")
    found = told(latency, capsys, "--target", "mcu", "--run", str(folder), "--board", "nrf52840dk")
    measured, guess = found["measured"], found["estimate"]
    assert 0 < measured["hop"] < measured["window"] and found["core"] == "m4" and found["board"] == "nrf52840dk"
    assert sum(row["instructions"] for row in measured["layers"]) <= measured["window"]
    low, high = guess["ms"]
    assert 0 < low < high and guess["assumed"]["mhz"] == 64 and guess["days"][0] < guess["days"][1]
    assert low == pytest.approx(measured["hop"] * guess["assumed"]["cycles_per_instruction"][0] / 64e3)
    assert not any(word in json.dumps(found) for word in ("p50", "p90", "p99", "percentile"))
    assert "ms" not in measured and "days" not in measured


def test_latency_says_estimate_wherever_it_prints_a_time(built, capsys):
    need("m4", emulator=True)
    folder, _ = built("m4")
    assert ask(latency, "--target", "mcu", "--run", str(folder), "--board", "nrf52840dk") == 0
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if " ms " in line or " days " in line]
    assert len(lines) == 2 and all(line.startswith("estimate, not measured") for line in lines)


def test_latency_of_an_unknown_board_is_the_users_mistake(run, capsys):
    need("m4")
    assert ask(latency, "--target", "mcu", "--run", str(run), "--board", "nrf5284dk") == 1
    assert "nrf52840dk" in capsys.readouterr().err


def test_without_an_emulator_nothing_is_measured(run, monkeypatch, capsys):
    need("m4")
    monkeypatch.setattr(emulate, "missing", lambda: f"qemu-system-arm is not installed: {emulate.GET}")
    assert ask(latency, "--target", "mcu", "--run", str(run)) == 2
    assert emulate.GET in capsys.readouterr().err


def test_without_a_compiler_nothing_is_built(run, monkeypatch, capsys):
    monkeypatch.setattr(toolchain, "available", lambda core: [])
    assert ask(deploy, "--run", str(run), "--target", "mcu", "--board", "pico") == 2
    told = capsys.readouterr().err
    assert toolchain.GET_ZIG in told and toolchain.GET_GCC in told


@pytest.fixture(scope="module")
def on_host(tmp_path_factory) -> Path:
    """A run built for this computer."""
    absent = targets.load("host").missing()
    if absent:
        pytest.skip(absent)
    folder = make.write_run(tmp_path_factory.mktemp("host") / "r", make.every_kind(), golden=64)
    deploy.main(deploy.parser().parse_args(["--run", str(folder), "--target", "host"]))
    return folder


def test_latency_of_the_host_is_measured(on_host, capsys):
    found = told(latency, capsys, "--target", "host", "--run", str(on_host), "--seconds", "0.1")
    (row,) = found["measured"]
    assert row["form"] == "int8" and row["threads"] == 1 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert "estimate" not in found and found["machine"]["cpu"]


def test_parity_of_the_host_is_every_bit_of_every_layer(on_host, capsys):
    found = told(parity, capsys, "--target", "host", "--run", str(on_host))
    agreement = found["agreement"]
    assert agreement["worst"] == 0 and agreement["labels"] == 1 and agreement["windows"] == 64
    assert found["first_differing_layer"] is None and len(found["layers"]) == len(make.every_kind().nodes)
    assert all(row["equal"] == 1 and row["worst"] == 0 for row in found["layers"])


def test_parity_names_the_layer_that_another_arithmetic_changes(on_host, monkeypatch, capsys):
    honest = reference.run

    def other(graph, inputs, trace=False):
        found = honest(graph, inputs, trace=trace)
        return {k: (-1 - v if k == graph.nodes[3].output else v) for k, v in found.items()} if trace else found
    monkeypatch.setattr(reference, "run", other)
    found = told(parity, capsys, "--target", "host", "--run", str(on_host), "--n", "4")
    rows = {row["name"]: row["equal"] for row in found["layers"]}
    assert rows[make.every_kind().nodes[3].name] < 0.1 and sorted(rows.values())[1] == 1


def test_parity_on_the_emulated_core_is_every_bit(built, capsys):
    need("m4", emulator=True)
    folder, _ = built("m4")
    found = told(parity, capsys, "--target", "mcu", "--run", str(folder), "--n", "3")
    assert found["agreement"]["worst"] == 0 and found["first_differing_layer"] is None
    assert all(row["equal"] == 1 for row in found["layers"])


# ---- front-end chips

@pytest.mark.parametrize("words, said", [
    (("pico", "ads1292r"), "no firmware for a front-end chip"), (("stm32f405", "ads1293"), "use ads1292r"),
    (("stm32f405", "max30003", "--rate", "333"), "max30003 at 333 Hz")])
def test_a_front_end_chip_that_cannot_be_is_refused_in_words(run, uncompiled, capsys, words, said):
    board, chip, *rest = words
    assert ask(deploy, "--run", str(run), "--target", "mcu", "--board", board, "--sensor", chip, *rest) == 1
    assert said in capsys.readouterr().err


def test_an_image_with_a_front_end_chip_has_its_driver_and_its_channels(run):
    need("m4")
    assert ask(deploy, "--run", str(run), "--target", "mcu", "--board", "stm32f405", "--sensor", "ads1292r") == 0
    names = Image(run / "mcu" / "firmware.elf").symbols
    assert "ads1292r_start" in names and "max30003_start" not in names
    assert ".sensor = 1, .fs_num = 250" in (run / "mcu" / "image.c").read_text()
