# SPDX-License-Identifier: Apache-2.0
"""Firmware images: every board's HAL compiles, and the boards that the emulator has talk to their host and decide."""

import functools
import subprocess
import sys
import time

import boards
import numpy as np
import pytest
from boards import ecg, expected, scores

from compress import reference
from targets import c_model, edgelink, emulate, firmware_image, mcu, target, toolchain
from targets import image as images
from targets.device import Device, SerialLine
from targets.firmware_image import Slot
from targets.pack import CORES
from train.say import UserError

BOARDS = {key: board for key, board in target.boards("mcu").items() if "hal" in board}
EMULATED = [key for key, board in BOARDS.items() if "qemu" in board]
PAIR = ("model", "other")
WITH_SPI = [key for key, board in BOARDS.items() if board.get("spi")]
STRICT = ("-Wconversion", "-Wno-sign-conversion", "-Werror")


def need(core: str, emulated: bool = False) -> None:
    """Skip in the tool's words."""
    for absent in (toolchain.missing(core), emulated and emulate.missing()):
        if absent:
            pytest.skip(absent)


def built(key: str, folder, names: tuple[str, ...] = ("model",), sensor: bool = False):
    """The image of a board with these models, fed by the host unless its application shall wait for a sensor."""
    board = BOARDS[key]
    out = folder / f"{key}-{board['core']}-{len(names)}-{sensor}"
    if (out / "firmware.elf").is_file():
        return out / "firmware.elf"
    out.mkdir()
    sources = {n: c_model.generate(*boards.models()[n], CORES[board["core"]], prefix=n, fs_in=250) for n in names}
    kernels = sorted({k for s in sources.values() for k in s.kernels})
    for name, source in sources.items():
        (out / f"{name}.c").write_text(source.code)
        (out / f"{name}.h").write_text(source.header)
    (out / "kernels.c").write_text(c_model.kernel_table(kernels))
    slots = [Slot(name, boards.models()[name][1]) for name in names]
    with pytest.MonkeyPatch.context() as patch:
        if sensor:
            patch.setattr(firmware_image, "Source", functools.partial(firmware_image.Source, sensor=True))
        return mcu.link(out, slots, board, {"fs_in": 250, "kernels": kernels})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def wait(device: Device, ready, seconds: float = 30) -> None:
    """Poll until something holds: a busy computer delays an emulated board as long as it likes."""
    until = time.monotonic() + seconds
    while not ready() and time.monotonic() < until:
        device.poll(0.2)


def talk(url: str) -> Device:
    return Device(SerialLine(url))


@pytest.mark.parametrize("key", BOARDS)
def test_the_hal_of_every_board_compiles_without_a_warning(key, tmp_path):
    board = BOARDS[key]
    need(board["core"])
    toolchain.compile(board["core"], firmware_image.hal(board), tmp_path, [firmware_image.FIRMWARE],
                      (*STRICT, "-DHAL_CHANNELS=1", *board.get("flags", ())))


@pytest.mark.parametrize("sensor", firmware_image.CHIPS)
@pytest.mark.parametrize("key", WITH_SPI)
def test_the_hal_of_a_board_with_a_front_end_chip_compiles_without_a_warning(key, sensor, tmp_path):
    board = BOARDS[key]
    need(board["core"])
    source, chip = firmware_image.source_of(board, sensor, 250, 1)
    slot = Slot("model", boards.models()["model"][1])
    flags = (*STRICT, *firmware_image.defines([slot], source, chip), *board.get("flags", ()))
    files = firmware_image.hal(board, chip)
    assert len(toolchain.compile(board["core"], files, tmp_path, [firmware_image.FIRMWARE], flags)) == len(files)


def test_the_boot_code_of_the_rp2040_is_what_its_source_says(tmp_path):
    need("m0plus")
    source = firmware_image.FIRMWARE / "rp2040_boot2.S"
    made, = toolchain.compile("m0plus", [source], tmp_path)
    code = toolchain.Image(made).read(0, 252)
    assert (source.with_suffix(".c")).read_text() == firmware_image.boot2_c(code)


def test_an_rp2040_image_begins_with_boot_code_under_its_crc_and_then_the_vectors(folder):
    need("m0plus")
    image = images.read_elf(built("pico", folder))
    flat = images.flat(image)
    crc = 0xFFFFFFFF
    for bit in np.unpackbits(np.frombuffer(flat[:252], np.uint8)):      # the rule of the boot ROM, bit by bit
        crc = (crc << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if (crc >> 31) ^ int(bit) else 0)
    assert image.start == 0x1000_0000 and int.from_bytes(flat[252:256], "little") == crc
    stack, reset = np.frombuffer(flat[256:264], "<u4")
    assert 0x2000_0000 < stack <= 0x2004_2000 and 0x1000_0100 < reset < image.end and reset & 1


def test_an_rp2350_image_shows_its_block_to_the_boot_rom(folder):
    need("m33")
    image = images.read_elf(built("pico2", folder))
    flat = images.flat(image)
    at = flat.index(bytes.fromhex("d3deffff42012110ff01000000000000793512ab"))
    assert at < 4096 and at % 4 == 0 and image.start == 0x1000_0000


def test_an_image_behind_a_boot_loader_is_signed_and_a_changed_bit_is_found(folder, tmp_path, monkeypatch):
    """The commands of targets/firmware/README.md."""
    pytest.importorskip("imgtool", reason="the Python package imgtool is not installed: pip install imgtool")
    need("m4")
    slot, size, header = 0xC000, 0x76000, 0x400
    moved = dict(BOARDS["nrf52840dk"], flash_at=slot + header, flash=size - header)
    monkeypatch.setitem(BOARDS, "nrf52840dk", moved)
    image = images.read_elf(built("nrf52840dk", folder))
    assert image.start == slot + header
    images.write_bin(image, tmp_path / "firmware.bin")

    def imgtool(*words) -> int:
        command = [sys.executable, "-m", "imgtool.main", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode
    assert imgtool("keygen", "-k", "key.pem", "-t", "ecdsa-p256") == 0
    assert imgtool("sign", "-k", "key.pem", "--version", "0.1.0", "--header-size", hex(header), "--pad-header",
                   "--slot-size", hex(size), "--align", "8", "firmware.bin", "signed.bin") == 0
    signed = bytearray((tmp_path / "signed.bin").read_bytes())
    flat = images.flat(image)
    assert signed[header:header + len(flat)] == flat
    assert imgtool("verify", "-k", "key.pem", "signed.bin") == 0
    signed[header + 4000] ^= 1
    (tmp_path / "changed.bin").write_bytes(signed)
    assert imgtool("verify", "-k", "key.pem", "changed.bin") != 0


@pytest.mark.parametrize("key,core", [(key, BOARDS[key]["core"]) for key in EMULATED if key != "mps2-an386"]
                         + [("mps2-an385", "m0plus")])          # an386: below, with two models
def test_an_emulated_board_decides_as_the_reference_does(key, core, folder, monkeypatch):
    need(core, emulated=True)
    monkeypatch.setitem(BOARDS, key, dict(BOARDS[key], core=core))
    graph, manifest = boards.models()["model"]
    with emulate.on_tcp(built(key, folder), emulate.MACHINES[BOARDS[key]["qemu"]]) as url:
        device = talk(url)
        about = device.hello()
        assert (about.board_name, about.fs, about.clock_khz) == (key[:16], 250, BOARDS[key]["clock_khz"])
        assert about.model[0].identity == manifest.identity and about.model[0].ok
        device.start()
        uv = ecg(6)
        assert np.array_equal(scores(device.inject(uv, 3)), expected("model", uv))
        codes = np.random.default_rng(0).integers(-128, 128, (1, 400)).astype(np.int8)
        assert np.array_equal(scores(device.inject(codes.T, 1)), reference.stream(graph, {graph.inputs[0]: codes}, 40))
        device.stop()
        device.start()
        wait(device, lambda: device.statuses() and device.statuses()[-1].sleep_permille)  # the first spans no time
        status = device.statuses()[-1]
        assert status.damaged == 0 and 0 < status.sleep_permille <= 1000 and device.framer.damaged == 0
        device.line.close()


def test_live_samples_reach_the_emulated_stm32(folder):
    need("m4", emulated=True)
    with emulate.on_tcp(built("stm32f405", folder), emulate.MACHINES["netduinoplus2"]) as url:
        device, uv = talk(url), ecg(6)
        device.hello()
        device.start()
        for at in range(0, len(uv), 25):
            device.live(uv[at:at + 25], at)
            device.poll(0.02)                   # five times as fast as a front-end
        wait(device, lambda: len(device.results) >= len(expected("model", uv)))
        assert np.array_equal(scores(device.results), expected("model", uv))
        device.line.close()


def test_two_models_share_an_emulated_image(folder):
    need("m4", emulated=True)
    elf = built("mps2-an386", folder, PAIR)
    with emulate.on_tcp(elf, emulate.MACHINES["mps2-an386"]) as url:
        device, uv = talk(url), ecg(6, 2)
        assert [m.ok for m in device.hello().model] == [1, 1]
        device.start()
        device.inject(uv, 3)
        for number, (name, leads) in enumerate((("model", 1), ("other", 2))):
            found = [r for r in device.results if r.model == number]
            assert np.array_equal(scores(found), expected(name, uv[:, :leads]))
        device.line.close()


@pytest.mark.parametrize("place", [40, -1])
def test_a_damaged_model_is_refused_by_the_emulated_board(folder, tmp_path, place):
    need("m4", emulated=True)
    elf = built("mps2-an386", folder, PAIR)
    section = toolchain.Image(elf).sections[".ecg_model"]
    at = section.origin + place % section.length
    data = bytearray(elf.read_bytes())
    original = toolchain.Image(elf).read(section.origin, section.length)
    data[data.index(original) + at - section.origin] ^= 4
    (tmp_path / "firmware.elf").write_bytes(data)
    with emulate.on_tcp(tmp_path / "firmware.elf", emulate.MACHINES["mps2-an386"]) as url:
        device = talk(url)
        assert edgelink.STATES[device.hello().state] == "refused"
        with pytest.raises(UserError, match="flash it again"):
            device.start()
        device.line.close()


def test_the_emulated_watchdog_resets_a_board_whose_sensor_is_dead(folder):
    need("m4", emulated=True)
    elf = built("mps2-an386", folder, sensor=True)
    # time passes at once while the core sleeps
    with emulate.on_tcp(elf, emulate.MACHINES["mps2-an386"], extra=("-icount", "shift=6,sleep=off")) as url:
        device = talk(url)
        first = device.hello().boot_id
        for _ in range(40):
            device.poll(0.3)
            if device.hello().boot_id != first:
                break
        assert device.about.boot_id != first
        device.line.close()
