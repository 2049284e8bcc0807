# SPDX-License-Identifier: Apache-2.0
"""EdgeLink v1, the computer's side: frames and payloads. What each byte means is written in c/ecg_link.h.

Every payload is a dataclass with the fields of its C struct; `encode` makes bytes of one, a Framer makes messages of
bytes. Neither waits for anything: who owns the port reads and writes.
"""

from __future__ import annotations

import binascii
import dataclasses
import struct
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from cobs import cobs

from train.say import UserError

MAJOR, MINOR = 1, 0
HEAD = struct.Struct("<BBHI")
SHORT = 256                         # bytes of head and payload up to which CRC-16 serves
LONGEST = 4096                      # a run of bytes without 00 beyond it is noise
LEAD_OFF, OVERRUN, LAST = 1, 2, 4                           # flags of a head
UNRELIABLE, LATE, FROM_INJECT = 1, 2, 4                     # Result.flags
STATES = ("idle", "running", "injected", "refused")         # HelloRsp.state
HAS_SENSOR = 1                                              # HelloRsp.caps
WINDOW, STREAM = 1, 2                                       # Model.forms
KEYS = {"status_ms": 1, "log_level": 2, "age": 3, "sex": 4}     # Set.key
ERRORS = ("done", "the payload is too short or does not fit this device", "no START came before it",
          "it is meant for the device before its reset; say HELLO again", "the model's data is damaged; flash it again",
          "unknown setting", "a value outside the range of the setting", "more bytes than the device has room for",
          "no common version")                              # Ack.error, Error.code


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE."""
    return binascii.crc_hqx(data, 0xFFFF)


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Payload:
    """A payload whose fixed part is the struct LAYOUT over the fields in order, and whose last field may be a tail."""

    TYPE: ClassVar[int]
    LAYOUT: ClassVar[str]
    TAIL: ClassVar[bool] = False

    def pack(self) -> bytes:
        """The bytes of the payload."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]
        tail = self.tail(values.pop()) if self.TAIL else b""
        return struct.pack("<" + self.LAYOUT, *values) + tail

    @classmethod
    def unpack(cls, data: bytes) -> Payload:
        """The payload in `data`; ValueError when it is too short. What a later version added behind it is dropped."""
        size = struct.calcsize("<" + cls.LAYOUT)
        if len(data) < size:
            raise ValueError(f"{cls.__name__} of {len(data)} bytes")
        values = struct.unpack_from("<" + cls.LAYOUT, data)
        return cls(*values, cls.untail(values, data[size:])) if cls.TAIL else cls(*values)

    @staticmethod
    def tail(value) -> bytes:
        """The bytes of the last field: text here."""
        return value.encode()

    @staticmethod
    def untail(values: tuple, data: bytes):
        """The last field from its bytes and the values in front of it."""
        return data.decode(errors="replace")


@dataclass(frozen=True)
class HelloReq(Payload):
    """Who are you? `nonce` comes back."""

    TYPE, LAYOUT = 0x01, "BBxxI"
    oldest: int
    newest: int
    nonce: int


@dataclass(frozen=True)
class Model:
    """A model in the device, as HELLO_RSP describes it."""

    LAYOUT: ClassVar[str] = "<32sHHHBBBBxx"
    identity: bytes
    fs: int
    hop: int
    window: int
    leads: int
    classes: int
    ok: int
    forms: int


@dataclass(frozen=True)
class HelloRsp(Payload):
    """The device: versions, boot, rate and scale of its samples, its models."""

    TYPE, LAYOUT, TAIL = 0x02, "BB3sBBBII16sIIfHHIHH", True
    major: int
    minor: int
    firmware: bytes
    channels: int
    models: int
    state: int
    nonce: int
    boot_id: int
    board: bytes
    fs_num: int
    fs_den: int
    nv_per_lsb: float
    max_frame: int
    caps: int
    clock_khz: int
    results: int
    lease_ms: int
    model: tuple[Model, ...] = ()

    @property
    def fs(self) -> float:
        """Hz."""
        return self.fs_num / self.fs_den

    @property
    def board_name(self) -> str:
        """Key of boards.toml."""
        return self.board.rstrip(b"\0").decode(errors="replace")

    @staticmethod
    def tail(value) -> bytes:
        return b"".join(struct.pack(Model.LAYOUT, *dataclasses.astuple(m)) for m in value)

    @staticmethod
    def untail(values: tuple, data: bytes) -> tuple[Model, ...]:
        size, models = struct.calcsize(Model.LAYOUT), values[4]
        if len(data) < models * size:
            raise ValueError(f"{len(data)} bytes for {models} models")
        return tuple(Model(*struct.unpack_from(Model.LAYOUT, data, i * size)) for i in range(models))


@dataclass(frozen=True)
class Start(Payload):
    """Begin or go on. flags bit 0: send SAMPLES too; models: bits, 0 all; next_result: the first not yet seen."""

    TYPE, LAYOUT = 0x03, "BBHII"
    flags: int
    models: int
    lease_ms: int
    boot_id: int
    next_result: int


@dataclass(frozen=True)
class Stop(Payload):
    """The lease ends."""

    TYPE, LAYOUT = 0x04, ""


@dataclass(frozen=True)
class Set(Payload):
    """A setting; see KEYS."""

    TYPE, LAYOUT = 0x05, "Bxxxi"
    key: int
    value: int


@dataclass(frozen=True)
class Ack(Payload):
    """The answer to a frame; error is an index of ERRORS."""

    TYPE, LAYOUT = 0x06, "HBB"
    seq: int
    type: int
    error: int


def _integers(data: bytes, width: int) -> np.ndarray:
    """int32 of two's complement little-endian integers of 1, 2, 3 or 4 bytes."""
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width:] = raw                               # at the top: the shift brings the sign along
    return wide.view("<i4")[:, 0] >> 8 * (4 - width)


@dataclass(frozen=True)
class Samples(Payload):
    """Integers (moment, channel) from `first_index` on; see Inject for more widths."""

    TYPE, LAYOUT, TAIL = 0x10, "IBBBB", True
    first_index: int
    n: int
    lead_off: int
    channels: int
    width: int
    data: np.ndarray = field(compare=False)

    @classmethod
    def of(cls, first_index: int, values: np.ndarray, width: int = 3, lead_off: int = 0):
        """A payload of values (moment, channel); ValueError when one does not fit `width` bytes."""
        values = np.asarray(values)
        limit = 1 << (8 * width - 1)
        if values.size and not -limit <= values.min() <= values.max() < limit:
            raise ValueError(f"samples beyond {width} bytes")
        return cls(first_index, len(values), lead_off, values.shape[1], width, values.astype(np.int32))

    def pack(self) -> bytes:
        head = (self.first_index, self.n, self.lead_off, self.channels, self.width)
        wide = np.ascontiguousarray(self.data, "<i4").view(np.uint8).reshape(-1, 4)
        return struct.pack("<" + self.LAYOUT, *head) + wide[:, :self.width].tobytes()

    @staticmethod
    def untail(values: tuple, data: bytes) -> np.ndarray:
        _, n, _, channels, width = values
        size = n * channels * width
        if not 1 <= width <= 4 or len(data) < size:
            raise ValueError(f"{len(data)} bytes for {n} x {channels} samples of {width}")
        return _integers(data[:size], width).reshape(n, channels)


@dataclass(frozen=True)
class Inject(Samples):
    """As Samples; width 1: codes behind the front end."""

    TYPE = 0x21


@dataclass(frozen=True)
class InjectWindow(Payload):
    """INJECT of width 0: bytes of one window from byte `first_index` on."""

    TYPE, LAYOUT, TAIL = 0x21, "IBBBB", True
    first_index: int
    n: int
    lead_off: int
    channels: int
    width: int
    data: bytes

    @staticmethod
    def tail(value) -> bytes:
        return value

    @staticmethod
    def untail(values: tuple, data: bytes) -> bytes:
        if len(data) < values[1]:
            raise ValueError(f"{len(data)} bytes of {values[1]}")
        return data[:values[1]]


@dataclass(frozen=True)
class Status(Payload):
    """The device's counters."""

    TYPE, LAYOUT = 0x11, "12IHH"
    uptime_s: int
    samples: int
    overruns: int
    missing: int
    gaps: int
    results: int
    results_lost: int
    late: int
    dropped: int
    frames: int
    damaged: int
    worst_us: int
    sleep_permille: int
    busy_permille: int


@dataclass(frozen=True)
class Result(Payload):
    """A decision; scores int8 (class,)."""

    TYPE, LAYOUT, TAIL = 0x20, "IIIIHbBBBH", True
    number: int
    first_index: int
    present: int
    busy_us: int
    n: int
    top: int
    model: int
    flags: int
    classes: int
    latency_ms: int
    scores: np.ndarray = field(compare=False)

    @staticmethod
    def tail(value) -> bytes:
        return np.asarray(value, np.int8).tobytes()

    @staticmethod
    def untail(values: tuple, data: bytes) -> np.ndarray:
        classes = values[8]
        if len(data) < classes:
            raise ValueError(f"{len(data)} scores of {classes}")
        return np.frombuffer(data[:classes], np.int8)


@dataclass(frozen=True)
class Log(Payload):
    """Words of the device; level 0 debug .. 3 error."""

    TYPE, LAYOUT, TAIL = 0x40, "B", True
    level: int
    text: str


@dataclass(frozen=True)
class Error(Payload):
    """Something the device cannot do; code is an index of ERRORS."""

    TYPE, LAYOUT, TAIL = 0x7F, "HBx", True
    seq: int
    code: int
    text: str


PAYLOADS = {p.TYPE: p for p in (HelloReq, HelloRsp, Start, Stop, Set, Ack, Samples, Status, Result, Inject, Log, Error)}


@dataclass(frozen=True)
class Message:
    """A frame: its payload and what its head says."""

    payload: Payload
    seq: int = 0
    time_us: int = 0
    flags: int = 0


def encode(message: Message) -> bytes:
    """A message as it goes over the wire, both 00 included."""
    head = HEAD.pack(MAJOR << 4 | message.flags & 15, message.payload.TYPE, message.seq, message.time_us)
    body = head + message.payload.pack()
    check = struct.pack("<H", crc16(body)) if len(body) <= SHORT else struct.pack("<I", crc32c(body))
    return b"\0" + cobs.encode(body + check) + b"\0"


def decode(block: bytes) -> tuple[int, int, int, int, bytes] | None:
    """(version and flags, type, seq, time_us, payload) of what lies between two 00; None when it is damaged."""
    try:
        frame = cobs.decode(block)
    except cobs.DecodeError:
        return None
    brief = len(frame) <= SHORT + 2
    body, check = (frame[:-2], frame[-2:]) if brief else (frame[:-4], frame[-4:])
    if len(body) < HEAD.size or (not brief and len(body) <= SHORT):
        return None
    crc = struct.pack("<H", crc16(body)) if brief else struct.pack("<I", crc32c(body))
    return (*HEAD.unpack_from(body), body[HEAD.size:]) if crc == check else None


class Framer:
    """Bytes in any portions -> messages.

    Counts: frames (sound), damaged (wrong CRC, length or payload), foreign (another version), unknown (types of a later
    minor version), lost (numbers that are missing between sound frames), noise (bytes that belong to no sound frame).
    """

    def __init__(self):
        self.frames = self.damaged = self.foreign = self.unknown = self.lost = self.noise = 0
        self._part, self._skip, self._next = bytearray(), False, None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that end in `data`."""
        found = []
        *whole, rest = data.split(b"\0")
        for block in whole:
            self._append(block)
            if self._part or self._skip:
                message = self._finish(bytes(self._part))
                if message is not None:
                    found.append(message)
            self._part, self._skip = bytearray(), False
        self._append(rest)
        return found

    def _append(self, data: bytes) -> None:
        """Bytes of a frame that has not ended; too many of them are noise and are not kept."""
        if self._skip or len(self._part) + len(data) > LONGEST:
            self.noise += len(self._part) + len(data)
            self._part, self._skip = bytearray(), True
        else:
            self._part += data

    def _finish(self, block: bytes) -> Message | None:
        frame = None if self._skip else decode(block)
        if frame is None:
            self.damaged += 1
            self.noise += len(block)
            return None
        version, kind, seq, time_us, payload = frame
        if version >> 4 != MAJOR:
            self.foreign += 1
            return None
        if self._next is not None:
            self.lost += seq - self._next & 0xFFFF
        self._next = seq + 1 & 0xFFFF
        try:
            found = unpack(kind, payload)
        except ValueError:
            self.damaged += 1
            return None
        self.frames += 1
        if found is None:
            self.unknown += 1
            return None
        return Message(found, seq, time_us, version & 15)


def unpack(kind: int, payload: bytes) -> Payload | None:
    """The payload of a frame; None for an unknown type, ValueError for one that is too short."""
    if kind == Inject.TYPE and payload[7:8] == b"\0":
        return InjectWindow.unpack(payload)
    return PAYLOADS[kind].unpack(payload) if kind in PAYLOADS else None


def refuse_other_model(found: bytes, wanted: bytes, board: str) -> None:
    """UserError unless the device holds the very model: its results must not be labelled with another one's classes."""
    if found != wanted:
        raise UserError(f"the device runs model {found.hex()[:16]}", f"{wanted.hex()[:16]}, the model of this run",
                        f"flash it: python targets/deploy.py --run R --target mcu --board {board} --flash")
