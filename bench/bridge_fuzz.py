# SPDX-License-Identifier: Apache-2.0
"""Millions of damaged bytes through every decoder: none may raise, none may grow, and what comes out is compared.

A device is set up by the protocol's own dialogue and measures the synthetic patient. Its frames lose, gain and change
bytes, whole frames vanish, and stretches of them are repeated, cut off, overwritten or replaced by noise. A moment that
comes out is wrong when no moment that was sent lately has its counts; moments that the decoder itself doubts are none.
"""

from __future__ import annotations

import collections
import sys

import numpy as np

from firmware_bridge import faults as fault
from firmware_bridge import profiles, sources
from firmware_bridge.timeline import Timeline
from firmware_bridge.wire import Block
from train import say

MANY = 1000                 # moments that are sent in a round
WORDS = "drop=2e-3,flip=2e-3,insert=2e-3,skip=0.01,noise=0.01"
PORTION = 300               # bytes, at the most
FULL = ("crc32c", "crc16")  # checks that let 2^-16 of the damaged through, or fewer


class Loopback:
    """A device at the other end of a line in memory, whose clock only runs while somebody waits."""

    def __init__(self, server, fs: float, signal):
        self.server, self.fs, self.signal = server, fs, signal
        self._answers, self._now, self._made = b"", 0.0, 0

    def write(self, data: bytes) -> None:
        """The device hears it."""
        self._answers += self.server.hear(data)

    def read(self, seconds: float) -> bytes:
        """Answers, and moments once it streams."""
        self._now += min(seconds, 0.05)
        if self.server.streaming:
            n = 10 * self.server.profile.per_frame
            counts, off = self.signal(n)
            self._answers += b"".join(self.server.encode(counts, off, self._made))
            self._made += n
        data, self._answers = self._answers, b""
        return data

    def clock(self) -> float:
        """Seconds."""
        return self._now


def held(thing, seen: set[int] | None = None) -> int:
    """Bytes that an object keeps, with all that hangs on it."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, type(sys))) or callable(thing):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, np.ndarray):
        return size + (held(thing.base, seen) if thing.base is not None else 0)
    if isinstance(thing, dict):
        return size + sum(held(k, seen) + held(v, seen) for k, v in thing.items())
    if isinstance(thing, (list, tuple, set, frozenset, collections.deque)):
        return size + sum(held(x, seen) for x in thing)
    return size + (held(vars(thing), seen) if hasattr(thing, "__dict__") else 0)


def signal_of(profile, fs: float, seed: int):
    """f(n) -> int32 (n, channel), uint32 (n,): a minute of the patient that comes again, with a few counts of noise by
    which moments differ."""
    rng = np.random.default_rng(seed)
    patient = sources.Patient(("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")[:max(len(profile.ecg), 1)], seed=seed)
    adc = sources.adc(profile, patient.leads)
    uv, off = patient.take(round(60 * fs), fs)
    patient.close()
    counts, _ = adc.counts(uv, off)
    low, high = (np.array([getattr(c, side) for c in profile.channels]) for side in ("low", "high"))
    at = [0]

    def take(n: int):
        rows = counts[(at[0] + np.arange(n)) % len(counts)]
        at[0] += n
        return np.clip(rows + rng.integers(-2, 3, rows.shape), low, high).astype(np.int32), np.zeros(n, np.uint32)
    return take


def mangled(data: bytes, rng: np.random.Generator) -> tuple[bytes, int]:
    """What a worse accident leaves of a round's bytes, and how many bytes it took or made."""
    size = int(rng.integers(1, 400))
    at = int(rng.integers(0, max(len(data) - size, 1)))
    kind, noise = int(rng.integers(5)), rng.integers(0, 256, size).astype(np.uint8).tobytes()
    if kind == 0:
        return data[:at] + data[at:at + size] + data[at:], size                     # heard twice
    if kind == 1:
        return data[:at] + data[at + size:], size                                   # lost
    if kind == 2:
        return data[:at] + noise + data[at + size:], size
    if kind == 3:
        return data[:at] + noise + data[at:], size
    return data[:at] + bytes([int(rng.integers(256))]) * size + data[at + size:], size


def fuzz(name: str, total: int, seed: int = 0) -> dict:
    """So many bytes, behind the dialogue, into a front-end's decoder and a timeline."""
    profile = profiles.find(name)
    module, fs = profiles.module(profile.protocol), profile.fs or 250.0
    server = module.Server(profile, fs)
    signal = signal_of(profile, fs, seed)
    profile, _ = module.Talk(profile).begin(Loopback(server, fs, signal))
    decoder, timeline = module.Decoder(profile), Timeline(profile, fs)
    damage, rng = fault.Damage(fault.parse(WORDS, seed)), np.random.default_rng([seed, 5])
    found = {"profile": name, "protocol": profile.protocol, "check": profile.check, "bytes": 0, "moments_sent": 0,
             "moments": 0, "wrong": 0, "accidents": 0}
    lately: collections.deque[set[bytes]] = collections.deque(maxlen=3)
    ecg, sizes, first, now = list(profile.ecg), [], 1 << 12, 0.0
    first -= first % profile.per_frame
    many = MANY - MANY % profile.per_frame
    with say.progress(name, total) as advance:
        while found["bytes"] < total:
            counts, off = signal(many)
            lately.append({row.tobytes() for row in counts[:, ecg]})
            data, _ = mangled(damage.send(server.encode(counts, off, first)), rng)
            damage.touched.clear()
            first, now = first + many, now + many / fs
            found["accidents"] += 1
            found["bytes"] += len(data)
            found["moments_sent"] += many
            at = 0
            while at < len(data):
                size = int(rng.integers(1, PORTION))
                for item in decoder.feed(data[at:at + size], now):
                    if isinstance(item, Block):
                        found["moments"] += len(item.counts)
                        found["wrong"] += _wrong(item, lately, ecg)
                        timeline.push(item)
                at += size
            sizes.append(held(decoder) + held(timeline))
            advance(len(data))
    tenth = max(len(sizes) // 10, 1)
    t, stats = timeline.tally, decoder.stats
    return found | {"touched": damage.count.touched, "skipped": damage.count.skipped,
                    "unaccounted": timeline.next - t.taken - t.missing, "unread": stats.bytes - found["bytes"],
                    "noise": stats.noise, "damaged": sum(stats.damaged.values()),
                    "held_bytes_first_tenth": max(sizes[:tenth]), "held_bytes": max(sizes)}


def _wrong(block: Block, lately, ecg: list[int]) -> int:
    """Moments that nobody sent."""
    sure = np.ones(len(block.counts), bool) if block.suspect is None else ~block.suspect.any(1)
    rows = np.ascontiguousarray(block.counts[sure][:, ecg], np.int32)
    return sum(not any(row.tobytes() in sent for sent in lately) for row in rows)
