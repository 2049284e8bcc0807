# SPDX-License-Identifier: Apache-2.0
"""A conversation with our firmware over EdgeLink, on any line that carries bytes.

The device keeps its results until they are confirmed, so none is lost while the line is: each START, which is also the
heartbeat, says which result is wanted next, and a hole in the numbers is asked for again.
"""

from __future__ import annotations

import secrets
import time
from typing import Protocol

import numpy as np

from targets import edgelink
from targets.edgelink import Framer, HelloRsp, Message, Payload, Result
from train.say import MissingError, UserError

SAMPLES_TOO, AGAIN = 1, 2           # flags of START
HEARTBEAT = 1.0                     # seconds
ANSWER = 1.0                        # seconds after which a request is repeated
TRIES = 4
LIVE = 25                           # moments in a frame of live samples: a tenth of a second at 250 Hz


class Line(Protocol):
    """What carries the bytes."""

    def write(self, data: bytes) -> None:
        """Send all of it."""

    def read(self, seconds: float) -> bytes:
        """What has come in, at once if something has, after `seconds` at the latest."""

    def clock(self) -> float:
        """Seconds."""


class SerialLine:
    """A serial port, a pty or `socket://host:port`, opened by pyserial."""

    def __init__(self, port: str, baud: int = 115200):
        import serial
        try:
            self._port = serial.serial_for_url(port, baud, timeout=0)
        except (serial.SerialException, OSError, ValueError) as error:
            raise MissingError(f"{port} does not open: {error}", "a serial port that no other program uses") from error

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def read(self, seconds: float) -> bytes:
        self._port.timeout = seconds
        first = self._port.read(1)
        self._port.timeout = 0
        return first and first + self._port.read(4096)

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        """Give the port back."""
        self._port.close()


class Device:
    """Our firmware at the other end.

    results: decisions in order, each once. others: messages with LOG, ERROR, STATUS or SAMPLES. skipped: decisions that
    the device had to let go of before anyone took them.
    """

    def __init__(self, line: Line):
        self.line, self.framer = line, Framer()
        self.about: HelloRsp | None = None
        self.results: list[Result] = []
        self.others: list[Message] = []
        self.next_result = self.skipped = 0
        self._seq, self._beat, self._start = 0, None, None
        self._again, self._again_until = None, 0.0      # the START that asked for results again, until it is answered
        self._jump = False                              # the next result may leave a hole: there is nothing older
        self._acks: dict[int, edgelink.Ack] = {}
        self._hello: HelloRsp | None = None

    def send(self, payload: Payload, flags: int = 0, at: float | None = None) -> int:
        """Send a frame; returns its number. at: seconds of the line's clock that it speaks of, by default now."""
        seq, self._seq = self._seq, self._seq + 1 & 0xFFFF
        time_us = int((self.line.clock() if at is None else at) * 1e6) & 0xFFFFFFFF
        self.line.write(edgelink.encode(Message(payload, seq, time_us, flags)))
        return seq

    def poll(self, seconds: float = 0.0) -> None:
        """Take what comes in for so long, and keep the lease."""
        until = self.line.clock() + seconds
        while True:
            if self._beat is not None and self.line.clock() >= self._beat:
                self._renew()
            wake = until if self._beat is None else min(until, self._beat)
            self._listen(max(wake - self.line.clock(), 0))
            if self.line.clock() >= until:
                return

    def hello(self, tries: int = TRIES) -> HelloRsp:
        """Ask the device who it is. After a reset of it, results are counted from 0 again."""
        nonce = secrets.randbits(32)
        for _ in range(tries):
            self._hello = None
            self.send(edgelink.HelloReq(edgelink.MAJOR, edgelink.MAJOR, nonce))
            if self._until(lambda: self._hello is not None and self._hello.nonce == nonce):
                if self.about is None or self.about.boot_id != self._hello.boot_id:
                    self.next_result = 0
                self.about = self._hello
                return self.about
        raise MissingError("the device does not answer HELLO", "firmware of this release, a free line and 115200 baud",
                           "python targets/deploy.py --run R --target mcu --board B --flash")

    def expect(self, identity: bytes, model: int = 0) -> None:
        """UserError unless the device holds this very model."""
        about = self.about or self.hello()
        edgelink.refuse_other_model(about.model[model].identity, identity, about.board_name)

    def start(self, samples: bool = False, models: int = 0, lease_ms: int = 0) -> None:
        """Take the lease; poll() keeps it from now on."""
        about = self.about or self.hello()
        self._start = (SAMPLES_TOO * samples, models, lease_ms)
        self.request(self._start_now(about.boot_id, again=True))
        self._jump = True
        self._beat = self.line.clock() + HEARTBEAT

    def stop(self) -> None:
        """Give the lease back."""
        self._beat = None
        self.request(edgelink.Stop())

    def put(self, key: str, value: int) -> None:
        """Change a setting, a name of edgelink.KEYS."""
        self.request(edgelink.Set(edgelink.KEYS[key], value))

    def request(self, payload: Payload, flags: int = 0) -> None:
        """Send a frame until it is answered; UserError with the device's reason when it refuses."""
        if self._beat is not None and self.line.clock() >= self._beat:      # many in a row must not cost the lease
            self._renew()
        for _ in range(TRIES):
            seq = self.send(payload, flags)
            if self._until(lambda seq=seq: seq in self._acks):
                error = self._acks.pop(seq).error
                if error:
                    words = edgelink.ERRORS[error] if error < len(edgelink.ERRORS) else f"error {error}"
                    raise UserError(f"the device refuses {type(payload).__name__.upper()}: {words}")
                return
        raise MissingError(f"the device does not answer {type(payload).__name__.upper()}")

    def inject(self, values: np.ndarray, width: int, first: int = 0) -> list[Result]:
        """Have the device compute on values (moment, channel), codes of width 1 or microvolts of 2 to 4 bytes, as fast
        as it can; the decisions they make."""
        step = max(1, min(255, self.room // (values.shape[1] * width)))
        seen = len(self.results)
        for at in range(0, len(values), step):
            self.request(edgelink.Inject.of(first + at, values[at:at + step], width))
        return self.results[seen:]

    def inject_window(self, inputs: bytes) -> list[Result]:
        """Have the device evaluate one window: the codes of all inputs of the model in order."""
        step, seen = min(255, self.room), len(self.results)
        for at in range(0, len(inputs), step):
            part = inputs[at:at + step]
            last = edgelink.LAST if at + step >= len(inputs) else 0
            self.request(edgelink.InjectWindow(at, len(part), 0, 0, 0, part), last)
        return self.results[seen:]

    def live(self, values: np.ndarray, first: int, width: int = 3, lead_off: int = 0, now: float | None = None) -> None:
        """Send microvolts (moment, channel), the last of them taken at `now`, by default just now; the device does not
        confirm them."""
        about = self.about or self.hello()
        now = self.line.clock() if now is None else now
        step = min(LIVE, self.room // (values.shape[1] * width))
        for at in range(0, len(values), step):
            taken = now - (len(values) - 1 - at) / about.fs
            self.send(edgelink.Samples.of(first + at & 0xFFFFFFFF, values[at:at + step], width, lead_off), at=taken)

    @property
    def room(self) -> int:
        """Bytes of samples that fit into a frame."""
        return (self.about or self.hello()).max_frame - edgelink.HEAD.size - 4 - 8

    def statuses(self) -> list[edgelink.Status]:
        """All that came so far."""
        return [m.payload for m in self.others if isinstance(m.payload, edgelink.Status)]

    def _start_now(self, boot_id: int, again: bool = False) -> edgelink.Start:
        flags, models, lease_ms = self._start
        return edgelink.Start(flags | AGAIN * again, models, lease_ms, boot_id, self.next_result)

    def _renew(self, again: bool = False) -> int:
        self._beat = self.line.clock() + HEARTBEAT
        return self.send(self._start_now(self.about.boot_id, again))

    def _until(self, ready) -> bool:
        """Poll until ready() or until the answer is overdue."""
        until = self.line.clock() + ANSWER
        while not ready():
            if self.line.clock() >= until:
                return False
            self._listen(min(0.05, max(until - self.line.clock(), 0)))
        return True

    def _listen(self, seconds: float) -> None:
        for message in self.framer.feed(self.line.read(seconds)):
            payload = message.payload
            if isinstance(payload, Result):
                self._result(payload)
            elif isinstance(payload, edgelink.Ack):
                self._acks[payload.seq] = payload
                if payload.seq == self._again:
                    self._again, self._jump = None, True
                self._acks = dict(list(self._acks.items())[-8:])
            elif isinstance(payload, HelloRsp):
                self._hello = payload
            else:
                self.others.append(message)

    def _result(self, result: Result) -> None:
        """Keep a decision unless it came before. A hole is asked for; what does not come then is gone."""
        if result.number < self.next_result:
            return
        if result.number > self.next_result and not self._jump and self._beat is not None:
            if self._again is None or self.line.clock() >= self._again_until:
                self._again, self._again_until = self._renew(again=True), self.line.clock() + ANSWER
            return
        self.skipped += result.number - self.next_result
        self.results.append(result)
        self.next_result, self._jump = result.number + 1, False
