# SPDX-License-Identifier: Apache-2.0
"""Espressif chips over a serial port, by the program esptool. The image may be an ELF or a ready .bin file."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path

from targets import flash_tools
from targets.flash_stm32 import takes  # noqa: F401  (a serial port here too)
from targets.flash_tools import DeviceError, wrong_chip
from train.say import UserError


def missing() -> str | None:
    """Why esptool cannot be used here."""
    return None if importlib.util.find_spec("esptool") else 'esptool is not installed: pip install -e ".[mcu]"'


def hint(board: dict) -> str:
    """How the chip's boot loader is started."""
    return f"a USB cable, and {board.get('boot', 'hold BOOT while pressing RESET')}"


def places(board: dict) -> list[str]:
    """Serial ports that may lead to the board."""
    return flash_tools.serial_ports(board)


def write(image: Path, board: dict, place: str) -> dict:
    """Write at the board's offset; the boot loader compares MD5 of what lies in flash with that of the file."""
    flash_tools.check_port(place)
    facts = board["esp"]
    with tempfile.TemporaryDirectory() as folder:
        file = image if image.suffix == ".bin" else _converted(image, facts["chip"], Path(folder))
        size = file.stat().st_size
        words = ["--chip", facts["chip"], "--port", place, "--before", facts.get("before", "default-reset"), "--after",
                 facts.get("after", "hard-reset"), "--connect-attempts", "3", *([] if facts.get("stub", True)
                                                                                 else ["--no-stub"])]
        code, text = flash_tools.run_tool("esptool", [*words, "write-flash", hex(facts["offset"]), str(file)],
                                          60 + size / 1000)
    if code or "Hash of data verified" not in text:
        raise _failed(place, board, text)
    return {"bytes": size, "verified": "MD5 of the flash equals that of the file"}


def _converted(elf: Path, chip: str, folder: Path) -> Path:
    """The boot loader's own format."""
    code, text = flash_tools.run_tool("esptool", ["--chip", chip, "elf2image", "--output", str(folder / "image.bin"),
                                                  str(elf)], 60)
    if code:
        raise UserError(f"esptool cannot convert {elf}: {flash_tools.last_words(text)}", f"an ELF for {chip}",
                        "build it for this chip, or hand over a .bin file that is")
    return folder / "image.bin"


def _failed(place: str, board: dict, text: str) -> Exception:
    """What esptool's output means for the user."""
    flat = re.sub(r"\s+", " ", text)
    if other := re.search(r"chip is (ESP\S+?),? not (ESP\S+?)\.", flat):
        return wrong_chip(place, other[1], board, other[2])
    if "Failed to connect" in text or "No serial data received" in text:
        return DeviceError(f"no boot loader answers on {place}", f"{board['name']} in download mode", hint(board))
    if "MD5 of file does not match" in flat:
        return DeviceError("the flash does not hold what was written (MD5 differs)", "the MD5 of the file",
                           "run it again; if it stays so: a slower port or another cable")
    return DeviceError(f"esptool stopped: {flash_tools.last_words(text)}", "write and verify without an error",
                       "put the board in download mode and run this again")
