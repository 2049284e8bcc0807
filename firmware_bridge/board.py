# SPDX-License-Identifier: Apache-2.0
"""Decisions that are made on a board: our firmware at the other end of a line of its own, spoken to over EdgeLink.

What the classifier shall see is sent as microvolts with its true indices, bad moments in frames of their own with
lead-off bits, so that the firmware does with them what firmware_bridge/classify.py does here. A thread owns the line:
the front-end's reading never waits for the board. Where frames did not reach the board, or it was away or began anew,
the stream begins anew on both sides at a moment that both know.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np

from firmware_bridge.classify import Local
from firmware_bridge.conditioner import Begin, Piece
from firmware_bridge.results import Reader
from firmware_bridge.session import Decision, Event
from targets import edgelink
from targets.device import LIVE, Device
from targets.edgelink import Framer
from train.manifest import Manifest
from train.say import MissingError, UserError

STEP_S = 0.005              # that the thread listens between two looks at what shall be sent
SILENT_S = 3.0              # without a frame, where a STATUS comes every second
QUEUE_S = 5.0               # of signal that waits for the board; beyond it a new stream begins
CATCH_UP = 4.0              # times real time: a faster board would have to take bursts while it computes
FLUSH_S = 2.0               # at the end, to send what waits
AGAIN_S, REFUSED_S = 0.05, 2.0      # between two looks for a board that is away, and for one that was refused
ALL = 0x7FFFFFFF            # a START that wants no result from before it
NOT_STARTED, OTHER_BOOT = 2, 3      # of edgelink.ERRORS: the board does not know our lease
LEVELS = ("debug", "info", "warning", "error")
BYTES_A_SECOND = 11_520     # of the firmware's UART


class Board:
    """A classifier on a board. plug: as ports.Plug, already known to be a board's; age and sex as ecg_patient has them;
    kept: closed with it; threaded: False for tests that call step() in a time of their own.

    lost: moments that were not sent; results_lost: decisions that it let go of before they were taken.
    """

    def __init__(self, plug, manifest: Manifest, fs: float, *, age: int = -1, sex: int = 0, kept=None,
                 catch_up: float = CATCH_UP, threaded: bool = True):
        self.plug, self.manifest, self.fs, self.catch_up = plug, manifest, fs, catch_up
        self.reader, self.leads, self.lost = Reader(manifest, fs), manifest.waveform.shape[0], 0
        self._settings = {k: v for k, v in (("age", age), ("sex", sex)) if v not in (-1, 0)}
        self._kept, self._lock, self._inbox, self._waiting = kept, threading.Lock(), deque(), 0
        self._outbox: deque = deque()
        self.mirrored: deque | None = None          # what was sent, for a Mirror
        self._index, self._error, self._thread, self._ending = 0, None, None, threading.Event()
        self._zero, self._next, self._why = None, 0, "start"        # of the stream on the board
        self._since = self._gaps = 0                # results and gaps that the firmware had counted
        self._due = self._heard = self._look = 0.0
        self._frames, self._told = 0, ""
        self._line = None
        try:
            self._line = plug.open()
            self.device = Device(self._line)
            self._join()
        except Exception:
            self._close()
            raise
        if threaded:
            self._thread = threading.Thread(target=self._run, name="board", daemon=True)
            self._thread.start()

    @property
    def results_lost(self) -> int:
        """Decisions that the board had to let go of."""
        return self.device.skipped

    def counts(self) -> dict[str, int]:
        """For a summary."""
        return {"moments_not_sent": self.lost, "results_lost": self.results_lost}

    # ---- what the bridge calls

    def push(self, item: Piece | Begin) -> list[Decision | Event]:
        """Queue it; what has become ready."""
        parts = [item] if isinstance(item, Begin) else _cut(item, self._most)
        with self._lock:
            if self._waiting > QUEUE_S * self.fs:           # the board does not keep up
                self.lost += self._waiting
                self._inbox.clear()
                self._waiting = 0
                self._inbox.append(Begin(item.first, "overrun"))
                self._tell("the board is too slow for its line: what waited was dropped", "warning")
            self._inbox.extend(parts)
            if isinstance(item, Piece):
                self._index = item.first + item.uv.shape[1]
                self._waiting += item.uv.shape[1]
        return self.poll()

    def poll(self) -> list[Decision | Event]:
        """What has become ready, and what there is to tell."""
        if self._error is not None:
            raise self._error
        out = []
        while self._outbox:
            out.append(self._outbox.popleft())
        return out

    def close(self) -> None:
        """Send what waits, wait for what it brings, give the board back."""
        self._ending.set()
        if self._thread is None:
            self._finish()
        elif self._thread.is_alive():
            self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self.step()
                if self._line is None:
                    self._ending.wait(AGAIN_S)
            self._finish()
        except Exception as error:          # a thread has nobody above it: poll() raises it
            self._error = error
            self._close()

    def step(self) -> None:
        """One round: send what is due, listen, look after the board."""
        if self._line is None:
            self._drop()
            self._again()
            return
        try:
            self._send()
            self.device.poll(STEP_S)
            self._heed()
        except OSError as error:
            self._gone(f"the board is gone: {error.strerror or error}")
        except MissingError:
            self._gone("the board does not answer any more")
        except UserError as error:
            self._gone(str(error), REFUSED_S)

    def _finish(self) -> None:
        try:
            until = self.device.line.clock() + FLUSH_S
            while self._line is not None and self._inbox and self.device.line.clock() < until:
                self.step()
            if self._line is not None:
                self.device.put("status_ms", 1000)      # is answered when all samples are computed on
                self.device.poll(0.1)
                self._collect()
                self.device.stop()
        except (OSError, UserError):
            pass
        finally:
            self._close()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            self._line.close()
        self._line = None
        self.plug.close()
        if self._kept is not None:
            self._kept.close()

    # ---- the board comes and goes

    def _join(self) -> None:
        """Who is it, is it the right one, and begin; what it decided before anybody asked is let go."""
        device, first = self.device, self.device.about is None
        boot = None if first else device.about.boot_id
        about = device.hello()
        check(about, self.manifest, self.fs)
        self._most = min(LIVE, device.room // (4 * self.leads))
        device.others.clear()
        device.stop()                       # of a lease before: the firmware counts samples from 0 now
        for key, value in self._settings.items():
            device.put(key, value)
        device.next_result = ALL if first else device.next_result
        device.start()
        until = device.line.clock() + SILENT_S
        while not device.statuses():
            if device.line.clock() > until:
                raise MissingError("the board sends no STATUS", "one a second", "flash this release's firmware")
            device.poll(0.02)
        status = device.statuses()[-1]
        self._since, self._gaps = status.results, status.gaps
        anew = not first and (boot != about.boot_id or status.results < device.next_result)
        if first or anew:
            device.next_result = status.results
        if anew:
            self._tell(f"the board {about.board_name} began anew", "warning")
            self.reader.streams.clear()
        self._zero, self._why = None, self._why or "reset"
        self._heard, self._frames, self._told = device.line.clock(), device.framer.frames, ""

    def _gone(self, text: str, wait: float = 0.0) -> None:
        """No line any more; told once until it is back."""
        with contextlib.suppress(Exception):
            self._line.close()
        self._line, self._why, self._look = None, "unplugged", time.monotonic() + wait
        if text != self._told:
            self._tell(text, "error" if wait else "warning")
            self._told = text

    def _again(self) -> None:
        line = self.plug.again() if time.monotonic() >= self._look else None
        if line is None:
            return
        self._line = self.device.line = line
        self.device.framer = Framer()
        told = self._told
        try:
            self._join()
        except OSError as error:
            self._gone(self._told or str(error))
        except MissingError:
            self._gone(self._told or "the board does not answer")
        except UserError as error:
            self._gone(str(error), REFUSED_S)
        else:
            if told:
                self._tell("the board is back")

    def _heed(self) -> None:
        """Results, words, and whether it is still the board that was started."""
        self._collect()
        lost = False
        for message in self.device.others:
            payload = message.payload
            if isinstance(payload, edgelink.Status):
                lost |= payload.gaps > self._gaps
                self._gaps = max(self._gaps, payload.gaps)
            elif isinstance(payload, edgelink.Log):
                self._tell(payload.text, LEVELS[min(payload.level, 3)])
            elif isinstance(payload, edgelink.Error):
                if payload.code not in (NOT_STARTED, OTHER_BOOT):
                    self._tell(f"{payload.text}: {_words(payload.code)}", "error")
                self._heard = -math.inf
        self.device.others.clear()
        now = self.device.line.clock()
        if self.device.framer.frames != self._frames:
            self._frames = self.device.framer.frames
            self._heard = max(self._heard, now) if self._heard > -math.inf else self._heard
        if now - self._heard > SILENT_S:
            self._why = self._why or "reset"
            self._join()
        elif lost:          # it began anew where it liked: agree on a moment
            self._tell("frames to the board were lost on the line", "warning")
            self._why = self._why or "lost"

    def _collect(self) -> None:
        now = self.device.line.clock()
        for result in self.device.results:
            decision = self.reader.decision(result, now)
            if decision is not None:
                self._outbox.append(decision)
        self.device.results.clear()

    def _tell(self, text: str, level: str = "info") -> None:
        self._outbox.append(Event(self._index, "board", text, level))

    # ---- out

    def _drop(self) -> None:
        """What waits can not be sent."""
        with self._lock:
            self.lost += self._waiting
            self._inbox.clear()
            self._waiting = 0

    def _send(self) -> None:
        """What is due, with what waits behind it in the same frame."""
        while self._inbox and self.device.line.clock() >= self._due:
            with self._lock:
                item = self._inbox.popleft()
                parts = [item]
                while isinstance(item, Piece) and self._inbox and _joins(parts, self._inbox[0], self._most):
                    parts.append(self._inbox.popleft())
                self._waiting -= sum(p.uv.shape[1] for p in parts) if isinstance(item, Piece) else 0
            if isinstance(item, Begin):
                self._why = item.reason
            else:
                self._piece(parts)

    def _piece(self, parts: list[Piece]) -> None:
        piece = replace(parts[-1], first=parts[0].first, **{
            k: np.concatenate([getattr(p, k) for p in parts], 1) for k in ("uv", "off", "rail")})
        fresh = bool(self._why)
        if fresh:
            piece = self._begun(piece)
            if piece is None:
                return
        device, now, index = self.device, self.device.line.clock(), piece.first - self._zero
        # once more where its loss would go unnoticed: the firmware takes the second as another beginning
        for _ in range(2 if fresh and not index else 1):
            device.live(piece.uv.T, index, _width(piece.uv), _mask(piece), piece.arrived)
        for part in parts:
            self.reader.sent(part, now)
        if self.mirrored is not None:
            self.mirrored.append(piece)
        self._next = index + piece.uv.shape[1]
        self._due = max(self._due, now) + piece.uv.shape[1] / (self.fs * self.catch_up)

    def _begun(self, piece: Piece) -> Piece | None:
        """Begin a stream with a piece; without its first moment where the firmware would take it as going on."""
        if self._zero is None:
            self._zero = piece.first
        elif piece.first - self._zero <= self._next:
            over = self._next + 1 - (piece.first - self._zero)
            self.lost += min(over, piece.uv.shape[1])
            if over >= piece.uv.shape[1]:
                return None
            piece = _part(piece, over, piece.uv.shape[1])
        index = piece.first - self._zero
        self._gaps += index != 0
        self.reader.begin(piece.first, index, self._since)
        if self.mirrored is not None:
            self.mirrored.append(Begin(piece.first, self._why))
        self._why = ""
        return piece


def check(about: edgelink.HelloRsp, manifest: Manifest, fs: float) -> None:
    """UserError unless this board can classify what this session has."""
    build = f"python targets/deploy.py --run R --target mcu --board {about.board_name}"
    model = about.model[0]
    edgelink.refuse_other_model(model.identity, manifest.identity, about.board_name)
    if about.caps & edgelink.HAS_SENSOR:
        raise UserError(f"the board {about.board_name} has a sensor of its own and takes no samples",
                        "firmware without --sensor", f"--protocol edgelink --port its port; or {build} --flash")
    if abs(about.fs - fs) > 1e-6 * fs:
        raise UserError(f"the firmware takes {about.fs:g} samples a second and the front-end gives {fs:g}",
                        "the same rate", f"{build} --rate {fs:g} --flash")
    if about.channels != manifest.waveform.shape[0]:
        raise UserError(f"the firmware takes {about.channels} channels",
                        f"{manifest.waveform.shape[0]}, one for each lead", f"{build} --flash")
    if manifest.trigger.kind == "hop" and not model.forms & edgelink.STREAM:
        raise UserError(f"{manifest.name} does not stream: its firmware decides only on windows that are injected",
                        "a streaming model on a board, or this one with --target host")


def _cut(piece: Piece, most: int) -> list[Piece]:
    """Pieces of at most so many moments."""
    n = piece.uv.shape[1]
    return [_part(piece, at, min(at + most, n)) for at in range(0, n, most)]


def _part(piece: Piece, a: int, b: int) -> Piece:
    return replace(piece, first=piece.first + a, uv=piece.uv[:, a:b], off=piece.off[:, a:b], rail=piece.rail[:, a:b])


def _joins(parts: list[Piece], item: Piece | Begin, most: int) -> bool:
    """Whether an item goes into the same frame."""
    return isinstance(item, Piece) and item.bad == parts[0].bad and \
        item.first == parts[-1].first + parts[-1].uv.shape[1] and \
        sum(p.uv.shape[1] for p in parts) + item.uv.shape[1] <= most


def _width(uv: np.ndarray) -> int:
    """Bytes that hold the values."""
    most = max(int(uv.max()), -int(uv.min()) - 1)
    return 2 if most < 1 << 15 else 3 if most < 1 << 23 else 4


def _mask(piece: Piece) -> int:
    """Lead-off bits of a frame: none where it counts, all where it does not and no lead is off."""
    if not piece.bad:
        return 0
    found = sum(1 << k for k, off in enumerate(piece.off.any(1)) if off)
    return (found or (1 << len(piece.uv)) - 1) & 0xFF


def _words(error: int) -> str:
    return edgelink.ERRORS[error] if error < len(edgelink.ERRORS) else f"error {error}"


class Mirror:
    """The shadow of a Board: a classifier here that is given what was sent there, when it was sent."""

    def __init__(self, board: Board, local: Local):
        self.board, self.local = board, local
        board.mirrored = deque()

    def push(self, item: Piece | Begin) -> list[Decision]:
        """The decisions of what has been sent since."""
        return self.poll()

    def poll(self) -> list[Decision]:
        """Likewise."""
        out, sent = [], self.board.mirrored
        while sent:
            out += self.local.push(sent.popleft())
        return out

    def close(self) -> None:
        """Nothing to give back."""
        self.local.close()


# ---- opening


def opened(run, port: str, manifest: Manifest, fs: float, **options) -> Board:
    """The board at a port as of ports.open_line, or `emulate`, the run's image in the emulator; `emulate:BOARD` makes
    sure that it is built for that one."""
    from firmware_bridge import ports
    need = fs * (2 * manifest.waveform.shape[0] + 26 / LIVE)
    if _is_uart(port) and need > BYTES_A_SECOND:
        raise UserError(f"{manifest.waveform.shape[0]} leads at {fs:g} Hz are {need:.0f} bytes a second",
                        f"at most {BYTES_A_SECOND}, for the firmware's UART runs at 115200 baud",
                        "a front-end at a lower rate, or --target host")
    with contextlib.ExitStack() as stack:
        if port.partition(":")[0] == "emulate":
            port = stack.enter_context(_emulated(run, port.partition(":")[2], manifest))
        return Board(ports.Plug(port, 115200), manifest, fs, kept=stack.pop_all(), **options)


def _is_uart(port: str) -> bool:
    """A real serial line; pseudo terminals and sockets carry bytes at any rate."""
    real = os.path.realpath(port)
    named = real.startswith(("/dev/tty", "/dev/cu.")) and not real.startswith("/dev/ttys")
    return named or port.upper().startswith("COM")


@contextlib.contextmanager
def _emulated(run, key: str, manifest: Manifest):
    """Yields the port of the run's image in the emulator."""
    from targets import live_emulation, target
    built = target.open_build(run, "mcu", manifest)
    board = target.read_board(key or built.notes["board"], "mcu")
    if built.notes["board"] != board["key"]:
        raise UserError(f"{run} is built for the {built.notes['board']}", board["key"],
                        f"python targets/deploy.py --run {run} --target mcu --board {board['key']}")
    with live_emulation.started(built.path, board) as (_, port, _):
        yield port
