# SPDX-License-Identifier: Apache-2.0
"""Whole records as a front-end would send them: bytes, bridge, classifier, and the end-to-end table of beats.

The records go through EdgeLink, which carries microvolts exactly and at the record's own rate; on a front-end of
another rate they would be resampled twice. Beats that the bridge gives no class (bad signal) count as missed. Matching
is checked by the WFDB package's own (wfdb.processing.compare_annotations). The display's beats and grades are left out:
they decide nothing.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace

import numpy as np

from bench import beats
from firmware_bridge import classify, leads, profiles
from firmware_bridge.bridge import Bridge
from firmware_bridge.session import Decision, Session
from train import records, runs, say

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PORTION_S = 1.0


class Called:
    """A sink that keeps decisions."""

    def __init__(self):
        self.decisions: list[Decision] = []

    def begin(self, session: Session) -> None:
        """Nothing to prepare."""

    def take(self, item) -> None:
        """Decisions only."""
        if isinstance(item, Decision):
            self.decisions.append(item)

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Nothing to close."""


class Unwatched:
    """In the place of watch.Watch."""

    def push(self, item) -> list:
        """Nobody looks."""
        return []

    def flush(self) -> list:
        """Nobody looks."""
        return []


class Streamed:
    """Records of a task's folder, one after the other through bytes; counts what became of them."""

    def __init__(self, run: str, target: str, manifest, graph, source, folder: str):
        self.run, self.target, self.manifest, self.graph, self.source = run, target, manifest, graph, source
        self.entries = {e.name: e for e in records.catalog(source.task.dataset, folder)}
        self.moments = self.bytes = self.missing = self.unreliable = 0
        self.oracle = {"matched": 0, "wfdb_matched": 0, "wfdb_missed": 0, "wfdb_extra": 0}

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(R peaks in samples of the task's rate, class of each) of record number i; those without a class left out."""
        record = records.read(self.source.task.dataset, self.entries[self.source.shards.records[i]["name"]])
        m, found = self.manifest, self._decided(record)
        self.unreliable += sum(bool(d.unreliable) for d in found)
        told = [d for d in found if not d.unreliable]
        names = [c.name for c in m.classes]
        at = np.array([round(d.beat * m.fs / record.fs) for d in told], np.int64)
        self._compare(self.source.shards.beats(i)["sample"], at)
        return at, np.array([names.index(d.present[0]) for d in told], int)

    def _decided(self, record) -> list[Decision]:
        """Every decision of a record."""
        m, kept = self.manifest, Called()
        uv, off = record.pick(m.waveform.leads), self._off(record)
        base = profiles.find("edgelink")
        channels = tuple(replace(base.channels[0], name=f"ch{k + 1}") for k in range(len(uv)))
        profile = replace(base, fs=record.fs, channels=channels)
        wiring = leads.wire(profile, m.waveform.leads,
                            ",".join(f"{c.name}={lead}" for c, lead in zip(channels, m.waveform.leads, strict=True)))
        module = profiles.module(profile.protocol)
        server = module.Server(profile, record.fs)
        local = classify.local(self.run, self.target, m, self.graph, record.fs)
        bridge = Bridge(Session(profile, record.fs, wiring.leads, m, 0.0), module.Decoder(profile), wiring, Unwatched(),
                        [kept], local)
        step = round(PORTION_S * record.fs) // profile.per_frame * profile.per_frame
        for at in range(0, uv.shape[1], step):
            part = uv[:, at:at + step]
            data = b"".join(server.encode(part.T, off[at:at + step], at))
            self.bytes += len(data)
            bridge.feed(data, (at + part.shape[1]) / record.fs)
        bridge.close()
        self.moments += uv.shape[1]
        self.missing += bridge.timeline.tally.missing + uv.shape[1] - bridge.timeline.next
        return kept.decisions

    def _off(self, record) -> np.ndarray:
        """uint32 (moment,): where a lead of the record is invalid."""
        mask = np.zeros(record.uv.shape[1], np.uint32)
        for k, lead in enumerate(self.manifest.waveform.leads):
            if record.missing is not None and lead in record.leads:
                mask |= record.missing[record.leads.index(lead)].astype(np.uint32) << np.uint32(k)
        return mask

    def _compare(self, annotated: np.ndarray, found: np.ndarray) -> None:
        """Beats matched by us and by the WFDB package."""
        from wfdb.processing import compare_annotations
        width = int(beats.TOLERANCE_S * self.source.shards.fs)
        self.oracle["matched"] += len(beats.match(annotated, found, width)[0])
        other = compare_annotations(annotated, found, width)
        for key, value in (("matched", other.tp), ("missed", other.fn), ("extra", other.fp)):
            self.oracle[f"wfdb_{key}"] += int(value)


def table(args, manifest, graph, source, indices: list[int], classes: list[str]) -> dict:
    """The end-to-end table twice: through bytes and bridge, and offline by the reference; and what lies between."""
    if manifest.trigger.kind != "r-peak":
        say.fail(f"{args.run} decides every hop, not every beat", "a run of mitbih", "leave out --stream")
    if args.data is None:
        say.fail("--stream sends whole records", "the folder that holds them", "--data data/mitdb")
    target = "host" if args.target == "reference" else args.target
    streamed = Streamed(args.run, target, manifest, graph, source, args.data)
    say.info(f"through the bytes of EdgeLink, the bridge and target {target}")
    live = beats.end_to_end(manifest, graph, source, indices, classes, streamed)
    say.info(f"{streamed.moments} moments in {streamed.bytes} bytes, {streamed.missing} missing; {streamed.unreliable} "
             "beats without a class for bad or settling signal")
    o = streamed.oracle
    say.info(f"beats found within {1000 * beats.TOLERANCE_S:.0f} ms in whole records: {o['matched']}, by the WFDB "
             f"package {o['wfdb_matched']} ({o['wfdb_missed']} missed, {o['wfdb_extra']} extra)")
    say.info("offline, by the reference")
    offline = beats.end_to_end(manifest, graph, source, indices, classes)
    apart = int(np.abs(np.array(live["confusion"]) - np.array(offline["confusion"])).sum())
    say.info(f"the two tables differ by {apart} in their cells")
    return {"through": target, "stream": live, "end_to_end": offline, "cells_apart": apart, "oracle": o,
            "sent": {"moments": streamed.moments, "bytes": streamed.bytes, "missing": streamed.missing,
                     "unreliable": streamed.unreliable}}


def keep(name: str, result: dict) -> None:
    """Into bench/results, without the folder that the run lies in."""
    kept = {k: v for k, v in result.items() if k != "run"} | {"model": name}
    runs.write(RESULTS, {f"stream-{name}.json": json.dumps(kept, indent=1) + "\n"})
