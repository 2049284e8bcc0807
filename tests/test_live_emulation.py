# SPDX-License-Identifier: Apache-2.0
"""An emulated board behind a pseudo terminal, used like a plugged-in one."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import graphs as make
import pytest
import serial

from targets import deploy, device, emulate, live_emulation, target, toolchain
from targets.flash_tools import DeviceError
from tests import loaders
from train import say
from train.manifest import Trigger
from train.say import UserError

ROOT = Path(__file__).parents[1]
absent = emulate.missing() or toolchain.missing("m4")
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))

# A UART of the MPS2: answers each byte by its successor, ends on a full stop.
ECHO = r"""
#include "ecg_semihost.h"
#include <stdint.h>

static volatile uint32_t *const uart = (volatile uint32_t *)0x40004000u;    /* data, state, control, -, divider */

int main(void)
{
    uart[4] = 16;
    uart[2] = 3;
    for (;;) {
        while (!(uart[1] & 2u))
            ;
        uint32_t byte = uart[0];
        if (byte == '.') {
            ecg_print("full stop\n");
            ecg_exit(7);
        }
        uart[0] = byte + 1u;
    }
}
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """(image, board)"""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.c").write_text(ECHO)
    board = target.read_board("mps2-an386", "mcu")
    on = emulate.machine("m4")
    return toolchain.image("m4", [folder / "echo.c", toolchain.SEMIHOST], folder / "echo.elf", on.flash, on.ram), board


def test_bytes_go_both_ways_through_the_terminal(echo):
    with live_emulation.started(*echo) as (process, port, _):
        with serial.Serial(port, 115200, timeout=10) as link:
            link.write(b"HAL")
            assert link.read(3) == b"IBM"
        with serial.Serial(port, 115200, timeout=10) as link:       # another program, after the first has gone
            link.write(bytes(range(200, 255)))
            assert link.read(55) == bytes(range(201, 256))
        assert process.poll() is None
    assert process.poll() is not None


def test_ctrl_c_ends_the_emulator_and_is_no_error(echo, tmp_path):
    elf, board = echo
    program = textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)    # background jobs of a shell ignore it
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from targets import live_emulation
        print(live_emulation.serve(Path({str(elf)!r}), {board!r}, "runs/af"))
        """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as child:
        first = child.stdout.readline()
        port = first.split()[1].rstrip(":")
        with serial.Serial(port, timeout=10) as link:
            link.write(b"a")
            assert link.read(1) == b"b"
        child.send_signal(signal.SIGINT)
        late = threading.Timer(60, child.kill)
        late.start()
        rest = child.stdout.read()
        late.cancel()
    assert child.returncode == 0 and first.startswith("port /dev/") and "MPS2 AN386" in first
    assert f"--board-port {port}" in rest and "was ended" in rest and repr({"port": port}) in rest


def test_serve_reports_an_image_that_stops(echo, monkeypatch):
    elf, board = echo
    links = []          # open until the end: what is written to a terminal that is closed at once is lost

    def press(words):
        if words.startswith("port"):
            links.append(serial.Serial(words.split()[1].rstrip(":")))
            links[0].write(b".")
    monkeypatch.setattr(live_emulation.say, "info", press)
    with pytest.raises(DeviceError, match=r"ended with code 7: .*full stop"):
        live_emulation.serve(elf, board, "runs/af")
    links[0].close()


def test_a_board_without_an_emulator_names_those_with_one():
    with pytest.raises(UserError, match="no emulator of the Raspberry Pi Pico") as raised:
        live_emulation.machine(target.read_board("pico", "mcu"))
    assert "mps2-an386" in raised.value.expected and "--flash" in raised.value.fix


def test_what_deploy_flashes_boots_and_names_its_model(tmp_path, monkeypatch):
    pytest.importorskip("stm32loader", reason='stm32loader is not installed: pip install -e ".[mcu]"')
    (tmp_path / "sitecustomize.py").write_text(loaders.PTY_AS_SERIAL_PORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    manifest = replace(make.manifest_of(make.streaming(), "0" * 64), trigger=Trigger("hop", hop=32), streaming=True)
    run = make.write_run(tmp_path / "r", make.streaming(), golden=4, manifest=manifest)
    words = ["--run", run, "--target", "mcu", "--board", "stm32f405", "--flash", "--port"]
    with loaders.Stm32(size=1 << 20) as chip:
        assert say.run(deploy.main, deploy.parser(), [*map(str, words), chip.port]) == 0
    held = bytes(chip.flash).rstrip(b"\xff")
    elf = loaders.write_elf(tmp_path / "flash.elf", [(0x0800_0000, 0x0800_0000, held + bytes(-len(held) % 4))])
    with live_emulation.started(elf, target.read_board("stm32f405", "mcu")) as (_, port, _):
        line = device.SerialLine(port)
        about = device.Device(line).hello()
        line.close()
    assert about.board_name == "stm32f405" and about.model[0].ok
    assert about.model[0].identity == target.open_run(run)[0].identity
