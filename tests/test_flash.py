# SPDX-License-Identifier: Apache-2.0
"""Flashing: real loader programs against simulated boot loaders; ports that are wrong, busy or not ours."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from targets import flash, flash_tools, flash_uf2
from targets import image as images
from targets.flash_tools import DeviceError
from tests import loaders
from tests.loaders import write_elf
from train.say import MissingError, UserError

try:
    import tomllib
except ImportError:                     # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BOARDS = tomllib.loads((ROOT / "targets" / "boards.toml").read_text())
CODE = bytes(i * 7 % 251 for i in range(2500))
STM32 = {"name": "Simulated F405", "flash": 1 << 16, "flash_at": 0x0800_0000, "loaders": ["stm32loader"],
         "usb": ["0403:6001"], "boot": "set BOOT0 to 1 and press reset", "stm32": {"family": "F4", "id": [0x413]}}
ESP = {"name": "Simulated C3", "flash": 1 << 16, "flash_at": 0, "loaders": ["esptool"], "usb": ["303a:1001"],
       "boot": "hold BOOT", "esp": {"chip": "esp32c3", "offset": 0x1000, "stub": False}}
PICO = {"name": "Simulated Pico", "flash": 1 << 20, "flash_at": 0x1000_0000, "loaders": ["uf2"],
        "boot": "hold BOOTSEL", "uf2": {"family": 0xE48B_FF56, "board": ["RPI-RP2"]}}

PROBED = {"name": "Simulated F405 DK", "flash": 1 << 20, "flash_at": 0x0800_0000, "loaders": ["pyocd"],
          "usb": ["0483:374b"], "boot": "a USB cable in its ST-LINK connector", "pyocd": "cortex_m",
          "chip": {"at": 0xE004_2000, "mask": 0xFFF, "id": [0x413]}}


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None,
                              reason=f'{package} is not installed: pip install -e ".[mcu]"')


@pytest.fixture
def pty_as_port(tmp_path, monkeypatch):
    """What a loader program needs to take a pty for a serial port."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(loaders.PTY_AS_SERIAL_PORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


def firmware(folder, address=0x0800_0000):
    """An image with a hole in it."""
    return write_elf(folder / "fw.elf", [(address, address, CODE), (0x2000_0000, address + 3000, b"values")])


@needs("stm32loader")
@pytest.mark.parametrize("extended", [True, False])
def test_stm32loader_writes_verifies_and_starts(tmp_path, pty_as_port, extended):
    with loaders.Stm32(extended=extended) as chip:
        chip.flash[:5000] = os.urandom(5000)            # an older firmware
        done = flash.flash(firmware(tmp_path), STM32, chip.port)
        assert bytes(chip.flash[:3006]) == CODE + b"\xff" * 500 + b"values" and chip.started == 0x0800_0000
    assert done == {"loader": "stm32loader", "place": chip.port, "bytes": 2506, "verified": "read back and equal"}


@needs("stm32loader")
@pytest.mark.parametrize("chip, error, words", [
    ({"chip_id": 0x410}, UserError, "is 0x410 (STM32F10x Medium-density), not that of Simulated F405; nothing was"),
    ({"fault": "application"}, DeviceError, "no STM32 boot loader answers"),
    ({"fault": "protected"}, DeviceError, "protected against reading"),
    ({"fault": "nack"}, DeviceError, "stm32loader stopped"),
    ({"fault": "worn"}, DeviceError, "does not hold what was written")])
def test_stm32loader_failures_are_explained(tmp_path, pty_as_port, chip, error, words):
    with loaders.Stm32(**chip) as simulated:
        simulated.flash[:4] = b"old!"
        with pytest.raises(error) as raised:
            flash.flash(firmware(tmp_path), STM32, simulated.port)
        assert words in raised.value.what and raised.value.fix
        assert isinstance(raised.value, MissingError) == (error is DeviceError)
        if "nothing was" in words:
            assert simulated.flash[:4] == b"old!"


@needs("esptool")
def test_esptool_writes_and_compares_md5(tmp_path):
    (tmp_path / "fw.bin").write_bytes(CODE)
    with loaders.Esp() as chip:
        done = flash.flash(tmp_path / "fw.bin", ESP, chip.port)
        assert bytes(chip.flash[0x1000:0x1000 + len(CODE)]) == CODE
    assert done["bytes"] == 2500 and "MD5" in done["verified"]


# a function and a table, each where the chip maps its flash
RISCV = """
const int table[64] = {1, 2, 3};
volatile int sum;
void _start(void) { for (;;) sum += table[sum & 63]; }
"""
RISCV_LINK = """ENTRY(_start) SECTIONS {
    .flash.text 0x42000020 : { *(.text*) }
    .flash.rodata 0x3c010020 : { *(.rodata*) }
    .bss 0x3fc80000 (NOLOAD) : { *(.sbss*) *(.bss*) }
    /DISCARD/ : { *(.comment) *(.eh_frame*) } }
"""


@needs("esptool")
@needs("ziglang")
def test_esptool_converts_an_elf_of_its_chip_and_no_other(tmp_path):
    (tmp_path / "a.c").write_text(RISCV)
    (tmp_path / "a.ld").write_text(RISCV_LINK)
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", "riscv32-freestanding", "-O1", "-nostdlib",
                    "-fno-sanitize=undefined", "a.c", "-Wl,-T,a.ld", "-o", "a.elf"], cwd=tmp_path, check=True)
    with loaders.Esp(size=1 << 17) as chip:
        flash.flash(tmp_path / "a.elf", ESP, chip.port)
        assert chip.flash[0x1000] == 0xE9 and (1).to_bytes(4, "little") + b"\2\0\0\0\3" in chip.flash
        with pytest.raises(UserError, match="cannot convert"):
            flash.flash(firmware(tmp_path), ESP, chip.port)


@needs("esptool")
@pytest.mark.parametrize("chip, error, words", [
    ({"chip_id": 9}, UserError, "is ESP32-S3, not that of Simulated C3; nothing was written"),
    ({"fault": "silent"}, DeviceError, "no boot loader answers"),
    ({"fault": "error"}, DeviceError, "esptool stopped"),
    ({"fault": "worn"}, DeviceError, "MD5 differs")])
def test_esptool_failures_are_explained(tmp_path, chip, error, words):
    (tmp_path / "fw.bin").write_bytes(CODE)
    with loaders.Esp(**chip) as simulated:
        with pytest.raises(error) as raised:
            flash.flash(tmp_path / "fw.bin", ESP, simulated.port)
        assert words in raised.value.what and raised.value.fix
        if "nothing was" in words:
            assert set(simulated.flash) == {0xFF}


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """probe(fault) -> the file that holds the memory of a chip behind a probe that pyocd finds."""
    from tests import probe as simulated

    def connect(fault=""):
        state = tmp_path / "probe.json"
        state.write_text(json.dumps({"serial": "SIM0001", "memory": {0xE004_2000: 0x1007_6413}, "fault": fault}))
        for name, value in simulated.install(tmp_path / "site", state).items():
            monkeypatch.setenv(name, value)
        return state
    return connect


@needs("pyocd")
def test_pyocd_writes_and_reads_back(tmp_path, probe):
    state = probe()
    done = flash.flash(firmware(tmp_path), PROBED)
    assert done == {"loader": "pyocd", "place": "SIM0001", "bytes": 2506,
                    "verified": "read back through the probe and equal"}
    words = {int(a): w for a, w in json.loads(state.read_text())["memory"].items()}
    held = b"".join(words[0x0800_0000 + at].to_bytes(4, "little") for at in range(0, 2500, 4))
    assert held == CODE and words[0x0800_0BB8].to_bytes(4, "little") == b"valu"


@needs("pyocd")
@pytest.mark.parametrize("fault, facts, port, error, words", [
    ("", {"chip": {"at": 0xE004_2000, "mask": 0xFFF, "id": [0x410, 0x414]}}, None, UserError,
     "is one with id 0x413 at 0xe0042000, not that of Simulated F405 DK; nothing was written"),
    ("", {"pyocd": "stm32l4r5zitx"}, None, DeviceError, "does not know the chip stm32l4r5zitx yet"),
    ("", {}, "NOSUCH", DeviceError, "no debug probe NOSUCH"),
    ("worn", {}, None, DeviceError, "does not hold what was written: mismatched byte at 0x08000041"),
    ("no chip", {}, None, DeviceError, "finds no chip")])
def test_pyocd_failures_are_explained(tmp_path, probe, fault, facts, port, error, words):
    state = probe(fault)
    with pytest.raises(error) as raised:
        flash.flash(firmware(tmp_path), PROBED | facts, port)
    assert words in raised.value.what and raised.value.fix
    if "nothing was" in words:
        assert all(int(address) >> 28 == 0xE for address in json.loads(state.read_text())["memory"])


@needs("pyocd")
def test_without_a_probe_pyocd_lists_none_and_we_say_where_the_cable_goes(tmp_path, monkeypatch):
    from targets import flash_probe
    assert flash_probe.probes() == []
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [])
    with pytest.raises(DeviceError) as raised:
        flash.flash(firmware(tmp_path), PROBED)
    assert "ST-LINK" in raised.value.expected


@needs("pyocd")
@pytest.mark.parametrize("board", [b for b in BOARDS.values() if "pyocd" in b.get("loaders", ())],
                         ids=lambda board: board["name"])
def test_pyocd_knows_the_chip_of_a_board_or_its_pack_has_it(board):
    from pyocd.target.builtin import BUILTIN_TARGETS
    assert board["pyocd"] in BUILTIN_TARGETS or board["pyocd"].startswith("stm32")


@pytest.mark.parametrize("board", [b for b in BOARDS.values() if b.get("loaders")], ids=lambda board: board["name"])
def test_a_board_that_can_be_flashed_states_what_its_loaders_need(board):
    assert set(board["loaders"]) <= set(flash.LOADERS) and board["boot"]
    assert board["flash_at"] % 1024 == 0 and board["flash"] > 0
    wanted = {"uf2": ("uf2",), "pyocd": ("pyocd", "chip"), "stm32loader": ("stm32", "usb"), "esptool": ("esp", "usb")}
    for loader in board["loaders"]:
        assert all(key in board for key in wanted[loader])


@pytest.fixture
def pico(tmp_path, monkeypatch):
    """A mounted UF2 volume that flash_uf2 finds."""
    with loaders.Uf2Volume(tmp_path / "RPI-RP2", "RPI-RP2", 0xE48B_FF56) as volume:
        monkeypatch.setattr(flash_uf2, "mounted", lambda: [tmp_path, volume.folder])
        yield volume


def test_a_uf2_volume_is_found_written_and_restarts(tmp_path, pico):
    image = firmware(tmp_path, 0x1000_0000)
    done = flash.flash(image, PICO)
    assert (done["loader"], done["place"]) == ("uf2", str(pico.folder)) and not pico.folder.exists()
    held = images.flat(images.Image(tuple(sorted(pico.image.items()))))
    assert held.startswith(images.flat(images.read_elf(image)))


def test_a_uf2_volume_of_another_board_is_not_written(tmp_path):
    with loaders.Uf2Volume(tmp_path / "v", "nRF52840-Feather", 0xADA5_2840) as volume:
        with pytest.raises(UserError, match=r"is Simulated \(Board-ID nRF52840-Feather\).*nothing was written"):
            flash.flash(firmware(tmp_path, 0x1000_0000), PICO, str(volume.folder))
        assert [p.name for p in volume.folder.iterdir()] == ["INFO_UF2.TXT"]


def test_a_board_that_does_not_restart_has_not_taken_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(flash_uf2, "RESTART", 0.3)
    with loaders.Uf2Volume(tmp_path / "v", "RPI-RP2", 0xE48B_FF59) as volume:
        with pytest.raises(DeviceError, match="did not restart"):
            flash.flash(firmware(tmp_path, 0x1000_0000), PICO, str(volume.folder))


@pytest.mark.parametrize("gone, error", [(True, None), (False, DeviceError)])
def test_a_copy_that_fails_is_success_only_if_all_was_sent_and_the_board_left(tmp_path, monkeypatch, gone, error):
    (tmp_path / "INFO_UF2.TXT").write_text("Board-ID: RPI-RP2\n")
    (tmp_path / "fw.uf2").write_bytes(b"x" * 1000)

    def vanish(_):
        if gone:
            (tmp_path / "v" / "INFO_UF2.TXT").unlink()
        raise OSError(5, "Input/output error")
    (tmp_path / "v").mkdir()
    (tmp_path / "INFO_UF2.TXT").rename(tmp_path / "v" / "INFO_UF2.TXT")
    monkeypatch.setattr(flash_uf2.os, "fsync", vanish)
    if error:
        with pytest.raises(error, match="Input/output error"):
            flash_uf2._copy(tmp_path / "fw.uf2", tmp_path / "v")
    else:
        flash_uf2._copy(tmp_path / "fw.uf2", tmp_path / "v")


def test_two_boards_alike_are_not_guessed_between(tmp_path, monkeypatch):
    volumes = [tmp_path / "a", tmp_path / "b"]
    for volume in volumes:
        volume.mkdir()
        (volume / "INFO_UF2.TXT").write_text("Board-ID: RPI-RP2\n")
    monkeypatch.setattr(flash_uf2, "mounted", lambda: volumes)
    with pytest.raises(UserError, match="2 devices may be") as raised:
        flash.flash(firmware(tmp_path, 0x1000_0000), PICO)
    assert "--port" in raised.value.fix


@pytest.mark.parametrize("board", [STM32, PICO])
def test_no_board_says_what_to_press(tmp_path, monkeypatch, board):
    monkeypatch.setattr(flash_uf2, "mounted", lambda: [])
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [])
    with pytest.raises(DeviceError) as raised:
        flash.flash(firmware(tmp_path), board)
    assert raised.value.code == 2 and board["boot"] in raised.value.expected


def test_a_port_is_found_by_its_usb_ids(monkeypatch):
    from serial.tools.list_ports_common import ListPortInfo

    def port(device, vid, pid):
        found = ListPortInfo(device, skip_link_detection=True)
        found.vid, found.pid = vid, pid
        return found
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [
        port("/dev/ttyUSB1", 0x0403, 0x6001), port("/dev/ttyS0", None, None), port("/dev/ttyACM0", 0x1366, 0x1015)])
    assert flash_tools.serial_ports(STM32) == ["/dev/ttyUSB1"]
    assert flash_tools.serial_ports({"usb": ["1366:*"]}) == ["/dev/ttyACM0"]
    assert "/dev/ttyACM0 (1366:1015)" in flash_tools.known_ports() and "ttyS0" not in flash_tools.known_ports()


def test_an_image_of_another_board_is_refused_before_anything_is_written(tmp_path, pty_as_port):
    with loaders.Stm32() as chip:
        with pytest.raises(UserError, match="covers 0x10000000"):
            flash.flash(firmware(tmp_path, 0x1000_0000), STM32, chip.port)


def test_a_port_that_does_not_exist_is_missing(tmp_path):
    with pytest.raises(DeviceError, match="there is no port /dev/ttyNONE"):
        flash.flash(firmware(tmp_path), STM32, "/dev/ttyNONE")


def test_a_busy_port_is_refused_with_the_name_of_the_program_that_holds_it(tmp_path):
    with loaders.Stm32() as chip:
        program = f"import serial, sys; s = serial.Serial({chip.port!r}, exclusive=True); print('open', flush=True); " \
                  "sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(DeviceError) as raised:
                flash.flash(firmware(tmp_path), STM32, chip.port)
            assert "is in use by python" in raised.value.what and f"process {other.pid}" in raised.value.what
            with pytest.MonkeyPatch.context() as patch:     # as another user's program: /proc does not show it
                patch.setattr(flash_tools, "holder", lambda port: None)
                with pytest.raises(DeviceError, match="in use by another program") as raised:
                    flash_tools.check_port(chip.port)
                assert "fuser" in raised.value.fix
            other.stdin.close()


def test_a_port_without_permission_names_the_group_to_join():
    master, slave = pty.openpty()
    port = os.ttyname(slave)
    group = 20                                              # dialout on Debian
    root = os.geteuid() == 0
    if root:
        os.chown(port, 0, group)
    os.chmod(port, 0o060 if root else 0)
    program = textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import grp, pwd, serial, targets.flash_tools as tools
        if {root}:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            tools.check_port({port!r})
        except tools.DeviceError as error:
            print(error.code, error)
        """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    os.close(master)
    os.close(slave)
    assert f"2 no permission to open {port}" in done.stdout, done.stderr
    if root:
        assert "usermod -aG dialout" in done.stdout


def test_a_loader_that_hangs_is_ended(monkeypatch, tmp_path):
    (tmp_path / "sleeper.py").write_text("import time; print('waiting'); time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert flash_tools.run_tool("sleeper", [], 1.0) == (-1, "waiting\n")


def test_mounted_fat_volumes_are_found_under_their_own_names():
    text = "proc /proc proc rw 0 0\n/dev/sda1 /media/me/RPI-RP2 vfat rw 0 0\n" \
           "/dev/sdb1 /media/me/Müll\\040eimer vfat rw 0 0\n/dev/sdc1 / ext4 rw 0 0\n"
    assert flash_uf2.mount_points(text) == [Path("/media/me/RPI-RP2"), Path("/media/me/Müll eimer")]
    if sys.platform == "linux":
        assert all(isinstance(path, Path) for path in flash_uf2.mounted())


def test_an_emulated_machine_cannot_be_flashed(tmp_path):
    with pytest.raises(UserError, match="nothing to flash"):
        flash.flash(firmware(tmp_path), {"name": "mps2-an386"})


def test_a_port_of_the_wrong_kind_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="is not written through /dev/ttyACM0") as raised:
        flash.flash(firmware(tmp_path), PICO, "/dev/ttyACM0")
    assert raised.value.code == 1
