# SPDX-License-Identifier: Apache-2.0
"""Where bytes come from: serial ports and pseudo terminals, TCP, files of raw bytes, and the simulator.

    /dev/ttyUSB0, COM3          a serial port (pyserial); anything else that pyserial opens by a URL, too
    tcp://host:port             a serial server; socket:// means the same
    file:PATH                   bytes as they came, see captures.py
    sim, sim:sinus,af@30        the simulator in this process, with its rhythms

A line that is gone is always LineLost, whatever the system calls it. `Plug` finds it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from firmware_bridge.profiles import Profile
from firmware_bridge.wire import Line, LineLost
from train.say import MissingError, UserError

MOST = 1 << 20              # bytes that one read takes at the most, however fast they come
STUCK_S = 2.0               # a device that takes no bytes for so long is gone
CONNECT_S = 5.0
TRY_S, TRY_MOST_S = 0.05, 0.4       # between two looks for a port that was pulled out: the first wait, the longest
# makers of the chips behind serial ports, by USB vendor, for those who do not know them by number
MAKERS = {0x0403: "FTDI", 0x10C4: "Silicon Labs", 0x1A86: "WCH", 0x067B: "Prolific", 0x2341: "Arduino",
          0x2E8A: "Raspberry Pi", 0x303A: "Espressif", 0x0483: "STMicroelectronics", 0x239A: "Adafruit",
          0x1B4F: "SparkFun", 0x16C0: "Teensy", 0x1366: "SEGGER", 0x0D28: "Arm DAPLink"}


# ---- which there are


@dataclass(frozen=True)
class Found:
    """A serial port. usb: (vendor, product, serial number or None), None when it is not on USB; place: on the bus."""

    port: str
    title: str
    usb: tuple[int, int, str | None] | None = None
    place: str = ""


def list_ports() -> list[Found]:
    """The serial ports of this computer, those on USB first."""
    from serial.tools.list_ports import comports
    found = []
    for p in comports():
        usb = None if p.vid is None else (p.vid, p.pid, p.serial_number)
        text = p.description if p.description not in (None, "n/a") else Path(p.device).name
        if usb:
            maker = MAKERS.get(p.vid, p.manufacturer or "")
            text = ", ".join(filter(None, [text, maker if maker not in text else "", f"{p.vid:04x}:{p.pid:04x}",
                                           f"serial {p.serial_number}" if p.serial_number else ""]))
        found.append(Found(p.device, text, usb, p.location or ""))
    return sorted(found, key=lambda f: (f.usb is None, f.port))


def there_are() -> str:
    """The ports in words."""
    names = [f"{f.port} ({f.title})" for f in list_ports()]
    return "one of: " + "; ".join(names) if names else "a serial port; this computer has none now"


# ---- lines


class SerialLine:
    """A serial port or a pseudo terminal. dtr: as in a Profile; "hold" keeps it up even when the port is closed."""

    def __init__(self, port: str, baud: int = 115200, dtr: str = "any"):
        import serial
        self.name = port
        try:
            self._port = serial.serial_for_url(port, do_not_open=True)
            self._port.baudrate, self._port.timeout, self._port.write_timeout = baud, 0, STUCK_S
            with contextlib.suppress(ValueError, AttributeError, NotImplementedError):
                self._port.exclusive = True         # a second reader would take bytes away unseen
            self._port.dtr = True                   # the system raises it at opening: it must not fall again
            self._port.open()
        except (OSError, ValueError) as error:      # SerialException is an OSError
            raise refused(port, error) from error
        _prompt(self._port)
        if dtr == "hold":
            _hold(self._port)

    def set_baud(self, baud: int) -> None:
        """Go on at another rate, without opening anew, which would reset some boards; drops what came so far."""
        with self._guarded():
            self._port.baudrate = baud
            self._port.reset_input_buffer()

    def write(self, data: bytes) -> None:
        """Send all of it; LineLost when it cannot."""
        with self._guarded():
            self._port.write(data)

    def read(self, seconds: float) -> bytes:
        """Everything that is there, so that a burst comes whole; waits for the first byte only."""
        with self._guarded():
            if self._port.timeout != seconds:
                self._port.timeout = seconds
            data = bytearray(self._port.read(1))
            with contextlib.suppress(OSError, TypeError):       # what came before the end counts; next time it is told
                while data and len(data) < MOST:
                    more = self._port.in_waiting
                    if not more:
                        break
                    data += self._port.read(min(more, MOST - len(data)))
            return bytes(data)

    def clock(self) -> float:
        """Host seconds, monotonic."""
        return time.monotonic()

    def close(self) -> None:
        """Give the port back; never raises."""
        with contextlib.suppress(Exception):
            self._port.close()

    @contextlib.contextmanager
    def _guarded(self):
        try:
            yield
        except (OSError, TypeError, ValueError) as error:       # TypeError: pyserial, closed while it was read
            self.close()
            raise LineLost(errno.EIO, f"the line to {self.name} is gone ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """What the system says, in a word or two."""
    text = str(error)
    if "returned no data" in text or getattr(error, "errno", None) in (errno.EIO, errno.ENODEV, errno.ENXIO):
        return "pulled out or closed at the other end"
    return "it takes no bytes" if "timeout" in text.lower() else text


def _prompt(port) -> None:
    """Bytes at once instead of every 16 ms, the default of FTDI's chips; what has no such setting has none."""
    with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
        port.set_low_latency_mode(True)
    with contextlib.suppress(OSError, TypeError):
        timer = Path("/sys/bus/usb-serial/devices", os.path.basename(os.path.realpath(port.name)), "latency_timer")
        if timer.is_file() and timer.read_text().strip() != "1":
            timer.write_text("1")


def _hold(port) -> None:
    """Leave DTR up when the port is closed, so that the next opening does not reset the board (POSIX)."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import termios
        settings = termios.tcgetattr(port.fd)
        settings[2] &= ~termios.HUPCL
        termios.tcsetattr(port.fd, termios.TCSANOW, settings)


class TcpLine:
    """A serial server's socket. Peers that vanish without a word are noticed by keep-alives within a few seconds."""

    def __init__(self, url: str, seconds: float = CONNECT_S):
        self.name = url
        host, port = _address(url)
        try:
            self._socket = socket.create_connection((host, port), seconds)
        except OSError as error:
            raise MissingError(f"{url} does not answer: {error.strerror or error}", "a server of a device's bytes",
                               "check host and port; python firmware_bridge/simulate.py --protocol cyton --tcp "
                               f"{port} serves one here") from error
        options = [(socket.SOL_SOCKET, "SO_KEEPALIVE", 1), (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
                   (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 1), (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
                   (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3)]
        for level, name, value in options:
            with contextlib.suppress(OSError, AttributeError):
                self._socket.setsockopt(level, getattr(socket, name), value)
        self._socket.settimeout(STUCK_S)

    def set_baud(self, baud: int) -> None:
        """The server's business."""

    def write(self, data: bytes) -> None:
        """Send all of it; LineLost when it cannot."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(error) from error

    def read(self, seconds: float) -> bytes:
        """Everything that is there; waits for the first byte only."""
        data = bytearray()
        try:
            ready = select.select([self._socket], [], [], seconds)[0]
            while ready and len(data) < MOST:
                part = self._socket.recv(65536)
                if not part:
                    if data:
                        break               # the end is told at the next reading
                    raise ConnectionResetError(errno.ECONNRESET, "closed at the other end")
                data += part
                ready = select.select([self._socket], [], [], 0)[0]
        except (OSError, ValueError) as error:
            raise self._lost(error) from error
        return bytes(data)

    def clock(self) -> float:
        """Host seconds, monotonic."""
        return time.monotonic()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _lost(self, error: Exception) -> LineLost:
        self.close()
        return LineLost(errno.EIO, f"the line to {self.name} is gone ({getattr(error, 'strerror', None) or error})")


def _address(url: str) -> tuple[str, int]:
    """(host, port) of tcp://host:port."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise UserError(f"{url} is no address", "tcp://host:port", "for example --port tcp://127.0.0.1:5000")


def open_line(port: str, baud: int = 115200, dtr: str = "any", profile: Profile | None = None,
              speed: float = 0.0) -> Line:
    """Open a port by its name; MissingError with words when it does not open.

    profile and speed (times real time, 0 as fast as it goes) serve files, whose bytes may have come without times.
    """
    if port.startswith(("tcp://", "socket://")):
        return TcpLine(port)
    if port.startswith("file:"):
        from firmware_bridge import captures
        return captures.FileLine(port.removeprefix("file:"), speed, profile)
    return SerialLine(port, baud, dtr)


# ---- why a port does not open


def refused(port: str, error: Exception) -> UserError:
    """What the system's refusal to open `port` means, and what helps."""
    code, path = getattr(error, "errno", None), Path(port)
    if isinstance(error, ValueError) or (code is None and "://" in port):
        return UserError(f"{port} cannot be opened: {error}", there_are(), "see --port in --help")
    if path.is_file():
        return UserError(f"{port} is a file, no port", "a serial port", f"--port file:{port} reads its bytes")
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV) or (code is None and "FileNotFound" in str(error)):
        return MissingError(f"there is no port {port}", there_are(),
                            "plug it in, or take one of those; --port sim needs no hardware")
    if code in (errno.EACCES, errno.EPERM):
        return MissingError(f"no permission to open {port}", f"membership of the group {_group(path)}",
                            f"sudo usermod -aG {_group(path)} $USER, then log in again")
    if code in (errno.EAGAIN, errno.EBUSY, errno.EWOULDBLOCK):
        return MissingError(f"{port} is in use by {_holder(path)}", "a port that no other program reads",
                            "close that program")
    if code in (errno.ENOTTY, errno.EINVAL, errno.EISDIR):
        return UserError(f"{port} is no serial port", there_are())
    return MissingError(f"{port} does not open: {error}", there_are(), "pull it out and plug it in again")


def _group(path: Path) -> str:
    """The group that may use a port: dialout or uucp, mostly."""
    with contextlib.suppress(ImportError, OSError, KeyError):
        import grp
        name = grp.getgrgid(path.stat().st_gid).gr_name
        if name != "root":
            return name
    return "dialout"


def _holder(path: Path) -> str:
    """The program that has a port open, where the system tells."""
    real = os.path.realpath(path)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(f) == real for f in (folder / "fd").iterdir()) and folder.name != str(os.getpid()):
                return f"{(folder / 'comm').read_text().strip()} (process {folder.name})"
    return "another program"


# ---- pulled out and plugged in


class Plug:
    """A port that may be pulled out and come back, on Linux often under another name.

        line = plug.open()
        try: line.read(0.05)
        except LineEnded: done
        except LineLost: while (line := plug.again()) is None: go on with other work, 0.05 s or so

    port, baud, dtr, profile, speed: as for open_line; "sim" and "sim:RHYTHMS" start a simulator of `profile`, with
    `faults` (words of faults.parse) and `leads` (which channel measures what). tee: file that everything read is copied
    to.
    """

    def __init__(self, port: str, baud: int = 115200, dtr: str = "any", profile: Profile | None = None,
                 speed: float = 0.0, tee: str | Path | None = None, faults: str = "", leads: str | None = None):
        self.asked, self.port, self.baud, self.dtr = port, port, baud, dtr
        self.profile, self.speed, self.tee, self.faults, self.leads = profile, speed, tee, faults, leads
        self.simulator, self._usb, self._place = None, None, ""
        self._line, self._capture, self._next, self._wait = None, None, 0.0, TRY_S

    def open(self) -> Line:
        """The line, opened for the first time; MissingError when there is none."""
        if self.asked.partition(":")[0] == "sim" and self.simulator is None:
            self._simulate(self.asked.partition(":")[2])
        self._line = self._opened(self.port)
        return self._line

    def again(self) -> Line | None:
        """The line if it is back. To be asked often: it looks no more often than it needs to."""
        if time.monotonic() < self._next:
            return None
        for name in self._names():
            with contextlib.suppress(UserError, LineLost):
                self._line = self._opened(name)
                self.port, self._wait = name, TRY_S
                return self._line
        self._wait = min(self._wait * 1.5, TRY_MOST_S)
        self._next = time.monotonic() + self._wait
        return None

    def close(self) -> None:
        """Give back what is open, and end the simulator."""
        for thing in (self._line, self._capture):
            if thing is not None:
                thing.close()
        if self.simulator is not None:
            self.simulator.stop()

    def _simulate(self, rhythms: str) -> None:
        from firmware_bridge import profiles, simulate
        self.profile = self.profile or profiles.find("cyton")
        self.simulator = simulate.Simulator(self.profile.name, rhythm=rhythms or "sinus", faults=self.faults,
                                            leads=self.leads)
        self.port = self.simulator.start()

    def _opened(self, name: str) -> Line:
        if name.startswith("/") and self._line is not None and not os.path.exists(name):
            raise LineLost(errno.ENOENT, f"{name} is not back")
        again = self._line is not None
        if again:
            self._line.close()          # one on which the device did not answer still holds the port
        line = TcpLine(name, TRY_MOST_S) if again and _is_tcp(name) else \
            open_line(name, self.baud or 115200, self.dtr, self.profile, self.speed)
        known = next((f for f in list_ports() if f.port == os.path.realpath(name)), None) if _is_serial(name) else None
        if known is not None and known.usb is not None:
            self._usb, self._place = known.usb, known.place
        if self.tee is None:
            return line
        from firmware_bridge import captures
        self._capture = self._capture or captures.Capture(self.tee)
        return captures.Teed(line, self._capture)

    def _names(self) -> list[str]:
        """Where it may be now: the ports of the same USB device, then the name it had."""
        if self.simulator is not None:
            return [self.simulator.port] if self.simulator.port else []
        names = []
        if self._usb is not None:
            same = [f for f in list_ports() if f.usb == self._usb]
            # without a serial number two of a kind differ only in their place on the bus
            sure = same if self._usb[2] or len(same) < 2 else [f for f in same if f.place == self._place]
            names = [f.port for f in sure]
        # without an identity, or with a name that stays with the device, the name is worth a try
        return names if self.asked in names or (self._usb and not _by_link(self.asked)) else [*names, self.asked]


def _is_tcp(name: str) -> bool:
    return name.startswith(("tcp://", "socket://"))


def _is_serial(name: str) -> bool:
    return "://" not in name and not name.startswith("file:")


def _by_link(name: str) -> bool:
    """A stable name such as /dev/serial/by-id/..., which means the device and not the number it got."""
    return name.startswith("/dev/serial/") or os.path.islink(name)
