# SPDX-License-Identifier: Apache-2.0
"""STM32 over a serial port: the boot loader in the chip's ROM, driven by the program stm32loader."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path

from targets import flash_tools
from targets import image as images
from targets.flash_tools import DeviceError, wrong_chip

RATE = 115_200                          # bit/s; the ROM measures it, 8E1


def missing() -> str | None:
    """Why stm32loader cannot be used here."""
    return None if importlib.util.find_spec("stm32loader") else 'stm32loader is not installed: pip install -e ".[mcu]"'


def takes(port: str) -> bool:
    """A serial port."""
    return not os.path.isdir(port) and (port.upper().startswith("COM") or "/" in port)


def hint(board: dict) -> str:
    """How the ROM's boot loader is started."""
    return (f"a USB serial adapter ({', '.join(board.get('usb', ['any']))}) on the pins of the boot loader, and "
            f"{board.get('boot', 'BOOT0 high during a reset')}")


def places(board: dict) -> list[str]:
    """Serial ports that may lead to the board."""
    return flash_tools.serial_ports(board)


def write(image: Path, board: dict, place: str) -> dict:
    """Read the chip's id, erase, write, read back, start."""
    flash_tools.check_port(place)
    elf = images.read_elf(image)
    images.fits(elf, board["flash_at"], board["flash"], image)
    link = ["--port", place, "--baud", str(RATE)]
    _refuse_other_chips(board, place, link)
    with tempfile.TemporaryDirectory() as folder:
        file = images.write_bin(elf, Path(folder) / "image.bin")
        size = file.stat().st_size
        words = [*link, "--family", board["stm32"]["family"], "--erase", "--write", "--verify", "--no-progress",
                 "--address", hex(elf.start), "--go-address", hex(board["flash_at"]), str(file)]
        code, text = flash_tools.run_tool("stm32loader", words, 90 + size / 1000)
    if "Verification OK" not in text:
        raise _failed(place, code, text)
    return {"bytes": elf.size, "verified": "read back and equal"}


def _refuse_other_chips(board: dict, place: str, link: list[str]) -> None:
    """stm32loader without a command prints the chip's id and leaves the flash alone."""
    code, text = flash_tools.run_tool("stm32loader", link, 30)
    found = re.search(r"Chip id: 0x([0-9A-Fa-f]+)\s*(\([^)\n]*\))?", text)
    if not found:
        raise _failed(place, code, text)
    if int(found[1], 16) not in board["stm32"]["id"]:
        raise wrong_chip(place, f"0x{found[1].lower()} {found[2] or ''}".rstrip(), board,
                             " or ".join(hex(i) for i in board["stm32"]["id"]))


def _failed(place: str, code: int, text: str) -> DeviceError:
    """What stm32loader's output means for the user."""
    said = flash_tools.last_words(text)
    if "init into bootloader" in text or (code == -1 and "Chip id" not in text):
        return DeviceError(f"no STM32 boot loader answers on {place}", "the ROM's boot loader at 115200 baud, 8E1",
                           "set BOOT0 high and press reset; cross RX and TX; use a UART that the chip's ROM listens to")
    if "readout protection" in text:
        return DeviceError("the chip refuses to erase: its flash is protected against reading", "an open chip",
                           f"this erases everything on it: python -m stm32loader --port {place} --unprotect")
    if "Verification FAILED" in text:
        return DeviceError(f"the flash does not hold what was written: {said}", "the bytes of the image, read back",
                           "run it again; if it stays so: check the supply, or the flash is worn")
    return DeviceError(f"stm32loader stopped: {said}", "erase, write and read back without an error",
                       "reset the board into its boot loader and run this again; the image on it is incomplete")
