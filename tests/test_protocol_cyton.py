# SPDX-License-Identifier: Apache-2.0
"""OpenBCI Cyton: the golden frame, resynchronisation, damage, the talk with a board."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.profiles import find
from firmware_bridge.protocols import cyton
from firmware_bridge.protocols.cyton import Decoder, Server, Talk
from firmware_bridge.timeline import Timeline
from train.say import MissingError

GOLDEN = bytes.fromhex("a007 0003e8 fffc18 000000 7fffff 800000 000001 000002 000003 0064ff381f40 c0")
PROFILE = find("cyton")


def frames(n, seed=0, first=0):
    """(frames, int32 (n, 8)): ECG-like counts, every one different."""
    rng = np.random.default_rng(seed)
    counts = np.cumsum(rng.integers(-4000, 4000, (n, 8)), 0).astype(np.int32)
    counts[:, 0] = np.arange(first, first + n) * 3 - 40_000       # tells which frame it is
    server = Server()
    return server.encode(counts, np.zeros(n, np.uint32), first), counts


def decoded(parts, decoder=None):
    """int32 (moment, 8) and counters of everything that comes out."""
    decoder = decoder or Decoder()
    blocks = [b for part in parts for b in decoder.feed(part, 0.0)]
    if not blocks:
        return np.zeros((0, 8), np.int32), np.zeros(0, np.int64), decoder
    return np.concatenate([b.counts for b in blocks]), np.concatenate([b.counter for b in blocks]), decoder


def test_the_golden_frame_has_its_values():
    counts, counter, _ = decoded([GOLDEN + b"\xa0"])
    assert counts.tolist() == [[1000, -1000, 0, 8388607, -8388608, 1, 2, 3]] and counter.tolist() == [7]
    assert counts[0, 0] * PROFILE.channels[0].nv_per_count / 1000 == pytest.approx(22.351744, abs=1e-5)


def test_what_is_encoded_is_decoded_in_any_portions():
    sent, counts = frames(1000)
    found, counter, decoder = decoded(portions(b"".join(sent) + b"\xa0"))
    assert np.array_equal(found, counts) and np.array_equal(counter, np.arange(1000) % 256)
    assert decoder.stats.frames == 1000 and decoder.stats.noise == 0 and not decoder.stats.damaged


@pytest.mark.parametrize("cut", [1, 17, 32])
def test_a_decoder_that_joins_mid_frame_loses_that_frame_alone(cut):
    sent, counts = frames(50)
    found, _, _ = decoded([b"".join(sent)[cut:] + b"\xa0"])
    assert np.array_equal(found, counts[1:])


def test_text_nuls_and_start_bytes_are_passed_over_in_bounded_memory():
    sent, counts = frames(20)
    flood = b"\0" * 1_000_000 + b"OpenBCI V3 $$$\n" * 20_000 + b"\xa0" * 100_000
    decoder = Decoder()
    found, _, _ = decoded([flood, b"".join(sent) + b"\xa0"], decoder)
    assert np.array_equal(found[-19:], counts[-19:]) and len(found) <= 20
    assert len(decoder._held) <= 64 and decoder.stats.text >= 300_000


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_costs_the_frames_it_touched_and_no_other(fault, p):
    sent, counts = frames(20_000)
    bad = damage(sent, fault, p, seed=3)
    line = Timeline(PROFILE, 250.0)
    decoder, runs = Decoder(), []
    for k, part in enumerate(portions(bad.data + b"\xa0", most=2000)):
        for block in decoder.feed(part, k * 1000 / 33 / 250):
            runs += [r for r in line.push(block) if hasattr(r, "counts")]
    found = np.concatenate([r.counts for r in runs])
    known = {row.tobytes() for row in counts}
    right = np.array([row.tobytes() in known for row in found])
    untouched = int((~bad.touched).sum())
    assert right.sum() >= untouched - max(0.001 * len(sent), 1)
    wrong = int((~right).sum())
    # without a CRC a flipped bit of the samples stays: only leaps are seen
    assert wrong <= (0.8 * bad.touched.sum() if fault == "flip" else 0.02 * bad.touched.sum() + 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=12))
def test_no_bytes_break_the_decoder_or_are_lost_from_its_account(parts):
    decoder = Decoder()
    for part in parts:
        decoder.feed(part, 0.0)
    s = decoder.stats
    assert s.bytes == s.frames * 33 + s.noise + len(decoder._held) and len(decoder._held) <= 64


def test_a_leap_there_and_back_is_suspect_and_a_step_is_not():
    sent, counts = frames(30)
    counts[10, 1] += 6_000_000
    counts[20:, 2] += 5_000_000
    sent = Server().encode(counts, np.zeros(30, np.uint32), 0)
    block, = Decoder().feed(b"".join(sent) + b"\xa0", 0.0)
    assert np.argwhere(block.suspect[:-1]).tolist() == [[10, 1]]


class Board:
    """A line to a Server."""

    def __init__(self):
        self.server, self.out, self.now = Server(), b"", 0.0

    def write(self, data):
        self.out += self.server.hear(data)

    def read(self, seconds):
        data, self.out = self.out, b""
        self.now += 0.0 if data else seconds
        return data

    def clock(self):
        return self.now


@pytest.mark.parametrize("gain", cyton.GAINS)
def test_the_talk_starts_a_board_on_the_gain_asked_for(gain):
    board = Board()
    profile, rest = Talk(gain=gain).begin(board)
    assert board.server.streaming and board.server.gains == [gain] * 8 and rest == b""
    assert profile.channels[0].nv_per_count == pytest.approx(4.5e9 / 8388607 / gain)
    Talk().end(board)
    assert not board.server.streaming


@pytest.mark.parametrize("answer, words", [(b"", "no Cyton"), (b"Failure: timeout", "dongle")])
def test_a_board_that_does_not_answer_is_told(answer, words):
    board = Board()
    board.server.hear = lambda data: answer if data == b"v" else b""
    with pytest.raises(MissingError, match=words):
        Talk().begin(board)
