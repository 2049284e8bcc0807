# SPDX-License-Identifier: Apache-2.0
"""The bridge at real time on a pseudo terminal: what it costs of a core, and how late its decisions are.

The simulator is another process on the same clock. Moment k is taken at began + (k + 1) / rate; the decision that it
completes is late by the way over the line, by the reading loop and by the bridge's own work, which begins when the
portion has been read. A moment in the middle of a hop waits for the hop's end besides.
"""

from __future__ import annotations

import multiprocessing
import time

import numpy as np

from firmware_bridge.session import Beat, Decision, Session, Stretch

PERCENTILES = (50, 95, 99)
START_S = 20.0              # for another process to come up
OVERLAP_S = 2.0             # of the simulator, beyond what is measured


def serve(pipe, name: str, seconds: float, leads: tuple[str, ...]) -> None:
    """In the other process: the port, when its moments began, and their rate; until it is told to stop."""
    from firmware_bridge import simulate, sources
    signal = sources.Patient(leads)
    device = simulate.Simulator(name, signal, seconds=seconds)
    pipe.send(device.start())
    while device._began is None and device._thread.is_alive() and not pipe.poll(0.01):
        pass
    pipe.send((device._began, device.fs))
    pipe.recv()
    device.stop()


class Late:
    """A sink that notes when things come. rows: (index, seconds, from the arrival in ms) of a decision."""

    def __init__(self):
        self.rows: list[tuple[int, float, float]] = []
        self.beats = self.moments = 0
        self.first = self.arrived = self.counter = None

    def begin(self, session: Session) -> None:
        """Nothing to prepare."""

    def take(self, item) -> None:
        """Only times are kept."""
        now = time.monotonic()
        if isinstance(item, Stretch):
            self.moments += len(item.counts)
            self.arrived = item.arrived
        elif isinstance(item, Decision):
            self.rows.append((item.index, now, 1000 * (now - self.arrived)))
        elif isinstance(item, Beat):
            self.beats += 1

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Nothing to close."""


def percentiles(values) -> dict:
    """p50, p95, p99 and how many; None each without any."""
    found = np.percentile(values, PERCENTILES) if len(values) else [None] * len(PERCENTILES)
    return {"count": len(values)} | {f"p{p}_ms": None if v is None else round(float(v), 3)
                                     for p, v in zip(PERCENTILES, found, strict=True)}


def live(name: str, run: str | None, seconds: float) -> dict:
    """So many seconds at real time: share of a core, latencies."""
    from bench.bridge_day import WIRED, made_bridge
    from firmware_bridge import ports, profiles
    from firmware_bridge.loop import Loop
    profile = profiles.find(name)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    device = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, name, 2 * seconds + START_S, WIRED[:len(profile.ecg)]), daemon=True)
    device.start()
    try:
        if not ours.poll(START_S):
            raise TimeoutError("the simulator does not start")
        port = ours.recv()
        sink = Late()
        bridge = made_bridge(name, profile.fs, run, sink)
        plug = ports.Plug(port, profile.bauds[0] if profile.bauds else 115200, profile.dtr, profile)
        talk = profiles.module(profile.protocol).Talk(profile)
        line = plug.open()
        _, rest = talk.begin(line)
        until, wall, cpu = time.monotonic() + seconds, time.monotonic(), time.process_time()
        Loop(bridge, plug, talk).run(line, rest, lambda: time.monotonic() >= until)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        plug.close()
        began, rate = ours.recv() if ours.poll(START_S) else (None, profile.fs)
        ours.send("stop")
        device.join(START_S)
    finally:
        if device.is_alive():
            device.terminate()
    return _result(bridge, sink, wall, cpu, began, rate)


def _result(bridge, sink: Late, wall: float, cpu: float, began: float, rate: float) -> dict:
    """The first moment that was taken has index 0: the simulator's line loses none."""
    tally = bridge.timeline.tally
    index = np.array([r[0] for r in sink.rows], float)
    seen = np.array([r[1] for r in sink.rows])
    total = 1000 * (seen - (began + index / rate)) if len(index) else []
    waits = [1000 * (now - (began + np.arange(before + 1, at + 1) / rate))
             for before, at, now in zip(index[:-1], index[1:], seen[1:], strict=True)] if len(index) > 1 else []
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 3), "share_of_a_core": round(cpu / wall, 4),
            "classifier_share": round(bridge.classifier.seconds / wall, 4) if bridge.classifier else None,
            "moments": sink.moments, "missing": tally.missing, "beats": sink.beats,
            "leads": list(bridge.session.leads), "channels": len(bridge.session.profile.channels),
            "model": bridge.session.manifest.name if bridge.session.manifest else None,
            "latency": {"bridge": percentiles([r[2] for r in sink.rows]), "from_the_last_moment": percentiles(total),
                        "from_any_moment": percentiles(np.concatenate(waits) if waits else [])}}
