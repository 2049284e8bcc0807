# SPDX-License-Identifier: Apache-2.0
"""A board in the emulator as if it were plugged in: its UART is a pseudo terminal that any serial program opens.

The emulated clock follows this computer's, so samples and deadlines are in real time; what the board would take for an
inference is not (targets/emulate.py counts instructions).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

from targets import emulate, target
from targets.emulate import Machine
from targets.flash_tools import DeviceError
from train import say
from train.say import UserError


def machine(board: dict) -> Machine:
    """The machine of QEMU that is this board."""
    if "qemu" not in board:
        emulated = [key for key, facts in target.boards("mcu").items() if "qemu" in facts]
        raise UserError(f"there is no emulator of the {board['name']}", f"one of: {', '.join(emulated)}",
                        f"--board {next(k for k in emulated if k.startswith('mps'))}, or --flash on the board itself")
    return emulate.MACHINES[board["qemu"]]


@contextlib.contextmanager
def started(elf: Path, board: dict) -> Iterator[tuple[Popen, str, object]]:
    """Yields (process, path of the pseudo terminal, file of what the image prints); the emulator ends with the block.

    What the image sends before somebody opens the terminal is lost, as on a board.
    """
    with emulate.running(elf, machine(board), serial="pty") as (process, text):
        yield process, emulate.said(process, text, rb"redirected to (/\S+)")[1].decode(), text


def serve(elf: Path, board: dict, run: str | Path) -> dict:
    """Run until Ctrl-C; {"port"}. DeviceError with its words when the image ends by itself."""
    with started(elf, board) as (process, port, text):
        say.info(f"port {port}: {board['name']} is running; Ctrl-C ends it")
        say.info(f"next: python firmware_bridge/live.py --run {run} --port sim --target mcu --board-port {port}")
        try:
            code = process.wait()
        except KeyboardInterrupt:
            say.info("the emulator was ended")
            return {"port": port}
        text.seek(0)
        words = text.read().decode(errors="replace").strip().splitlines()[-5:]
        raise DeviceError(f"the image ended with code {code}: {' | '.join(words) or 'it printed nothing'}",
                          "firmware that runs until it is stopped", "python bench/parity.py tests it step by step")
