# SPDX-License-Identifier: Apache-2.0
"""A front-end without the hardware: any protocol on a pseudo terminal or on TCP, from a record or a synthetic patient.

    python firmware_bridge/simulate.py --protocol cyton
    python firmware_bridge/simulate.py --protocol openview --record data/mitdb/100 --fault drop=1e-3,unplug=30/5

The first line is the port. Moments are due at start + k / rate, so nothing drifts; they begin with the first client.
The device obeys the protocol's own commands, and clients may come and go.
"""

from __future__ import annotations

import pathlib
import signal as signals
import sys
import threading
import time
from dataclasses import asdict

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np

from firmware_bridge import faults as fault
from firmware_bridge import profiles, serving, sources
from train import say
from train.say import UserError

USUAL_FS = 200.0            # of a front-end that does not say
BOOT_S = 0.2                # from the first client to the first moment: opening a port throws away what came so far
TICK_S = 0.002              # moments that are nearer together leave together
QUEUE = 1 << 20             # bytes that wait for a slow client; beyond it whole frames are lost, as on a device
CHUNK_S = 1.0               # of signal, made at once at the most
LINGER_S, QUIET_S = 2.0, 0.1        # for the client to read the end, and without a byte until that is believed


class Simulator:
    """A device at the other end of `port`. Use start() and stop(), or run() in this thread, or `with`.

    name: of a protocol or a profile. signal: what it measures, by default the synthetic patient with `rhythm` (as in
    sources.schedule), `noise` and `seed`. leads: a map such as `ch1=I,ch2=-II`. faults: words of faults.parse. speed:
    times real time, 0 as fast as it is read. tcp: None for a pseudo terminal, else a port number, 0 for any. seconds:
    of signal, after which it ends; also when nobody listened for so long. fs: moments a second where the profile has no
    rate, or another one.
    """

    def __init__(self, name: str = "cyton", signal: sources.Signal | None = None, *, rhythm: str = "sinus",
                 noise: str = "clinic", seed: int = 0, leads: str | None = None, nv_per_count: float | None = None,
                 faults: str = "", speed: float = 1.0, tcp: int | None = None, link: str | pathlib.Path | None = None,
                 seconds: float | None = None, fs: float | None = None):
        self.profile = profiles.find(name)
        self.fs = fs or self.profile.fs or USUAL_FS
        self.faults = fault.parse(faults, seed)
        if speed < 0 or (not speed and self.faults.burst):
            raise UserError(f"speed {speed:g}", "above 0, or 0 without bursts")
        wanted = dict.fromkeys(lead.removeprefix("-") for lead in sources.leads_of(self.profile, leads).values())
        self.signal = signal or sources.Patient(tuple(wanted), rhythm, seed, noise)
        self.adc = sources.adc(self.profile, self.signal.leads, leads, nv_per_count)
        self.damage = fault.Damage(self.faults)
        self._off = fault.LeadOff(self.faults.lead_off, len(self.signal.leads), self.damage.count, seed)
        self.server = profiles.module(self.profile.protocol).Server(self.profile, self.fs)
        self.speed, self.seconds, self.tcp, self.link = speed, seconds, tcp, link
        self.moments = self.bytes = self.heard = self.clients = self.overruns = 0
        self.error: Exception | None = None
        self._end, self._thread, self._stop = None, None, threading.Event()
        self._out = bytearray()
        self._here, self._ready, self._idle = False, None, 0.0
        self._began, self._sent, self._last = None, 0, False    # of this stream: start, moments; the signal is over
        self._unplugs, self._replug = list(self.faults.unplug), None

    # ---- outside

    @property
    def port(self) -> str:
        """What to open."""
        return self._end.port

    def open(self) -> str:
        """Make the port, without serving it yet."""
        if self._end is None:
            self.signal.take(0, self.fs)
            self._end = serving.PtyEnd(self.link) if self.tcp is None else serving.TcpEnd(self.tcp)
        return self.port

    def start(self) -> str:
        """Serve in a thread; the port."""
        self.open()
        self._thread = threading.Thread(target=self._quietly, name="simulator", daemon=True)
        self._thread.start()
        return self.port

    def stop(self) -> dict:
        """End; summary()."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._close()
        return self.summary()

    def run(self) -> dict:
        """Serve until stop() is called elsewhere, the signal or the seconds are over; summary()."""
        self.open()
        try:
            self._loop()
        finally:
            self._close()
        return self.summary()

    def wait(self, seconds: float) -> bool:
        """Whether a simulator in a thread has ended by itself within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self.stop()
        if kind is None and self.error is not None:
            raise self.error

    def summary(self) -> dict:
        """What was served. frames and faults: of faults.Count; overruns: frames lost because nobody took them in time;
        bytes: that left; heard: bytes of commands."""
        return {"protocol": self.profile.protocol, "profile": self.profile.name, "fs": self.fs,
                "seconds": round(self.moments / self.fs, 3), "moments": self.moments, "bytes": self.bytes,
                "heard": self.heard, "clients": self.clients, "overruns": self.overruns, **asdict(self.damage.count)}

    def _quietly(self) -> None:
        try:
            self._loop()
        except Exception as error:          # a thread has nobody above it: told here, kept for whoever stops it
            self.error = error
            say.warn(f"the simulator ended: {error}")
        finally:
            self._end.close()

    def _close(self) -> None:
        self._end.close()
        if hasattr(self.signal, "close"):
            self.signal.close()

    # ---- inside

    def _loop(self) -> None:
        self._idle = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            self._plug(now)
            self._greet(now)
            data = self._end.read()
            if data:
                self.heard += len(data)
                self._out += self.server.hear(data)
            self._stream(now)
            self._flush()
            if self._last or (self.seconds is not None and not self._streams(now) and
                              now - self._idle > self.seconds):
                self._drain()
                return
            self._end.wait(self._pause(), bool(self._out))

    def _plug(self, now: float) -> None:
        """Vanish when it is time to, and come back."""
        if self._replug is not None and now >= self._replug:
            self._end.plug()
            self._replug = None
        if self._replug is None and self._unplugs and self.moments >= self._unplugs[0][0] * self.fs:
            _, seconds = self._unplugs.pop(0)
            self._end.unplug()
            self.damage.count.unplugs += 1
            self._replug = now + seconds / (self.speed or 1)
            self._out.clear()

    def _greet(self, now: float) -> None:
        here = self._end.present()
        if self._end.clients != self.clients:
            self.clients = self._end.clients
            self._ready = self._ready or now + BOOT_S
            self._out.clear()               # it was for another one
        self._here = here

    def _streams(self, now: float) -> bool:
        """The device is on, and somebody has been there."""
        return self.server.streaming and self._ready is not None and now >= self._ready

    def _stream(self, now: float) -> None:
        """Make the moments that are due."""
        if not self._streams(now):
            self._began = None
            return
        if self._began is None:
            self.fs = getattr(self.server, "fs", None) or self.fs
            self.signal.take(0, self.fs)
            self._began, self._sent = time.monotonic(), 0
            self._first = fault.first_index(self.faults, self.profile, self.fs)
        self._idle = now
        while (n := self._due(now)) > 0:
            self._make(n)
            if self._last or not self.speed:
                return

    def _due(self, now: float) -> int:
        """Moments, whole frames of them."""
        each, most = self.profile.per_frame, max(round(CHUNK_S * self.fs), self.profile.per_frame)
        if not self.speed:
            return most - most % each if self._here and not self._out else 0
        elapsed = now - self._began
        if self.faults.burst:
            elapsed -= elapsed % self.faults.burst
        n = min(int(elapsed * self._rate) - self._sent, most)
        return n - n % each

    @property
    def _rate(self) -> float:
        """Moments a second of this computer's clock."""
        return self.fs * self.speed * (1 + self.faults.drift)

    def _make(self, n: int) -> None:
        """Measure, encode, damage and queue n moments."""
        if self.seconds is not None:
            left = round(self.seconds * self.fs) - self.moments
            n, self._last = min(n, left), left <= n
        uv, off = self.signal.take(n, self.fs)
        self._last |= uv.shape[1] < n
        whole = uv.shape[1] - uv.shape[1] % self.profile.per_frame
        if not whole:
            return
        counts, mask = self.adc.counts(uv[:, :whole], self._off.over(off[:, :whole], self.fs))
        frames = self.server.encode(counts, mask, self._first + self._sent)
        self._sent += whole
        self.moments += whole
        if self._here and len(self._out) < QUEUE:
            self._out += self.damage.send(frames)
        elif self._here:
            self.overruns += len(frames)

    def _flush(self) -> None:
        """Give the line what it takes."""
        while self._out and self._here:
            taken = self._end.write(bytes(self._out[:1 << 16]))
            if not taken:
                return
            del self._out[:taken]
            self.bytes += taken

    def _drain(self) -> None:
        """Let the client read the end before the line goes down: a pseudo terminal forgets what was not read."""
        until, busy = time.monotonic() + LINGER_S, time.monotonic()
        while self._end.present() and time.monotonic() < until and not self._stop.is_set():
            self._here = True
            self._flush()
            if self._out or self._end.unread():
                busy = time.monotonic()
            elif time.monotonic() > busy + QUIET_S:     # between two of its buffers bytes are not counted
                return
            time.sleep(TICK_S)

    def _pause(self) -> float:
        """Seconds until something is due."""
        if self._began is None or not self._here:
            return 0.02
        if not self.speed:
            return 0.1 if self._out else 0.0
        due = self._began + (self._sent + self.profile.per_frame) / self._rate
        if self.faults.burst:
            since = due - self._began
            due = self._began + np.ceil(since / self.faults.burst - 1e-9) * self.faults.burst
        return float(min(max(due - time.monotonic(), TICK_S), 0.1))


# ---- command line


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Serve a front-end's bytes without the hardware. The first line is the port.")
    p.add_argument("--protocol", default="cyton", help="protocol or front-end, e.g. cyton, openview, max30003")
    p.add_argument("--record", help="WFDB record to send, with or without .hea; else the synthetic patient")
    p.add_argument("--loop", action="store_true", help="begin the record again when it is over")
    p.add_argument("--rhythm", default="sinus", help="of the patient, with times: sinus,af@30,sinus@90")
    p.add_argument("--noise", default="clinic", help="around the patient: none, clinic, wearable")
    p.add_argument("--leads", help="which channel measures what: ch1=I,ch2=-II")
    p.add_argument("--nv-per-count", type=say.positive(float), help="scale, where the front-end has none of its own")
    p.add_argument("--rate", type=say.positive(float), help="moments a second, where the front-end may have several")
    p.add_argument("--fault", default="", help=f"{', '.join(fault.NAMES)}; {fault.EXAMPLE}")
    p.add_argument("--speed", type=float, default=1.0, help="times real time; 0: as fast as it is read")
    p.add_argument("--tcp", type=int, metavar="PORT", help="serve on this port of 127.0.0.1 instead (0: any)")
    p.add_argument("--link", help="a name of its own for the terminal, which stays through unplug")
    p.add_argument("--seconds", type=say.positive(float), help="end after so much signal, or so long without a client")
    p.add_argument("--seed", type=int, default=0, help="of the patient and of the faults")
    return p


def main(args) -> dict:
    """Serve until it is over."""
    device = profiles.find(args.protocol)
    signal = sources.RecordSignal(args.record, args.loop) if args.record else None
    simulator = Simulator(device.name, signal, rhythm=args.rhythm, noise=args.noise, seed=args.seed, leads=args.leads,
                          nv_per_count=args.nv_per_count, faults=args.fault, speed=args.speed, tcp=args.tcp,
                          link=args.link, seconds=args.seconds, fs=args.rate)
    for number in (signals.SIGINT, signals.SIGTERM):
        signals.signal(number, lambda *_: simulator._stop.set())
    say.info(simulator.open())
    say.info(f"{device.title}, {simulator.fs:g} moments a second, leads {', '.join(simulator.signal.leads)}; "
             "Ctrl-C ends it")
    result = {"port": simulator.port} | simulator.run()
    say.info(f"{result['seconds']:g} s of signal in {result['frames']} frames to {result['clients']} client(s); "
             f"touched {result['touched']}, skipped {result['skipped']}, unplugged {result['unplugs']} time(s), "
             f"{result['overruns']} not taken in time")
    return result


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
