# SPDX-License-Identifier: Apache-2.0
"""The simulator's end of a line: a pseudo terminal, or a TCP port of this computer only.

Both never block, take one client at a time, tell whether there is one and count them in `clients`, and can vanish and
come back as a plug does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from pathlib import Path

from train.say import MissingError, UserError

IDLE_S = 0.02               # how often one looks for a client while there is none


class PtyEnd:
    """The master of a pseudo terminal. port: what clients open; with `link`, that name, which survives unplugging."""

    def __init__(self, link: str | Path | None = None):
        if os.name != "posix":
            raise MissingError("this system has no pseudo terminals", "Linux or macOS", "serve on TCP: --tcp 5000")
        self._link = None if link is None else Path(link)
        if self._link is not None and self._link.exists() and not self._link.is_symlink():
            raise UserError(f"{link} exists and is no link", "a name that is free")
        self._master, self._name, self._had, self.clients = None, "", False, 0
        self.plug()

    @property
    def port(self) -> str:
        """What to open; "" while it is unplugged and has no link."""
        return str(self._link or self._name)

    def plug(self) -> None:
        """Appear."""
        import pty
        import tty
        self._master, slave = pty.openpty()
        self._name = os.ttyname(slave)
        tty.setraw(slave)               # the settings stay when the slave is closed: no echo for the first client
        os.close(slave)
        os.set_blocking(self._master, False)
        if self._link is not None:
            with contextlib.suppress(FileNotFoundError):
                self._link.unlink()
            try:
                self._link.symlink_to(self._name)
            except OSError as error:
                raise UserError(f"{self._link} cannot be made: {error.strerror}", "a name in a folder that exists") \
                    from error

    def unplug(self) -> None:
        """Vanish; whoever has it open finds it dead."""
        if self._master is None:
            return
        if self._link is not None:
            with contextlib.suppress(FileNotFoundError):
                self._link.unlink()
        os.close(self._master)
        # the name goes too: the system may give it to another program's terminal
        self._master, self._name, self._had = None, "", False

    def present(self) -> bool:
        """Somebody has it open."""
        if self._master is None:
            return False
        poll = select.poll()
        poll.register(self._master, 0)
        here = not any(event & select.POLLHUP for _, event in poll.poll(0))
        if self._had and not here:
            self._forget()
        self.clients += here and not self._had
        self._had = here
        return here

    def read(self) -> bytes:
        """What has come in."""
        if self._master is not None:
            with contextlib.suppress(OSError):      # nothing there, or nobody (EIO)
                return os.read(self._master, 65536)
        return b""

    def write(self, data: bytes) -> int:
        """Bytes that were taken."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                return os.write(self._master, data)
        return 0

    def wait(self, seconds: float, writing: bool) -> None:
        """Until something can be read, or written when asked for, or the time is over."""
        if self._master is None or not self._had:
            time.sleep(min(seconds, IDLE_S))
        else:
            select.select([self._master], [self._master] if writing else [], [], seconds)

    def unread(self) -> int:
        """Bytes that the client has not taken yet."""
        if self._master is None:
            return 0
        import fcntl
        import termios
        count = bytearray(4)
        with self._slave() as slave:
            fcntl.ioctl(slave, termios.FIONREAD, count)
        return int.from_bytes(count, "little")

    def close(self) -> None:
        """Vanish for good."""
        self.unplug()

    @contextlib.contextmanager
    def _slave(self):
        slave = os.open(self._name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            yield slave
        finally:
            os.close(slave)

    def _forget(self) -> None:
        """Take away what a client that left did not read: the next one must not find it."""
        with contextlib.suppress(OSError), self._slave() as slave:
            while os.read(slave, 65536):
                pass


class TcpEnd:
    """A port of the loopback interface. number: 0 takes a free one."""

    def __init__(self, number: int = 0):
        if not 0 <= number < 65536:
            raise UserError(f"there is no TCP port {number}", "0 (any) to 65535")
        self._number, self._server, self._client, self.clients = number, None, None, 0
        self.plug()

    @property
    def port(self) -> str:
        """What to open."""
        return f"tcp://127.0.0.1:{self._number}"

    def plug(self) -> None:
        """Listen."""
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._server.bind(("127.0.0.1", self._number))
        except OSError as error:
            self._server.close()
            raise UserError(f"TCP port {self._number}: {error.strerror}", "a free port", "--tcp 0 takes one") from error
        self._server.listen(1)
        self._server.setblocking(False)
        self._number = self._server.getsockname()[1]

    def unplug(self) -> None:
        """Hang up and listen no more."""
        for thing in (self._client, self._server):
            if thing is not None:
                thing.close()
        self._client = self._server = None

    def present(self) -> bool:
        """Somebody is connected; a second one is turned away."""
        if self._server is None:
            return False
        if self._client is not None and not self._quiet():
            return True                 # it says something, perhaps goodbye: read() will see
        with contextlib.suppress(OSError):
            client, _ = self._server.accept()
            if self._client is not None:
                client.close()
            else:
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._client = client
                self.clients += 1
        return self._client is not None

    def _quiet(self) -> bool:
        """The client is there, and nothing of it waits to be read."""
        try:
            self._client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def read(self) -> bytes:
        """What has come in."""
        if self._client is None:
            return b""
        try:
            data = self._client.recv(65536)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._client.close()
            self._client = None
        return data

    def write(self, data: bytes) -> int:
        """Bytes that were taken."""
        with contextlib.suppress(OSError, AttributeError):
            return self._client.send(data)
        return 0

    def wait(self, seconds: float, writing: bool) -> None:
        """Until something can be read, or written when asked for, or the time is over."""
        if self._server is None:
            time.sleep(min(seconds, IDLE_S))
            return
        both = [s for s in (self._server, self._client) if s is not None]
        select.select(both, [self._client] if writing and self._client is not None else [], [], seconds)

    def unread(self) -> int:
        """The system sends what it took also after closing."""
        return 0

    def close(self) -> None:
        """Listen no more."""
        self.unplug()
