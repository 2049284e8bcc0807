# SPDX-License-Identifier: Apache-2.0
"""Boot loaders on a pty, as real programs meet them: the STM32 ROM's (AN3155), the ESP ROM's, and a UF2 volume.

`with Stm32(...) as chip:` gives a chip whose `port` a loader program opens; `chip.flash` is what it holds afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import operator
import os
import pty
import select
import struct
import threading
import time
import tty
from pathlib import Path

ACK, NACK = b"\x79", b"\x1f"

# What a pty lacks of a serial port, for the loader's own process: modem lines, and a parity bit. Set up by a
# `sitecustomize.py` on PYTHONPATH; the loader programs themselves stay as they are.
PTY_AS_SERIAL_PORT = """
import serial.serialposix as posix
posix.Serial._update_dtr_state = posix.Serial._update_rts_state = lambda self: None
configure = posix.Serial._reconfigure_port
def without_parity(self, force_update=False):
    wanted, self._parity = self._parity, "N"
    try:
        configure(self, force_update)
    finally:
        self._parity = wanted
posix.Serial._reconfigure_port = without_parity
"""


def write_elf(path: Path, sections: list[tuple[int, int, bytes]]) -> Path:
    """A 32-bit ARM executable of (address, load address, contents), with nothing else in it."""
    at = 52 + 32 * len(sections)
    headers = body = b""
    for address, load, data in sections:
        headers += struct.pack("<8I", 1, at + len(body), address, load, len(data), len(data) + 16, 5, 4)
        body += data
    head = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<2HI3II6H", 2, 40, 1, sections[0][1] + 0x101, 52, 0, 0, 52,
                                                           32, len(sections), 40, 0, 0)
    path.write_bytes(head + headers + body)
    return path


class Closed(Exception):
    """The program on the other side closed the port."""


class Chip:
    """A thread that answers on a pty. A subclass has `session()`: from a reset until the port is closed."""

    def __init__(self, size: int = 1 << 16, fault: str = ""):
        self.flash = bytearray(b"\xff" * size)
        self.fault = fault
        self._stop = False

    def __enter__(self):
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        os.close(slave)                         # so that a program that closes the port is seen
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join()
        os.close(self._master)

    def _serve(self):
        while not self._stop:
            with contextlib.suppress(Closed):
                self.session()
            time.sleep(0.01)                    # nobody has the port open

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; Closed when the port is closed before, or the test ends."""
        data = b""
        while len(data) < count:
            if self._stop:
                raise Closed
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            try:
                data += os.read(self._master, count - len(data))
            except OSError as error:
                raise Closed from error
        return data

    def write(self, data: bytes):
        """Answer."""
        with contextlib.suppress(OSError):
            os.write(self._master, data)


class Stm32(Chip):
    """The boot loader in an STM32's ROM. The adapter wires reset and BOOT0, so every opening of the port is a reset.

    fault: "silent", "application" (BOOT0 is low: the firmware talks), "protected" (against reading), "nack" (in the
    middle of writing), "worn" (a bit of flash that does not hold).
    """

    ORIGIN = 0x0800_0000

    def __init__(self, chip_id: int = 0x413, extended: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.chip_id = chip_id
        self.commands = bytes([0x00, 0x01, 0x02, 0x11, 0x21, 0x31, 0x44 if extended else 0x43])
        self.writes, self.started = 0, None

    def session(self):
        """Synchronise, then commands until the port is closed."""
        while self.read(1) != b"\x7f" or self.fault in ("silent", "application"):
            if self.fault == "application":
                self.write(b"0.12,0.14\r\n")
        self.write(ACK)
        while True:
            command, complement = self.read(2)
            if command ^ complement != 0xFF or command not in self.commands:
                self.write(NACK)
                continue
            {0x00: self._get, 0x02: self._id, 0x11: self._read, 0x21: self._go, 0x31: self._write, 0x43: self._erase,
             0x44: self._erase_extended}[command]()

    def _get(self):
        self.write(ACK + bytes([len(self.commands), 0x31]) + self.commands + ACK)

    def _id(self):
        self.write(ACK + struct.pack(">BH", 1, self.chip_id) + ACK)

    def _address(self) -> int | None:
        """The address that follows a command; None (and NACK) when its checksum is wrong or nothing is there."""
        *address, check = self.read(5)
        value = int.from_bytes(bytes(address), "big")
        known = self.ORIGIN <= value < self.ORIGIN + len(self.flash) or value >> 24 == 0x1F
        if functools.reduce(operator.xor, address) != check or not known:
            self.write(NACK)
            return None
        self.write(ACK)
        return value

    def _read(self):
        if self.fault == "protected":
            self.write(NACK)
            return
        self.write(ACK)
        address = self._address()
        if address is None:
            return
        count, check = self.read(2)
        if count ^ check != 0xFF:
            self.write(NACK)
            return
        at = address - self.ORIGIN
        stored = bytes(self.flash[at:at + count + 1]) if address >> 24 == 0x08 else b"\x5a" * (count + 1)
        self.write(ACK + stored)

    def _write(self):
        self.write(ACK)
        address = self._address()
        if address is None:
            return
        count = self.read(1)[0]
        *data, check = self.read(count + 2)
        self.writes += 1
        wrong = functools.reduce(operator.xor, data, count) != check or len(data) % 4 or address % 4
        if wrong or (self.fault == "nack" and self.writes == 3):
            self.write(NACK)
            return
        at = address - self.ORIGIN
        for i, byte in enumerate(data):         # programming clears bits; only erasing sets them
            self.flash[at + i] &= byte
        if self.fault == "worn" and at <= 300 < at + len(data):
            self.flash[300] ^= 0x10
        self.write(ACK)

    def _go(self):
        self.write(ACK)
        address = self._address()
        if address is not None:
            self.started = address

    def _erase(self):
        self._erase_on(b"\xff\x00")

    def _erase_extended(self):
        self._erase_on(b"\xff\xff\x00")

    def _erase_on(self, everything: bytes):
        if self.fault == "protected":
            self.write(NACK)
            return
        self.write(ACK)
        if self.read(len(everything)) != everything:
            self.write(NACK)
            return
        self.flash[:] = b"\xff" * len(self.flash)
        self.write(ACK)


class Esp(Chip):
    """The serial boot loader in an ESP chip's ROM. fault: "silent", "error" (a block is refused), "worn"."""

    SYNC, BEGIN, DATA, END, WRITE_REG, READ_REG, SPI_SET, SPI_ATTACH, MD5, SECURITY = (
        0x08, 0x02, 0x03, 0x04, 0x09, 0x0A, 0x0B, 0x0D, 0x13, 0x14)
    FLASH_ID = 0x001640EF                       # 4 MB

    def __init__(self, chip_id: int = 5, **kwargs):
        super().__init__(**kwargs)
        self.chip_id, self.offset = chip_id, 0

    def session(self):
        """Answer frames until the port is closed."""
        while True:
            frame = self._frame()
            if self.fault == "silent" or len(frame) < 8 or frame[0] != 0:
                continue
            _, op, size, check = struct.unpack_from("<BBHI", frame)
            for value, data in self._answer(op, frame[8:8 + size], check):
                self._send(struct.pack("<BBHI", 1, op, len(data), value) + data)

    def _frame(self) -> bytes:
        """The next SLIP frame."""
        while self.read(1) != b"\xc0":
            pass
        out = b""
        while (byte := self.read(1)) != b"\xc0":
            out += {b"\xdc": b"\xc0", b"\xdd": b"\xdb"}[self.read(1)] if byte == b"\xdb" else byte
        return out

    def _send(self, data: bytes):
        self.write(b"\xc0" + data.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0")

    def _answer(self, op: int, data: bytes, check: int) -> list[tuple[int, bytes]]:
        """[(value, data with status)] of one request."""
        good, bad = b"\0\0\0\0", b"\1\7\0\0"
        if op == self.SYNC:
            return [(0x20120707, good)] * 8
        if op == self.READ_REG:
            return [(self._register(struct.unpack("<I", data)[0]), good)]
        if op == self.SECURITY:
            return [(0, struct.pack("<I8BII", 0, *[0] * 8, self.chip_id, 0) + good)]
        if op == self.BEGIN:
            size, _blocks, _block, self.offset = struct.unpack_from("<4I", data)
            self.flash[self.offset:self.offset + size] = b"\xff" * size
        elif op == self.DATA:
            size, number = struct.unpack_from("<2I", data)
            block = data[16:16 + size]
            if self.fault == "error" or functools.reduce(operator.xor, block, 0xEF) != check:
                return [(0, bad)]
            at = self.offset + number * size
            self.flash[at:at + size] = block
            if self.fault == "worn":
                self.flash[at] ^= 0x10
        elif op == self.MD5:
            address, size = struct.unpack_from("<2I", data)
            return [(0, hashlib.md5(self.flash[address:address + size]).hexdigest().encode() + good)]
        elif op not in (self.END, self.WRITE_REG, self.SPI_SET, self.SPI_ATTACH):
            return [(0, b"\1\5\0\0")]
        return [(0, good)]

    def _register(self, address: int) -> int:
        """SPI's answer to "read id" where esptool looks for it; a fixed MAC; 0 elsewhere (nothing is busy)."""
        return {0x6000_2058: self.FLASH_ID, 0x6000_8844: 0x2233_4455, 0x6000_8848: 0x0001}.get(address, 0)


class Uf2Volume:
    """A mounted UF2 volume: a folder that disappears when a file with every block for its family has been copied.

    fault: "other family" (the boot loader ignores the blocks, the volume stays).
    """

    def __init__(self, folder: Path, board_id: str, family: int):
        self.folder, self.family, self.image = folder, family, None
        folder.mkdir()
        (folder / "INFO_UF2.TXT").write_text(f"UF2 Bootloader v3.0\r\nModel: Simulated\r\nBoard-ID: {board_id}\r\n")

    def __enter__(self):
        self._stop = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join()

    def _watch(self):
        while not self._stop and self.image is None:
            for file in self.folder.glob("*.uf2"):
                self._take(file.read_bytes())
            time.sleep(0.02)

    def _take(self, data: bytes):
        """Blocks for this family; restart when all that their own count promises are there."""
        blocks, count = {}, None
        for at in range(0, len(data) - 511, 512):
            first, second, flags, address, size, number, total, family = struct.unpack_from("<8I", data, at)
            if (first, second) == (0x0A324655, 0x9E5D5157) and flags & 0x2000 and family == self.family and size == 256:
                blocks[number], count = (address, data[at + 32:at + 32 + size]), total
        if count is not None and len(blocks) == count:
            self.image = dict(blocks.values())
            self.folder.rename(self.folder.with_suffix(".gone"))
