# SPDX-License-Identifier: Apache-2.0
"""The bridge as a whole, fed by a decoder of plain numbers: order, gaps, decisions, shadow, sinks that fail."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_engine import hop_model, patient

from compress import reference
from firmware_bridge.bridge import Bridge
from firmware_bridge.classify import Local
from firmware_bridge.engine import Engine
from firmware_bridge.leads import wire
from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from firmware_bridge.watch import Watch
from firmware_bridge.wire import Block, Note, Stats
from train import synth
from train.say import UserError

FS = 250
BOARD = Profile("plain", "test", "plain numbers", (Channel("ch1", 1000.0, -100_000, 100_000),
                                                   Channel("ch2", 1000.0, -100_000, 100_000)), FS, counter=1 << 32)
COLUMNS = np.dtype([("counter", "<i8"), ("counts", "<i4", 2), ("off", "<u4")])


class Plain:
    """Bytes are rows of COLUMNS; a portion that starts with eight "!" is something the device says."""

    def __init__(self):
        self.profile, self.stats = BOARD, Stats()

    def feed(self, data, now):
        if data[:8] == b"!" * 8:
            return [Note(data[8:].decode(), "info", now)]
        rows = np.frombuffer(data, COLUMNS)
        return [Block(rows["counts"].copy(), rows["counter"].copy(), rows["off"].copy(), now)]


class Kept:
    """A sink that keeps everything."""

    def __init__(self):
        self.items, self.session, self.ended, self.ticks = [], None, 0, 0

    def begin(self, session):
        self.session = session

    def take(self, item):
        self.items.append(item)

    def tick(self, now):
        self.ticks += 1

    def end(self):
        self.ended += 1

    def of(self, kind):
        return [i for i in self.items if isinstance(i, kind)]


class Breaks(Kept):
    """A sink whose disk is full after a while."""

    def take(self, item):
        super().take(item)
        if len(self.items) > 5:
            raise OSError(28, "No space left on device")


def engine(wrong_after=None):
    """The reference as a classifier; after so many windows a logit is off by one."""
    m, graph = hop_model(leads=2)
    count = itertools.count()

    def exact(inputs):
        logits = reference.run(graph, {k: v[None] for k, v in inputs.items()})[0]
        return logits ^ 1 if wrong_after is not None and next(count) >= wrong_after else logits
    return Local(m, Engine(m, exact, FS), FS)


def bridge(*sinks, classifier=None, shadow=None):
    m, _ = hop_model(leads=2)
    session = Session(BOARD, FS, m.waveform.leads, m, 0.0)
    watch = Watch(m.frontend, FS, m.waveform.leads)
    wiring = wire(BOARD, m.waveform.leads, "ch1=I,ch2=II")
    return Bridge(session, Plain(), wiring, watch, list(sinks), classifier, shadow)


def packed(indices, uv, off=0):
    """Bytes of moments."""
    rows = np.zeros(len(indices), COLUMNS)
    rows["counter"], rows["counts"], rows["off"] = indices, uv[:, indices].T, off
    return rows.tobytes()


def play(b, seconds=20, lost=(), off=(), size=25):
    """Feed the synthetic patient in real time; moments in `lost` do not come, in `off` the second lead is off."""
    uv = patient(FS, seconds, 2)
    for at in range(0, uv.shape[1], size):
        here = [i for i in range(at, at + size) if i not in lost]
        if here:
            b.feed(packed(np.array(here), uv, 2 * np.isin(here, off)), (at + size) / FS)
        b.tick((at + size) / FS)
    return uv


def test_everything_comes_out_once_and_in_order():
    kept = Kept()
    b = bridge(kept, classifier=engine())
    uv = play(b)
    b.close()
    stretches = kept.of(Stretch)
    assert np.array_equal(np.concatenate([s.uv for s in stretches], 1), uv)
    assert [s.first for s in stretches] == list(range(0, uv.shape[1], 25))
    assert np.diff([s.time for s in stretches]) == pytest.approx(25 / FS, rel=1e-3)
    assert len(kept.of(Quality)) == 20 and len(kept.of(Beat)) > 15 and len(kept.of(Decision)) > 100
    assert kept.ended == 1 and kept.ticks == 200 and kept.session.manifest is not None


def test_beats_lie_where_the_patients_r_waves_are():
    kept, made = Kept(), synth.record("sinus", 3, 30, FS, ("I", "II"), noise="none")
    b = bridge(kept)
    for at in range(0, made.uv.shape[1], 25):
        b.feed(packed(np.arange(at, at + 25), made.uv), (at + 25) / FS)
    found = np.array([beat.index for beat in kept.of(Beat)])
    true = np.array([r for r in made.beats.sample if found[0] - 5 <= r <= found[-1] + 5])
    assert len(found) == len(true) > 20 and np.abs(found - true).max() <= 3


def test_a_lost_moment_is_a_gap_and_decisions_go_on():
    kept = Kept()
    play(bridge(kept, classifier=engine()), lost={2000, 2001, 3000})
    assert [(g.first, g.length, g.reason) for g in kept.of(Gap)] == [(2000, 2, "lost"), (3000, 1, "lost")]
    assert not any(d.unreliable for d in kept.of(Decision)) and len(kept.of(Decision)) > 100


def test_a_long_hole_costs_two_seconds_and_a_window():
    kept = Kept()
    play(bridge(kept, classifier=engine()), lost=set(range(2000, 2100)))
    indices = np.array([d.index for d in kept.of(Decision)])
    m, _ = hop_model(leads=2)
    assert not ((indices > 2000) & (indices < 2100 + 2 * FS + m.window)).any() and indices.max() > 4900


def test_a_lead_that_comes_off_is_told_and_its_windows_do_not_count():
    kept = Kept()
    play(bridge(kept, classifier=engine()), off=np.arange(2000, 2300))
    events = [e for e in kept.of(Event) if e.kind == "lead-off"]
    assert [e.text for e in events] == ["lead II is off", "lead II is on again"]
    wrong = [d for d in kept.of(Decision) if d.unreliable]
    assert wrong and {d.unreliable for d in wrong} == {"lead-off"} and any("C" in q.grades for q in kept.of(Quality))


@pytest.mark.parametrize("wrong_after", [None, 50])
def test_the_shadow_says_of_every_decision_whether_it_agrees(wrong_after):
    kept = Kept()
    b = bridge(kept, classifier=engine(wrong_after), shadow=engine())
    play(b, lost={1500}, off=np.arange(2000, 2100))
    told = [d.agrees for d in kept.of(Decision)]
    assert b.agreement.compared == len(told) > 100 and None not in told
    assert b.agreement.equal == sum(told) == (len(told) if wrong_after is None else wrong_after)


def test_a_sink_that_fails_is_taken_out_and_nothing_else_stops():
    kept, full = Kept(), Breaks()
    b = bridge(full, kept, classifier=engine())
    play(b)
    b.close()
    told = [e for e in kept.of(Event) if e.kind == "sink"]
    assert len(told) == 1 and "No space left" in told[0].text and told[0].level == "error"
    assert len(full.items) == 6 and full.ended == 1 and len(kept.of(Decision)) > 100


def test_what_the_device_says_and_a_broken_line_are_events():
    kept = Kept()
    b = bridge(kept)
    b.feed(b"!" * 8 + b"battery low", 0.0)
    play(b, 4)
    b.broken("unplugged", "the port is gone")
    b.back("the port is there again")
    b.feed(packed(np.arange(1000, 1010), patient(FS, 20, 2)), 12.0)
    assert [e.kind for e in kept.of(Event)] == ["device", "unplugged", "back"]
    gap, = kept.of(Gap)
    assert gap.reason == "unplugged" and gap.length == pytest.approx(8 * FS, abs=20)


def test_a_rate_that_is_not_the_profiles_is_told_once_or_refused():
    kept = Kept()
    b, uv = bridge(kept), patient(FS, 20, 2)
    for at in range(0, 5000, 25):
        b.feed(packed(np.arange(at, at + 25), uv), (at + 25) / (FS * 1.01))
    assert len([e for e in kept.of(Event) if e.kind == "clock"]) == 1
    b = bridge(kept)
    with pytest.raises(UserError, match="moments a second"):
        for at in range(0, 5000, 25):
            b.feed(packed(np.arange(at, at + 25), uv), (at + 25) / (FS * 1.2))
