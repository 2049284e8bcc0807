# SPDX-License-Identifier: Apache-2.0
"""What every way of flashing shares: running a loader program, and serial ports that are there, ours and free.

The loaders are programs of their own and run as such: `python -m esptool`, `python -m stm32loader`, `python -m pyocd`.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from train.say import MissingError, UserError


class DeviceError(MissingError):
    """A device is absent, cannot be opened, does not answer or does not hold what was written. Exit code 2."""


def wrong_chip(where: str, found: str, board: dict, expected: str) -> UserError:
    """The chip on the port is not the chip of the board that was named. Exit code 1."""
    return UserError(f"the chip on {where} is {found}, not that of {board['name']}; nothing was written", expected,
                     "connect the other board, or name the one that is connected: --board (targets/boards.toml)")


def run_tool(module: str, words: list[str], seconds: float) -> tuple[int, str]:
    """(exit code, everything it printed) of `python -m module words`, shown on stderr while it runs.

    After `seconds` the program is ended and the code is -1: a loader that waits for a silent device must not wait
    for ever.
    """
    env = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    child = subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             stdin=subprocess.DEVNULL, env=env)
    late = threading.Timer(seconds, child.kill)
    late.start()
    text = b""
    try:
        while chunk := child.stdout.read1(4096):
            text += chunk
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()
        code = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        fired = not late.is_alive()
        late.cancel()
        child.stdout.close()
    return (-1 if fired and code else code), text.decode(errors="replace")


def last_words(text: str, lines: int = 3) -> str:
    """The end of a program's output, on one line: what it complained about."""
    said = [re.sub(r"\s+", " ", line).strip() for line in re.split(r"[\r\n]+", text)]
    return " | ".join([line for line in said if line][-lines:]) or "it printed nothing"


def serial_ports(board: dict) -> list[str]:
    """Serial ports whose USB ids match a pattern of the board's `usb` list ("0483:374b", "10c4:*")."""
    from serial.tools import list_ports
    return sorted(port.device for port in list_ports.comports() if port.vid is not None and any(
        fnmatch.fnmatch(f"{port.vid:04x}:{port.pid:04x}", pattern.lower()) for pattern in board.get("usb", ())))


def known_ports() -> str:
    """The serial ports of this computer with their USB ids, in words."""
    from serial.tools import list_ports
    named = [f"{p.device} ({p.vid:04x}:{p.pid:04x} {p.product or ''}".rstrip() + ")" for p in list_ports.comports()
             if p.vid is not None]
    return ", ".join(named) or "no USB serial port"


def check_port(port: str) -> None:
    """DeviceError, with its cause and its cure, unless `port` can be opened right now by us alone."""
    import serial
    if (user := holder(port)) is not None:
        raise DeviceError(f"{port} is in use by {user}", "a port that no other program holds",
                          "close that program (a serial monitor, the bridge, ModemManager) and run this again")
    try:
        serial.Serial(port, exclusive=True).close()
    except (OSError, ValueError) as error:
        raise explained(port, error) from error


def explained(port: str, error: Exception) -> DeviceError:
    """Why a port could not be opened, and what to type."""
    code = getattr(error, "errno", None)
    if code == errno.ENOENT or not _exists(port):
        return DeviceError(f"there is no port {port}", f"one of: {known_ports()}",
                           "plug the board in (with a cable that carries data), then name its port with --port")
    if code in (errno.EACCES, errno.EPERM) and os.name == "posix":
        owner, group = _owner(port)
        cure = (f"sudo usermod -aG {group} $USER, then log out and in; until then: sudo setfacl -m u:$USER:rw {port}"
                if group not in ("root", "") else f"sudo setfacl -m u:$USER:rw {port}, or a udev rule with "
                                                  "TAG+=\"uaccess\"")
        return DeviceError(f"no permission to open {port}, which belongs to {owner}:{group}",
                           "read and write access for you", cure)
    if code in (errno.EBUSY, errno.EAGAIN, errno.EACCES, errno.EPERM) or "denied" in str(error).lower():
        return DeviceError(f"{port} is in use by another program", "a port that no other program holds",
                           f"find it with: sudo fuser -v {port} (on Windows: close the serial monitor), then close it")
    return DeviceError(f"{port} cannot be opened: {error}", "a serial port", f"one of: {known_ports()}")


def _exists(port: str) -> bool:
    return os.name != "posix" or os.path.exists(port)


def _owner(port: str) -> tuple[str, str]:
    """(user, group) that a device file belongs to."""
    import grp
    import pwd
    status = os.stat(port)
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    return str(status.st_uid), str(status.st_gid)


def holder(port: str) -> str | None:
    """The other program that has the port open ("minicom (process 812)"), as far as /proc shows it to this user."""
    device = os.path.realpath(port)
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(os.path.realpath(fd) == device for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None
