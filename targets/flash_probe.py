# SPDX-License-Identifier: Apache-2.0
"""Boards with a debug probe (ST-LINK, CMSIS-DAP, J-Link), by the program pyocd."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from targets import flash_tools
from targets import image as images
from targets.flash_tools import DeviceError, wrong_chip


def missing() -> str | None:
    """Why pyocd cannot be used here."""
    return None if importlib.util.find_spec("pyocd") else 'pyocd is not installed: pip install -e ".[mcu]"'


def takes(port: str) -> bool:
    """The id of a probe, whole or its beginning, or the serial port that the same probe offers."""
    return port.startswith("/dev/") or os.sep not in port


def hint(board: dict) -> str:
    """Where the cable goes; and what keeps a probe that the computer sees from being used."""
    words = board["boot"] if board["loaders"][0] == "pyocd" else "a debug probe on SWDIO, SWCLK and GND"
    if sys.platform.startswith("linux") and flash_tools.serial_ports(board):
        vendor = board["usb"][0].partition(":")[0]
        words += (f" (its serial port is there but its probe may not be opened; as root: echo 'SUBSYSTEM==\"usb\", "
                  f"ATTR{{idVendor}}==\"{vendor}\", TAG+=\"uaccess\"' > /etc/udev/rules.d/60-probe.rules; "
                  "udevadm control --reload; plug it in again)")
    return words


def probes() -> list[dict]:
    """Debug probes that pyocd sees: unique_id, info, board_name, target, ..."""
    done = subprocess.run([sys.executable, "-m", "pyocd", "json", "--probes", "--no-config"], capture_output=True,
                          text=True, timeout=60)
    try:
        listed = json.loads(done.stdout)
        return listed["boards"] if listed["status"] == 0 else []
    except (ValueError, KeyError) as error:
        raise DeviceError(f"pyocd cannot list probes: {flash_tools.last_words(done.stdout + done.stderr)}",
                          "pyocd 0.36 or later with libusb", 'pip install -e ".[mcu]"') from error


def places(board: dict) -> list[str]:
    """Ids of the probes; of several, those that say they sit on this board."""
    found = probes()
    name = board["name"].lower()
    own = [p for p in found if (p.get("board_name") or "").lower() == name or p.get("target") == board["pyocd"]]
    return [p["unique_id"] for p in (own or found)]


def write(image: Path, board: dict, place: str) -> dict:
    """Read the chip's id, erase the sectors and write them, compare, restart."""
    elf = images.read_elf(image)
    images.fits(elf, board["flash_at"], board["flash"], image)
    link = ["--no-config", "-u", _probe(place), "-W"]
    _refuse_other_chips(board, place, link)
    link += ["-t", board["pyocd"]]
    code, text = flash_tools.run_tool("pyocd", ["load", *link, "--no-reset", "--format", "elf", str(image)],
                                      90 + elf.size / 1000)
    if code:
        raise _failed(place, board, text)
    _compare(elf, board, place, link)
    return {"bytes": elf.size, "verified": "read back through the probe and equal"}


def _probe(place: str) -> str:
    """The id of the probe behind a serial port; anything else is an id already."""
    from serial.tools import list_ports
    return next((port.serial_number for port in list_ports.comports()
                 if port.device == place and port.serial_number), place)


def _refuse_other_chips(board: dict, place: str, link: list[str]) -> None:
    """The identification register of the chip's maker, read without stopping the core or touching the flash."""
    chip = board["chip"]
    code, text = flash_tools.run_tool("pyocd", ["commander", *link, "-t", "cortex_m", "-M", "attach", "-c",
                                                f"read32 {chip['at']:#x}"], 60)
    found = re.search(rf"^\s*{chip['at']:08x}:\s+([0-9a-f]{{8}})\b", text, re.MULTILINE | re.IGNORECASE)
    if code or not found:
        raise _failed(place, board, text)
    value = int(found[1], 16) & chip["mask"]
    if value not in chip["id"]:
        raise wrong_chip(f"probe {place}", f"one with id {value:#x} at {chip['at']:#x}", board,
                             " or ".join(hex(i) for i in chip["id"]))


def _compare(elf: images.Image, board: dict, place: str, link: list[str]) -> None:
    """Read the flash back against the image, then let the board run."""
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, (address, data) in enumerate(elf.pieces):
            file = Path(folder) / f"{number}.bin"
            file.write_bytes(data)
            commands += ["-c", f"compare {address:#x} {file}"]
        code, text = flash_tools.run_tool("pyocd", ["commander", *link, "-M", "halt", *commands, "-c", "reset"],
                                          90 + elf.size / 1000)
    if wrong := re.search(r"Mismatched byte at \S+", text):
        raise DeviceError(f"the flash does not hold what was written: {wrong[0].lower()}",
                          "the bytes of the image, read back", "run it again; a slower or shorter cable to the probe")
    if code or text.count("match") < len(elf.pieces):
        raise _failed(place, board, text)


def _failed(place: str, board: dict, text: str) -> DeviceError:
    """What pyocd's output means for the user."""
    said = flash_tools.last_words(text)
    if "not recognized" in text and "arget type" in text:
        return DeviceError(f"pyocd does not know the chip {board['pyocd']} yet", "its CMSIS pack",
                           f"python -m pyocd pack install {board['pyocd']}")
    if re.search(r"No (connected|available) (debug )?probe|no probe", text, re.IGNORECASE):
        there = ", ".join(p["unique_id"] for p in probes())
        return DeviceError(f"no debug probe {place}", there or "none is connected", hint(board))
    if re.search(r"LIBUSB_ERROR_ACCESS|Access denied|insufficient permissions|Errno 13", text):
        return DeviceError(f"no permission to open probe {place}", "access to the USB device", hint(board))
    if re.search(r"LIBUSB_ERROR_BUSY|Resource busy|Errno 16", text):
        return DeviceError(f"probe {place} is in use by another program", "a free probe",
                           "close the debugger (openocd, an IDE, another pyocd) and run this again")
    if re.search(r"No ACK|STLink error|Unable to connect|DP wake|no cores", text, re.IGNORECASE):
        return DeviceError(f"probe {place} finds no chip: {said}", "a powered chip on SWDIO and SWCLK",
                           "check power and the two wires; hold reset while it starts if the firmware sleeps deeply")
    return DeviceError(f"pyocd stopped: {said}", "write and verify without an error", "run this again")
