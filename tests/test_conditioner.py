# SPDX-License-Identifier: Apache-2.0
"""Holes and bad signal on the way to the classifier: what is filled, what is bad, what begins anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_engine import hop_model, patient

from compress import reference
from firmware_bridge.classify import Local
from firmware_bridge.conditioner import Begin, Conditioner, Piece
from firmware_bridge.engine import Engine
from firmware_bridge.session import Gap
from train.frontend import SETTLE_S

FS, WINDOW = 250, 1000        # 2 % of the window are 20 moments


def line(first, n):
    """int32 (2, n): moment i is i and -i."""
    return np.stack([np.arange(first, first + n), -np.arange(first, first + n)]).astype(np.int32)


def off(n, *places):
    """bool (2, n): the second lead is off at places."""
    mask = np.zeros((2, n), bool)
    mask[1, list(places)] = True
    return mask


def push(c, uv, first, arrived=0.0, lead_off=None, rail=None):
    """Into the conditioner, nothing masked unless said."""
    fine = np.zeros(uv.shape, bool)
    return c.push(uv, fine if lead_off is None else lead_off, fine if rail is None else rail, first, arrived)


def whole(items):
    """The microvolts of all pieces, which must follow each other."""
    pieces = [i for i in items if isinstance(i, Piece)]
    for a, b in itertools.pairwise(pieces):
        assert b.first == a.first + a.uv.shape[1]
    return np.concatenate([p.uv for p in pieces], 1)


def test_a_stream_begins_once_and_passes_untouched():
    c = Conditioner(FS, WINDOW)
    items = push(c, line(0, 300), 0) + push(c, line(300, 300), 300)
    assert isinstance(items[0], Begin) and items[0].reason == "start"
    assert all(isinstance(i, Piece) and not i.bad for i in items[1:]) and np.array_equal(whole(items), line(0, 600))


@pytest.mark.parametrize("length, filled", [(1, True), (20, True), (25, True), (26, False), (1000, False)])
def test_a_short_hole_is_bridged_and_a_long_one_begins_anew(length, filled):
    c = Conditioner(FS, WINDOW)
    push(c, line(0, 1500), 0)
    c.gap(Gap(1500, length, "lost"))
    items = push(c, line(1500 + length, 100), 1500 + length)
    begun = [i for i in items if isinstance(i, Begin)]
    assert [(b.first, b.reason) for b in begun] == ([] if filled else [(1500 + length, "lost")])
    assert np.array_equal(whole(items), line(1500 if filled else 1500 + length, 100 + length * filled))
    assert any(i.bad == "gap" for i in items if isinstance(i, Piece)) == (filled and length > 20)


@pytest.mark.parametrize("reason", ["reset", "unplugged"])
def test_a_device_that_starts_anew_is_a_new_stream_however_short_the_hole(reason):
    c = Conditioner(FS, WINDOW)
    push(c, line(0, 10), 0)
    c.gap(Gap(10, 1, reason))
    assert push(c, line(11, 10), 11)[0] == Begin(11, reason)


def test_masked_moments_are_bad_beyond_the_budget_and_only_while_they_last():
    c = Conditioner(FS, WINDOW)
    items = push(c, line(0, 400), 0, lead_off=off(400, *range(100, 130)))
    assert [(p.first, p.uv.shape[1], p.bad) for p in items[1:]] == [(0, 120, ""), (120, 10, "lead-off"), (130, 270, "")]
    again = push(c, line(400, 300), 400, lead_off=off(300, 50))
    assert [(p.first, p.bad) for p in again] == [(400, ""), (450, "lead-off"), (451, "")]
    later = push(c, line(700, 800), 700, lead_off=off(800, 790))
    assert all(not p.bad for p in later)            # the others have left the window


def test_small_holes_add_up():
    c, bad = Conditioner(FS, WINDOW), []
    push(c, line(0, 10), 0)
    for k in range(60):
        first = 10 + 11 * k
        c.gap(Gap(first, 1, "lost"))
        bad += [p.bad for p in push(c, line(first + 1, 10), first + 1) if isinstance(p, Piece) and p.bad]
    assert set(bad) == {"gap"} and len(bad) == 40


def test_the_reason_is_what_most_moments_have():
    items = push(Conditioner(FS, WINDOW), line(0, 100), 0, lead_off=off(100, *range(10)), rail=off(100, *range(80)))
    assert {p.bad for p in items[1:]} == {"", "signal"}


def test_decisions_say_why_they_do_not_count_and_where_they_lie():
    m, graph = hop_model(leads=2)

    def exact(inputs):
        return reference.run(graph, {k: v[None] for k, v in inputs.items()})[0]
    local = Local(m, Engine(m, exact, 500), 500, clock=lambda: 10.0)
    c, uv = Conditioner(500, 2 * m.window), patient(500, 20, 2)
    found = []
    for at in range(0, uv.shape[1], 500):
        mask = off(500, *range(100, 200)) if at == 5000 else None
        for item in push(c, uv[:, at:at + 500], 7 + at, 9.99, mask):
            found += local.push(item)
    assert all(d.latency_ms == pytest.approx(10.0) for d in found)
    first = 7 + 2 * (SETTLE_S * m.fs + m.window)
    assert found[0].index == first and found[1].index == first + 2 * m.trigger.hop
    wrong = [d for d in found if d.unreliable]
    assert {d.unreliable for d in wrong} == {"lead-off"} and all(not d.present for d in wrong)
    assert all(len(d.present) == 1 for d in found if not d.unreliable)
    last = 5200 + 2 * (SETTLE_S * m.fs + m.window) + 7
    assert min(d.index for d in wrong) > 5100 and max(d.index for d in wrong) < last
