# SPDX-License-Identifier: Apache-2.0
"""Our own firmware on a board with a sensor: its SAMPLES, and what else it says, over EdgeLink v1.

The frames are those of targets/c/ecg_link.h. HELLO tells channels, rate and scale; START takes the lease that every
heartbeat renews, and says which RESULT is wanted next, so that none is lost while the board keeps it. Samples carry a
32-bit index that goes on through the lease and begins anew with the board: then it has another boot_id.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Line, Note, Stats
from targets import edgelink
from targets.device import AGAIN, SAMPLES_TOO, Device
from targets.edgelink import Framer, HelloRsp, Message, Result, Samples
from train.say import UserError

FULL = (1 << 23) - 1                # three bytes a sample
SEND = 10                           # moments in a frame of the firmware
LEVELS = ("debug", "info", "warning", "error")      # Log.level
OTHER_BOOT = 3                      # Ack.error
LEAP = 1024                         # numbers missing beyond which the count of frames began anew
KEPT = 256                          # results that wait to be taken
SEARCHED = 1 << 16                  # bytes of a recording in which a HELLO must be
ASKED = 2                           # times that HELLO is said: what is no board of ours would not answer ever


@dataclass
class Heard:
    """What the decoder heard and the talk must answer, for both belong to one conversation.

    about: the board. results: (decision, host seconds), each once, in order. next_result: the first not yet seen, None
    before any; again: one is missing and shall be sent again; skipped: that the board let go of. stranger: the board
    says that it began anew.
    """

    about: HelloRsp | None = None
    results: deque = field(default_factory=lambda: deque(maxlen=KEPT))
    next_result: int | None = None
    again: bool = False
    skipped: int = 0
    stranger: bool = False
    asked: int | None = None            # number of the START that asked again
    jump: bool = False                  # it was answered: what is missing now is gone

    def take(self, result: Result, now: float) -> None:
        """Keep a decision unless it came before; what is missing in front of it is asked for once."""
        wanted = self.next_result if self.next_result is not None else result.number
        if result.number < wanted:
            return
        if result.number > wanted and not self.jump:
            self.again = True
            return
        self.skipped += result.number - wanted
        self.results.append((result, now))
        self.next_result = result.number + 1
        self.again = self.jump = False

    def rebooted(self, about: HelloRsp) -> bool:
        """Another boot than before; results are counted from 0 again."""
        new = self.about is not None and self.about.boot_id != about.boot_id
        if new:
            self.next_result, self.again, self.jump = 0, False, False
        self.about, self.stranger = about, False
        return new


class Board(Profile):
    """A board as its HELLO describes it. heard: of the conversation with it, which is no part of what the board is."""

    heard: Heard | None = None

    def hearing(self, heard: Heard) -> Board:
        """The same board in a conversation."""
        copy = replace(self)
        object.__setattr__(copy, "heard", heard)
        return copy


def _channels(count: int, nv: float) -> tuple[Channel, ...]:
    return tuple(Channel(f"ch{k + 1}", nv, -FULL - 1, FULL) for k in range(count))


PROFILES = {"edgelink": Board("edgelink", "edgelink", "LeadEdge firmware", _channels(2, 1000.0), 250.0, (115200,),
                              counter=1 << 32, lead_off="frame", check="crc16", per_frame=SEND)}


class Decoder:
    """Bytes -> Blocks and Notes; decisions go to profile.heard."""

    def __init__(self, profile: Profile = PROFILES["edgelink"]):
        self.profile, self.stats = profile, Stats()
        self.heard = getattr(profile, "heard", None) or Heard()
        self._framer, self._counted = Framer(), (0,) * 6
        self._missing = self._refused = self._lost = 0      # numbers, frames refused, numbers of frames never seen
        self._status: edgelink.Status | None = None

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        out: list[Block | Note] = []
        samples: list[Samples] = []
        for message in self._framer.feed(data):
            payload = message.payload
            if type(payload) is Samples:
                if payload.channels == len(self.profile.channels) and payload.n:
                    samples.append(payload)
                else:
                    self.stats.refuse("channels")
                continue
            note = self._said(payload, now)
            if note is not None and note.reset and samples:
                out.append(_block(samples, now))        # of the time before
                samples = []
            out += [note] if note else []
        self._account()
        return [*out, _block(samples, now)] if samples else out

    def _said(self, payload, now: float) -> Note | None:
        """Everything but samples."""
        heard = self.heard
        if isinstance(payload, Result):
            heard.take(payload, now)
        elif isinstance(payload, HelloRsp):
            if heard.rebooted(payload):
                self._status = None
                return Note(f"the board {payload.board_name} began anew", "warning", now, reset=True)
        elif isinstance(payload, edgelink.Ack):
            return self._answer(payload, now)
        elif isinstance(payload, edgelink.Status):
            return self._counters(payload, now)
        elif isinstance(payload, edgelink.Log):
            return Note(payload.text, LEVELS[min(payload.level, 3)], now)
        elif isinstance(payload, edgelink.Error):
            return Note(f"{payload.text}: {_words(payload.code)}", "error", now)
        return None

    def _answer(self, ack: edgelink.Ack, now: float) -> Note | None:
        if ack.seq == self.heard.asked:
            self.heard.asked, self.heard.jump = None, not ack.error
        if ack.error == OTHER_BOOT:
            self.heard.stranger = True
        elif ack.error:
            return Note(f"the board refuses frame {ack.type:#04x}: {_words(ack.error)}", "error", now)
        return None

    def _counters(self, status: edgelink.Status, now: float) -> Note | None:
        """Samples that the board itself lost since its last word."""
        before, self._status = self._status, status
        lost = status.overruns - before.overruns if before else 0
        if lost <= 0:
            return None
        self.stats.overruns += lost
        return Note(f"the board lost {lost} samples of its sensor", "warning", now)

    def _account(self) -> None:
        """What the framer counted since the last look."""
        f = self._framer
        found = (f.frames, f.unknown, f.noise, f.damaged, f.foreign, f.lost)
        frames, unknown, noise, damaged, foreign, lost = (a - b for a, b in zip(found, self._counted, strict=True))
        self._counted = found
        s = self.stats
        s.frames, s.unknown, s.noise = s.frames + frames - unknown, s.unknown + unknown, s.noise + noise
        # a frame that was refused leaves a number that is missing when the next sound one comes
        self._refused += damaged + foreign
        self._missing += lost if lost < LEAP else 0
        unseen = max(self._missing - self._refused - self._lost, 0)
        self._lost += unseen
        for reason, count in (("crc", damaged), ("version", foreign), ("lost", unseen)):
            if count:
                s.damaged[reason] = s.damaged.get(reason, 0) + count


def _block(samples: list[Samples], now: float) -> Block:
    """One block of several frames; where numbers are missing between them the timeline cuts it."""
    counter = np.concatenate([(s.first_index + np.arange(s.n, dtype=np.int64)) % (1 << 32) for s in samples])
    off = np.repeat(np.array([s.lead_off for s in samples], np.uint32), [s.n for s in samples])
    return Block(np.concatenate([s.data for s in samples]), counter, off, now)


def _words(error: int) -> str:
    return edgelink.ERRORS[error] if error < len(edgelink.ERRORS) else f"error {error}"


class _Tape:
    """A line that remembers what was read: samples that came with an answer are the decoder's."""

    def __init__(self, line: Line):
        self.line, self.data = line, bytearray()

    def write(self, data: bytes) -> None:
        self.line.write(data)

    def read(self, seconds: float) -> bytes:
        part = self.line.read(seconds)
        self.data += part
        return part

    def clock(self) -> float:
        return self.line.clock()


class Talk:
    """HELLO, settings, START with samples, heartbeats. settings: names of targets.edgelink.KEYS and values."""

    def __init__(self, profile: Profile = PROFILES["edgelink"], settings: dict[str, int] | None = None):
        self.profile, self.settings = profile, settings or {}
        self.heard = getattr(profile, "heard", None) or Heard()
        self._device: Device | None = None

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """The board as it says it is; UserError for one without a sensor."""
        tape = _Tape(line)
        self._device = device = Device(tape)
        about = device.hello(ASKED)
        if not about.caps & edgelink.HAS_SENSOR:
            raise UserError(f"the board {about.board_name} has no sensor: it classifies samples that it is sent",
                            "a front-end for them on --port",
                            "--port FRONT-END --target mcu --board-port this port; or build with deploy.py --sensor")
        self.heard.rebooted(about)
        for key, value in self.settings.items():
            device.put(key, value)
        device.next_result = self.heard.next_result or 0
        device.start(samples=True)
        device.line = line
        return self._described(about), bytes(tape.data)

    def replayed(self, line: Line) -> tuple[Profile, bytes]:
        """As begin, of a recording, which does not answer: its own HELLO says what follows. UserError without one."""
        data, framer = b"", Framer()
        try:
            while len(data) < SEARCHED:
                part = line.read(1.0)
                data += part
                for message in framer.feed(part):
                    if isinstance(message.payload, HelloRsp):
                        self.heard.rebooted(message.payload)
                        return self._described(message.payload), data
        except OSError:             # its end
            pass
        raise UserError("no HELLO of a board is in this recording", "bytes from the beginning of a session",
                        "--tee FILE keeps them")

    def _described(self, about: HelloRsp) -> Profile:
        self.profile = replace(
            PROFILES["edgelink"], name=self.profile.name, title=f"LeadEdge firmware on {about.board_name}",
            channels=_channels(about.channels, about.nv_per_lsb), fs=about.fs).hearing(self.heard)
        return self.profile

    def keep(self, line: Line) -> None:
        """The lease, and what was lost on the way again; after a reset of the board, who it is now."""
        device, heard = self._device, self.heard
        if device is None:                  # a recording
            return
        if heard.stranger or heard.about is None:
            device.send(edgelink.HelloReq(edgelink.MAJOR, edgelink.MAJOR, secrets.randbits(32)))
            return
        seq = device.send(edgelink.Start(SAMPLES_TOO | AGAIN * heard.again, 0, 0, heard.about.boot_id,
                                         heard.next_result or 0))
        if heard.again:
            heard.asked = seq

    def end(self, line: Line) -> None:
        """Give the lease back."""
        try:
            if self._device is not None:
                self._device.send(edgelink.Stop())
        except OSError:
            pass


@dataclass
class Lease:
    """Of the simulated board: until when, and whether samples are wanted."""

    until: float = 0.0
    samples: bool = False


class Server:
    """A board with a sensor. identity: of the model it says it holds, by default random. It keeps its lease as the
    firmware does, and its count of samples while nobody listens; it has no model, so it sends no decisions."""

    LEASE_S = 5.0

    def __init__(self, profile: Profile = PROFILES["edgelink"], fs: float = 250.0, identity: bytes | None = None):
        self.profile, self.fs = profile, fs
        self.identity = identity or secrets.token_bytes(32)
        self.boot_id = secrets.randbits(32)
        self._lease, self._framer, self._born = Lease(), Framer(), time.monotonic()
        self._seq, self._shift, self._next, self._sent = 0, 0, 0, 0.0
        self._next_status = 0

    @property
    def streaming(self) -> bool:
        """Somebody holds the lease and wants samples."""
        return self._lease.samples and time.monotonic() < self._lease.until

    def hear(self, data: bytes) -> bytes:
        """Frames of the host -> answers."""
        return b"".join(self._answer(m) for m in self._framer.feed(data))

    def _answer(self, message: Message) -> bytes:
        payload, error = message.payload, 0
        if isinstance(payload, edgelink.HelloReq):
            return self._frame(self._about(payload.nonce))
        if isinstance(payload, edgelink.Start):
            error = OTHER_BOOT if payload.boot_id != self.boot_id else 0
            if not error:
                self._lease.samples = bool(payload.flags & SAMPLES_TOO)
                self._lease.until = time.monotonic() + (payload.lease_ms / 1000 or self.LEASE_S)
        elif isinstance(payload, edgelink.Stop):
            self._lease = Lease()
        elif not isinstance(payload, edgelink.Set):
            return b""
        return self._frame(edgelink.Ack(message.seq, payload.TYPE, error))

    def _about(self, nonce: int) -> HelloRsp:
        model = edgelink.Model(self.identity, 250, 250, 2500, 1, 4, 1, edgelink.STREAM)
        return HelloRsp(edgelink.MAJOR, edgelink.MINOR, b"\0\1\0", len(self.profile.channels), 1, 1, nonce,
                        self.boot_id, b"simulated".ljust(16, b"\0"), round(self.fs * 1000), 1000,
                        self.profile.channels[0].nv_per_count, 520, edgelink.HAS_SENSOR, 0, 32,
                        round(1000 * self.LEASE_S), (model,))

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """A frame for each ten moments, the board's counters in front of one a second."""
        now = time.monotonic()
        if index + self._shift < self._next:            # started again: the sensor went on meanwhile
            self._shift = self._next + round((now - self._sent) * self.fs) - index
        out = []
        for at in range(0, len(counts), SEND):
            part, first = counts[at:at + SEND], index + self._shift + at
            off = int(np.bitwise_or.reduce(lead_off[at:at + SEND])) & 0xFF
            samples = Samples.of(first & 0xFFFFFFFF, np.clip(part, -FULL - 1, FULL), 3, off)
            told = b""
            if first >= self._next_status:
                self._next_status = first + round(self.fs)
                told = self._frame(edgelink.Status(round(now - self._born), first & 0xFFFFFFFF, *(0,) * 12))
            out.append(told + self._frame(samples, edgelink.LEAD_OFF if off else 0, first / self.fs))
        self._next, self._sent = index + self._shift + len(counts), now
        return out

    def _frame(self, payload, flags: int = 0, at: float | None = None) -> bytes:
        seq, self._seq = self._seq, self._seq + 1 & 0xFFFF
        seconds = time.monotonic() - self._born if at is None else at
        return edgelink.encode(Message(payload, seq, int(seconds * 1e6) & 0xFFFFFFFF, flags))
