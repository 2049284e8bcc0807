# SPDX-License-Identifier: Apache-2.0
"""ProtoCentral's OpenView frames: golden frames of every board, text and false starts, damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.profiles import profiles
from firmware_bridge.protocols.openview import Decoder, Server
from firmware_bridge.timeline import Timeline

PROFILES = profiles("openview")
GOLDEN = {
    "ads1292r": ("0afa090002 85ff c801 0f00 4800 00 000b", [[-123, 456]]),
    "max30003": ("0afa0c0002 03005afe 2c030000 49000000 000b", [[-1685]]),
    "max30001": ("0afa0c0002 6bf9ffff 39300000 00000000 000b", [[-1685, 12345]]),
    "ads1293": ("0afa0c0002 00807900 cd627a00 339d7800 000b", None),
    "healthypi4": ("0afa140002 85ff c801 a0860100 c0d40100 420e 0f 61 48 50 78 00 000b", [[-123, 456]]),
    "healthypi5": ("0afa320003 fcffffff fdffffff feffffff ffffffff 00000000 01000000 02000000 03000000"
                   "00000000 01000000 02000000 03000000 48 0f 000b",
                   [[-4, 0], [-3, 0], [-2, 1], [-1, 1], [0, 2], [1, 2], [2, 3], [3, 3]]),
}


def frames(name, n, seed=0):
    """(frames, int32 (moment, channel)): every moment different, within each channel's range and pace."""
    p, rng = PROFILES[name], np.random.default_rng(seed)
    n *= p.per_frame
    limit = [min(c.high - c.zero, c.zero - c.low) // 2 for c in p.channels]
    step = [max(v // 2000, 1) for v in limit]
    counts = np.stack([c.zero + np.clip(np.cumsum(rng.integers(-s, s + 1, n)), -v, v)
                       for c, s, v in zip(p.channels, step, limit, strict=True)], 1).astype(np.int32)
    counts[:, 0] = p.channels[0].zero - 10_000 + np.arange(n) % 20_000     # tells which moment it is
    if p.per_frame > 1:
        counts[1::2, 1] = counts[::2, 1]                # two moments share a value of bioimpedance
    return Server(p).encode(counts, np.zeros(n, np.uint32), 0), counts


def decoded(name, parts):
    """(counts, numbers, decoder) of everything that comes out."""
    decoder = Decoder(PROFILES[name])
    blocks = [b for part in parts for b in decoder.feed(part, 0.0)]
    empty = np.zeros((0, len(PROFILES[name].channels)), np.int32)
    return (np.concatenate([empty, *(b.counts for b in blocks)]),
            np.concatenate([np.zeros(0, np.int64), *(b.counter for b in blocks)]), decoder)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames_have_their_values(name):
    data, expected = GOLDEN[name]
    counts, _, _ = decoded(name, [bytes.fromhex(data)])
    if name == "ads1293":
        c = PROFILES[name].channels
        uv = [(counts[0, k] - c[k].zero) * c[k].nv_per_count / 1000 for k in range(3)]
        assert uv == pytest.approx([0, 5000, -5000], abs=0.1)
    else:
        assert counts.tolist() == expected


def test_a_golden_max30003_frame_is_the_vendors_own_example():
    counts, _, _ = decoded("max30003", [bytes.fromhex(GOLDEN["max30003"][0])])
    assert counts[0, 0] * PROFILES["max30003"].channels[0].nv_per_count / 1e6 == pytest.approx(-0.642, abs=2e-3)


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_encoded_is_decoded_in_any_portions(name):
    sent, counts = frames(name, 400)
    found, numbers, decoder = decoded(name, portions(b"".join(sent)))
    assert np.array_equal(found, counts) and np.array_equal(numbers, np.arange(len(counts)))
    assert decoder.stats.noise == 0 and not decoder.stats.damaged


@pytest.mark.parametrize("name", PROFILES)
def test_text_false_starts_and_floods_cost_no_frame(name):
    sent, counts = frames(name, 20)
    each = PROFILES[name].per_frame
    flood = b"Initiliziation is done\r\n" * 40_000 + b"\0" * 1_000_000 + b"\x0a" * 100_000
    decoder_parts = [flood, b"\x0a" + sent[0], b"\x0a\xfa" + sent[1], b"MAX30001 Detected. Rev ID:  80\r\n", *sent[2:]]
    found, _, decoder = decoded(name, decoder_parts)
    assert np.array_equal(found, counts) and len(counts) == 20 * each
    assert len(decoder._held) <= 64 and decoder.stats.text > 900_000


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["ads1292r", "healthypi5"])
def test_damage_costs_the_frames_it_touched_and_no_other(name, fault, p):
    profile, each = PROFILES[name], PROFILES[name].per_frame
    sent, counts = frames(name, 16_000 // each)
    bad = damage(sent, fault, p, seed=3)
    decoder, line, runs = Decoder(profile), Timeline(profile, profile.fs, watched=profile.ecg), []
    for part in portions(bad.data, most=500):
        # a real line: what arrives at a time is what was sent until then
        now = decoder.stats.bytes / decoder.size * each / profile.fs
        runs += [r for block in decoder.feed(part, now) for r in line.push(block) if hasattr(r, "counts")]
    found = np.concatenate([r.counts for r in runs])
    known = {row.tobytes() for row in counts}
    right = np.array([row.tobytes() in known for row in found])
    untouched = int((~bad.touched).sum()) * each
    assert right.sum() >= untouched - max(0.001 * len(counts), each)
    share = (0.95 if fault == "flip" else 0.02) * bad.touched.sum() * each
    assert (~right).sum() <= share + each               # a flip inside of a payload is not seen: there is no CRC


@pytest.mark.parametrize("fault", ["drop", "insert"])
def test_what_follows_a_damaged_stretch_is_where_it_belongs(fault):
    profile = PROFILES["ads1292r"]
    bad = damage(frames("ads1292r", 5000)[0], fault, 1e-3, seed=5)
    found, numbers, _ = decoded("ads1292r", portions(bad.data))
    slip = (found[:, 0].astype(np.int64) - profile.channels[0].zero + 10_000) - numbers
    assert np.abs(slip).max() <= 1 and (slip == 0).mean() > 0.9


def test_lead_off_comes_from_the_frame_where_the_board_tells_it():
    sent = Server(PROFILES["healthypi4"]).encode(np.zeros((3, 2), np.int32), np.array([0, 1, 0], np.uint32), 0)
    block, = Decoder(PROFILES["healthypi4"]).feed(b"".join(sent), 0.0)
    assert block.lead_off.tolist() == [0, 1, 0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PROFILES)), st.lists(st.binary(max_size=300), max_size=12))
def test_no_bytes_break_the_decoder_or_are_lost_from_its_account(name, parts):
    decoder = Decoder(PROFILES[name])
    for part in parts:
        decoder.feed(part, 0.0)
    s = decoder.stats
    assert s.bytes == s.frames * decoder.size + s.noise + len(decoder._held) or s.unknown
    assert len(decoder._held) <= 64
