# SPDX-License-Identifier: Apache-2.0
"""Time in the bridge: every moment has its place, holes have their length, bursts do not move anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firmware_bridge.clock import Clock, judge
from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Gap
from firmware_bridge.timeline import Timeline
from firmware_bridge.wire import Block
from train.say import UserError

FS = 250.0
SHORT = Profile("short", "test", "8-bit counter", (Channel("ch1", 1.0, -128, 127),), FS, counter=256)
LONG = replace(SHORT, name="long", counter=1 << 32)
TICKS = replace(SHORT, name="ticks", counter=1 << 24, ticks=32_000)
NONE = replace(SHORT, name="none", counter=None)
COUNTED = [SHORT, LONG, TICKS]


def block(profile, indices, arrived=None, numbers=None, suspect=None):
    """Moments whose counts are their true indices; they came when the last of them was taken."""
    indices = np.asarray(indices, np.int64)
    if profile.counter is not None and numbers is None:
        numbers = indices * (round(profile.ticks / FS) if profile.ticks else 1) % profile.counter
    return Block(indices.astype(np.int32)[:, None], numbers, np.zeros(len(indices), np.uint32),
                 indices[-1] / FS if arrived is None else arrived, suspect)


def fed(profile, blocks):
    """(items, timeline) after the blocks; every moment must lie at its true index, every item follow the one before."""
    line, items = Timeline(profile, FS), []
    for each in blocks:
        items += line.push(each)
    at = None
    for item in items:
        assert at is None or item.first == at
        length = item.length if isinstance(item, Gap) else len(item.counts)
        at = item.first + length
        if not isinstance(item, Gap):
            shift = item.counts[:, 0] - np.arange(item.first, at)
            assert (shift == items[0].counts[0, 0]).all()
    assert line.tally.taken + line.tally.missing == line.next
    return items, line


def portions(indices, size=10):
    """Cut into portions."""
    return [indices[i:i + size] for i in range(0, len(indices), size)]


@pytest.mark.parametrize("profile", [*COUNTED, NONE], ids=lambda p: p.name)
def test_what_comes_whole_has_no_gap(profile):
    items, line = fed(profile, [block(profile, p) for p in portions(np.arange(7, 2000))])
    assert not any(isinstance(i, Gap) for i in items) and line.tally.taken == 1993


@pytest.mark.parametrize("lost", [1, 3, 9, 10, 100, 255, 256, 257, 300, 1000])
@pytest.mark.parametrize("profile", COUNTED, ids=lambda p: p.name)
def test_a_hole_has_its_length_also_beyond_a_turn_of_the_counter(profile, lost):
    seen = np.concatenate([np.arange(500), np.arange(500 + lost, 1500 + lost)])
    items, _ = fed(profile, [block(profile, p) for p in portions(seen)])
    assert [(g.first, g.length, g.reason) for g in items if isinstance(g, Gap)] == [(500, lost, "lost")]


@pytest.mark.parametrize("profile", COUNTED, ids=lambda p: p.name)
def test_random_losses_are_counted_to_the_moment(profile):
    generator = np.random.default_rng(0)
    seen = np.flatnonzero(generator.random(20_000) > 0.05)
    seen = seen[:np.flatnonzero(np.diff(seen) == 1)[-1] + 2]        # ends with two in a row: a last leap would wait
    _, line = fed(profile, [block(profile, p) for p in portions(seen, 17)])
    assert line.tally.taken == len(seen) and line.tally.missing == seen[-1] - seen[0] + 1 - len(seen)


@pytest.mark.parametrize("profile", COUNTED, ids=lambda p: p.name)
@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_damaged_counter_costs_its_moment_and_nothing_else(profile, place):
    blocks = [block(profile, p) for p in portions(np.arange(100))]
    numbers = blocks[4].counter.copy()
    numbers[place] ^= 64
    blocks[4] = replace(blocks[4], counter=numbers)
    items, line = fed(profile, blocks)
    assert [(g.first, g.length) for g in items if isinstance(g, Gap)] == [(40 + place, 1)]
    assert line.tally.refused == 1 and line.tally.taken == 99


def test_suspect_moments_are_missing_not_guessed():
    suspect = np.zeros((10, 1), bool)
    suspect[3:5] = True
    items, line = fed(SHORT, [block(SHORT, np.arange(10)), block(SHORT, np.arange(10, 20), suspect=suspect),
                              block(SHORT, np.arange(20, 30))])
    assert [(g.first, g.length) for g in items if isinstance(g, Gap)] == [(13, 2)] and line.tally.refused == 2


def test_moments_sent_twice_are_taken_once():
    items, line = fed(LONG, [block(LONG, np.arange(100)), block(LONG, np.arange(60, 140), arrived=139 / FS)])
    assert line.tally.repeated == 40 and line.next == 140 and not any(isinstance(i, Gap) for i in items)


@pytest.mark.parametrize("profile", [*COUNTED, NONE], ids=lambda p: p.name)
def test_a_late_burst_is_not_a_hole(profile):
    ready = np.arange(1000)
    blocks = [block(profile, p) for p in portions(ready[:500])]
    blocks.append(block(profile, ready[500:900]))                 # the host slept for 1.6 s, the port kept all
    items, _ = fed(profile, [*blocks, *(block(profile, p) for p in portions(ready[900:]))])
    assert not any(isinstance(i, Gap) for i in items)


@pytest.mark.parametrize("profile", [*COUNTED, NONE], ids=lambda p: p.name)
def test_an_unplugged_time_is_a_gap_of_its_length(profile):
    line = Timeline(profile, FS)
    for p in portions(np.arange(500)):
        line.push(block(profile, p))
    line.broken("unplugged")
    gap, run = line.push(block(profile, np.arange(5), arrived=499 / FS + 8.0))
    assert gap.reason == "unplugged" and gap.length == pytest.approx(8 * FS, abs=6) and run.first == 500 + gap.length


def test_silence_without_a_counter_is_a_hole():
    items, _ = fed(NONE, [block(NONE, np.arange(100))])
    line = Timeline(NONE, FS)
    line.push(block(NONE, np.arange(100)))
    gap, _ = line.push(block(NONE, np.arange(10), arrived=99 / FS + 2))
    assert gap.length == pytest.approx(2 * FS, abs=11) and len(items) == 1


# ---- the clock

def arrivals(seconds, fs=FS, every=0.016, jitter=0.0):
    """(index, host seconds) as a USB converter hands portions over."""
    generator = np.random.default_rng(1)
    for k in range(1, int(seconds / every)):
        yield int(k * every * fs), k * every + generator.exponential(jitter) * bool(jitter)


def test_bursts_do_not_show_in_the_times():
    clock, times = Clock(FS), []
    for index, now in arrivals(60):
        clock.arrived(index, now)
        times.append((index, clock.time(index)))
    settled = np.array([(i, t) for i, t in times if i > 5 * FS])
    step = np.diff(settled[:, 1]) / np.maximum(np.diff(settled[:, 0]), 1)
    assert (step - 1 / FS)[np.diff(settled[:, 0]) > 0].std() < 1e-4
    assert abs(clock.fs / FS - 1) < 1e-4


@pytest.mark.parametrize("fs", [FS * 0.997, FS * 1.02])
def test_the_rate_is_measured_whatever_the_profile_says(fs):
    clock = Clock(FS)
    for index, now in arrivals(90, fs, jitter=0.002):
        clock.arrived(index, now)
    assert clock.fs == pytest.approx(fs, rel=2e-4)
    verdict = judge(clock)
    assert verdict.off == pytest.approx(fs / FS - 1, abs=2e-4) and verdict.warn == (abs(fs / FS - 1) > 0.005)


def test_a_rate_far_off_is_refused_and_the_true_one_named():
    clock = Clock(FS)
    for index, now in arrivals(20, 200.0):
        clock.arrived(index, now)
    with pytest.raises(UserError, match=r"200\.0") as raised:
        judge(clock)
    assert "--rate 200" in raised.value.fix
    assert judge(clock, allow=0.5).fs == pytest.approx(200, rel=1e-3)


def test_time_never_goes_back():
    clock, last = Clock(FS), -1.0
    for index, now in arrivals(20, every=0.05, jitter=0.02):
        clock.arrived(index, now)
        assert clock.time(index) >= last
        last = clock.time(index)


def test_a_clock_follows_a_device_that_warms_up():
    clock, index, now = Clock(FS), 0.0, 0.0
    for k in range(60_000):                                     # 20 minutes, 100 ppm faster at the end
        now += 0.02
        index += 0.02 * FS * (1 + 1e-4 * k / 60_000)
        clock.arrived(int(index), now)
    assert abs(clock.time(int(index)) - now) < 0.005
