# SPDX-License-Identifier: Apache-2.0
"""Boards that appear as a USB volume: copy a UF2 file onto it and see the board restart."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path

from targets import image as images
from targets.flash_tools import DeviceError, wrong_chip

INFO = "INFO_UF2.TXT"
RESTART = 20.0                          # seconds until the volume must be gone


def missing() -> str | None:
    """Nothing is needed but a file manager's work."""
    return None


def takes(port: str) -> bool:
    """The folder where the volume is mounted, or a drive letter."""
    return os.path.isdir(port)


def hint(board: dict) -> str:
    """What to press; and on Linux without a desktop, what to mount."""
    words = f"{board.get('boot', 'start its UF2 boot loader')}, until the volume {_names(board)[0]} appears"
    labels = Path("/dev/disk/by-label")
    waiting = [path for path in labels.glob("*") if path.name in _names(board)] if labels.is_dir() else []
    return words + (f"; it is there but not mounted: udisksctl mount -b {waiting[0]}" if waiting else "")


def _names(board: dict) -> list[str]:
    return board["uf2"]["board"]


def mounted() -> list[Path]:
    """Folders where a volume may be mounted."""
    if sys.platform == "darwin":
        return list(Path("/Volumes").iterdir())
    if os.name == "nt":
        return [Path(f"{letter}:/") for letter in "DEFGHIJKLMNOPQRSTUVWXYZ" if os.path.exists(f"{letter}:/")]
    return mount_points(Path("/proc/mounts").read_text())


def mount_points(text: str) -> list[Path]:
    """Where /proc/mounts says that FAT volumes are mounted; blanks in a name are written there as \\040."""
    fields = [line.split() for line in text.splitlines()]
    return [Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), f[1])) for f in fields
            if f[2] in ("vfat", "msdos", "fuseblk")]


def read_info(volume: Path) -> dict[str, str]:
    """INFO_UF2.TXT as key -> value; {} when the volume has none."""
    with contextlib.suppress(OSError):
        lines = (volume / INFO).read_text(errors="replace").splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    return {}


def _is(board: dict, info: dict[str, str]) -> bool:
    """The volume's Board-ID begins with one of the board's names."""
    return any(info.get("Board-ID", "").startswith(name) for name in _names(board))


def places(board: dict) -> list[str]:
    """Mounted UF2 volumes of this very board."""
    return [str(volume) for volume in mounted() if _is(board, read_info(volume))]


def write(image: Path, board: dict, place: str) -> dict:
    """Copy the image. The boot loader restarts the board when it has every block, and the volume goes away."""
    volume = Path(place)
    info = read_info(volume)
    if not info:
        raise DeviceError(f"{volume} is no UF2 volume", f"a folder with {INFO}", hint(board))
    if not _is(board, info):
        raise wrong_chip(str(volume), f"{info.get('Model', '?')} (Board-ID {info.get('Board-ID', '?')})", board,
                             f"Board-ID {' or '.join(_names(board))}")
    elf = images.read_elf(image)
    images.fits(elf, board["flash_at"], board["flash"], image)
    file = images.write_uf2(elf, image.with_suffix(".uf2"), board["uf2"]["family"])
    _copy(file, volume)
    _wait_for_restart(volume)
    return {"bytes": elf.size, "verified": "the boot loader had every block and restarted the board"}


def _copy(file: Path, volume: Path) -> None:
    """Write through to the device. The board may be gone before the last write is confirmed: that is success."""
    data = file.read_bytes()
    sent = 0
    try:
        with open(volume / file.name, "wb", buffering=0) as out:
            while sent < len(data):
                sent += out.write(data[sent:sent + 65536])
            os.fsync(out.fileno())
    except OSError as error:
        if sent < len(data) or read_info(volume):
            raise DeviceError(f"copying to {volume} stopped after {sent // 1024} of {len(data) // 1024} kB: "
                              f"{error.strerror}", "a volume that takes the whole file",
                              "mount it for writing, or plug the board in again in boot loader mode") from error


def _wait_for_restart(volume: Path) -> None:
    until = time.monotonic() + RESTART
    while read_info(volume):
        if time.monotonic() > until:
            raise DeviceError(f"the board on {volume} took the file but did not restart", "a volume that disappears",
                              "its boot loader refused a block: compare its INFO_UF2.TXT with the board's name")
        time.sleep(0.1)
