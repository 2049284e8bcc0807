# SPDX-License-Identifier: Apache-2.0
"""Shimmer3: golden frames, its clock, damage with and without a CRC, the dialogue with a device."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.profiles import profiles
from firmware_bridge.protocols.shimmer3 import GAINS, Decoder, Server, Talk
from firmware_bridge.protocols.shimmer3_frames import TICKS, TURN, crc, nv_per_count, profile_of
from firmware_bridge.timeline import Timeline
from train.say import MissingError, UserError

PROFILES = profiles("shimmer3")
SHAPES = PROFILES | {"one chip": profile_of(chips=(1,)), "16 bits": profile_of(bits=16, checked=False),
                     "250 Hz": profile_of(fs=TICKS / 131, checked=False)}


def device(profile):
    """A server that streams as the profile says."""
    server = Server(profile, profile.fs)
    server.hear(b"\x8b" + bytes([2 * (profile.check == "crc16")]) + b"\x07")
    return server


def frames(profile, n, seed=0, first=0):
    """(frames, int32 (n, channel)): ECG-like counts, every moment different."""
    rng = np.random.default_rng(seed)
    unit = profile.channels[0].high // 8_000
    counts = np.cumsum(rng.integers(-5 * unit, 5 * unit + 1, (n, len(profile.channels))), 0)
    counts = (counts + 4000 * unit) % (8000 * unit) - 4000 * unit
    counts[:, 0] = (np.arange(first, first + n) * 3) % (8000 * unit) - 4000 * unit      # tells which frame it is
    return device(profile).encode(counts.astype(np.int32), np.zeros(n, np.uint32), first), counts.astype(np.int32)


def decoded(profile, parts):
    """(counts, clocks, decoder) of everything that comes out."""
    decoder = Decoder(profile)
    blocks = [b for part in parts for b in decoder.feed(part, 0.0)]
    empty = np.zeros((0, len(profile.channels)), np.int32)
    return (np.concatenate([empty, *(b.counts for b in blocks)]),
            np.concatenate([np.zeros(0, np.int64), *(b.counter for b in blocks)]), decoder)


def test_the_golden_frame_is_made_and_read():
    golden = bytes.fromhex("00 400000 80 0003e8 fffc18")
    profile = profile_of(chips=(1,), checked=False)
    made = device(profile).encode(np.array([[1000, -1000]] * 5, np.int32), np.zeros(5, np.uint32), 1)
    assert made[0] == golden
    counts, clocks, _ = decoded(profile, [b"".join(made)])
    assert counts[0].tolist() == [1000, -1000] and clocks.tolist() == [64, 128, 192, 256]


@pytest.mark.parametrize("n, expected", [(8, "aa48"), (9, "5d2a"), (10, "178b"), (11, "4e79")])
def test_the_crc_is_that_of_the_firmwares_own_test(n, expected):
    assert crc(bytes(range(1, n + 1))).hex() == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", [0, TURN // 64 - 500])
def test_what_is_encoded_is_decoded_in_any_portions(shape, first):
    profile = SHAPES[shape]
    sent, counts = frames(profile, 1000, first=first)
    found, clocks, decoder = decoded(profile, portions(b"".join(sent), most=60))
    whole = 1000 - (profile.check != "crc16")           # without a CRC the next frame has to begin
    step = round(TICKS / profile.fs)
    assert np.array_equal(found, counts[:whole])
    assert np.array_equal(clocks, (first + np.arange(whole)) * step % TURN)
    assert decoder.stats.noise == 0 and not decoder.stats.damaged


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", [1, 5, 10])
def test_a_decoder_that_joins_mid_frame_loses_that_frame_alone(shape, cut):
    sent, counts = frames(SHAPES[shape], 50)
    found, _, _ = decoded(SHAPES[shape], [b"".join(sent)[cut:]])
    assert np.array_equal(found[:48], counts[1:49])


@pytest.mark.parametrize("name", PROFILES)
def test_text_nuls_and_noise_are_passed_over_in_bounded_memory(name):
    sent, counts = frames(PROFILES[name], 40)
    noise = np.random.default_rng(2).integers(0, 256, 200_000, np.uint8).tobytes()
    flood = [b"\0" * 300_000, b"Shimmer says nothing\r\n" * 20_000, noise]
    found, _, decoder = decoded(PROFILES[name], [*flood, b"".join(sent)])
    assert np.array_equal(found[-36:], counts[-36:] if len(found) > 39 else counts[-37:-1]) and len(found) <= 40
    assert len(decoder._held) <= 17 * decoder.layout.size and decoder.stats.text > 400_000


@pytest.mark.parametrize("name", PROFILES)
def test_a_clock_that_is_a_tick_late_is_set_right(name):
    sent, _ = frames(PROFILES[name], 40)
    late = np.random.default_rng(1).integers(0, 3, 40)
    late[0] = 0
    size = 18
    moved = []
    for frame, ticks in zip(sent, late, strict=True):
        body = frame[:1] + (int.from_bytes(frame[1:4], "little") + int(ticks)).to_bytes(3, "little") + frame[4:size]
        moved.append(body + (crc(body) if len(frame) > size else b""))
    _, clocks, _ = decoded(PROFILES[name], [b"".join(moved)])
    assert np.array_equal(clocks, np.arange(len(clocks)) * 64) and len(clocks) >= 39


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("lost", [1, 50, 3000])
def test_frames_that_never_came_are_a_gap_of_their_length(name, lost):
    profile = PROFILES[name]
    sent, counts = frames(profile, 4000)
    line, decoder = Timeline(profile, profile.fs), Decoder(profile)
    out = []
    for k, frame in enumerate(sent):
        if not 500 <= k < 500 + lost:
            out += [item for block in decoder.feed(frame, k / profile.fs) for item in line.push(block)]
    gaps = [(g.first, g.length) for g in out if hasattr(g, "length")]
    assert gaps == [(500, lost)]
    found = np.concatenate([r.counts for r in out if hasattr(r, "counts")])
    assert np.array_equal(found, np.delete(counts, np.arange(500, 500 + lost), 0)[:len(found)]) and \
        len(found) >= 3999 - lost


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PROFILES)
def test_damage_costs_the_frames_it_touched_and_no_other(name, fault, p):
    profile = PROFILES[name]
    sent, counts = frames(profile, 12_003)
    bad = damage(sent[:-3], fault, p, seed=3)
    decoder, line, runs = Decoder(profile), Timeline(profile, profile.fs), []
    for part in portions(bad.data + b"".join(sent[-3:]), most=2000):
        now = decoder.stats.bytes / decoder.layout.size / profile.fs
        runs += [r for block in decoder.feed(part, now) for r in line.push(block) if hasattr(r, "counts")]
    found = np.concatenate([r.counts for r in runs])
    known = {row.tobytes() for row in counts[:-3]}
    right = sum(row.tobytes() in known for row in found)
    touched, n = int(bad.touched.sum()), len(bad.touched)
    wrong = len(found) - right - len(counts[-3:]) + (profile.check != "crc16")
    assert right >= n - touched - 0.001 * n
    share = 0.0 if profile.check == "crc16" else {"drop": 0.01, "insert": 0.09, "flip": 0.5}[fault]
    assert wrong <= share * touched + (2 if share else 0)


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 30).map(bytes)), max_size=12))
def test_no_bytes_break_the_decoder_or_are_lost_from_its_account(name, parts):
    decoder = Decoder(PROFILES[name])
    for part in parts:
        decoder.feed(part, 0.0)
    s, size = decoder.stats, decoder.layout.size
    assert s.bytes == s.frames * size + s.noise + len(decoder._held) and len(decoder._held) <= 17 * size


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_frames_cut_and_mixed_with_noise_keep_the_account(name, data):
    sent, counts = frames(PROFILES[name], 30)
    raw = bytearray(b"".join(sent))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at:at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    found, _, decoder = decoded(PROFILES[name], portions(bytes(raw), most=50))
    s = decoder.stats
    assert s.bytes == s.frames * decoder.layout.size + s.noise + len(decoder._held) and len(found) == s.frames
    if name == "shimmer3":
        known = {row.tobytes() for row in counts}
        assert all(row.tobytes() in known for row in found)


def test_a_leap_there_and_back_is_suspect_without_a_crc_and_a_step_is_not():
    profile = PROFILES["shimmer3-plain"]
    _, counts = frames(profile, 30)
    counts[10, 1] += 100_000
    counts[20:, 2] += 100_000
    block, = Decoder(profile).feed(b"".join(device(profile).encode(counts, np.zeros(30, np.uint32), 0)), 0.0)
    assert np.argwhere(block.suspect).tolist() == [[10, 1]]


class Line:
    """A line to a Server."""

    def __init__(self, server=None):
        self.server, self.out, self.now = server or Server(), b"", 0.0

    def write(self, data):
        self.out += self.server.hear(data)

    def read(self, seconds):
        data, self.out = self.out, b""
        self.now += 0.001 if data else seconds
        return data

    def clock(self):
        return self.now


@pytest.mark.parametrize("gain", sorted(GAINS))
@pytest.mark.parametrize("shape", ["shimmer3", "one chip", "16 bits", "250 Hz"])
def test_the_dialogue_sets_up_what_was_asked_for_and_the_stream_follows(gain, shape):
    line = Line()
    line.server.streaming, line.server.crc, line.server.sensors = True, 2, 0x84     # left on by another program
    profile, rest = Talk(SHAPES[shape], gain).begin(line)
    wanted = SHAPES[shape]
    assert line.server.streaming and rest == b"" and profile.fs == line.server.fs == wanted.fs
    assert profile.check == wanted.check and [c.name for c in profile.channels] == [c.name for c in wanted.channels]
    bits = 16 if wanted.channels[0].high < 1 << 16 else 24
    assert profile.channels[0].nv_per_count == pytest.approx(nv_per_count(gain, bits))
    # the server measures volts: 0.1 mV on every channel
    unit = line.server.profile.channels[0].nv_per_count
    counts = np.full((8, 4), round(1e5 / unit), np.int32)
    block, = Decoder(profile).feed(b"".join(line.server.encode(counts, np.zeros(8, np.uint32), 0)), 0.0)
    uv = block.counts * profile.channels[0].nv_per_count / 1000
    half = profile.channels[0].nv_per_count / 2000
    assert uv.ravel() == pytest.approx(counts[0, 0] * unit / 1000, abs=half * 1.001) and len(uv) >= 7
    Talk().end(line)
    assert not line.server.streaming


def test_firmware_without_a_crc_is_heard_without():
    server = Server()
    server.hear = lambda data, hear=server.hear: b"" if data[:1] == b"\x8b" else hear(data)
    profile, _ = Talk().begin(Line(server))
    assert profile.check == "trailer" and server.streaming and server.crc == 0


def test_an_electrode_that_is_off_is_told_once_the_dialogue_has_its_watch_set():
    line = Line()
    off = np.array([0, 1, 2, 3, 8], np.uint32)
    assert all(f[4] == f[11] == 0x80 for f in line.server.encode(np.zeros((5, 4), np.int32), off, 0))
    profile, _ = Talk().begin(line)
    block, = Decoder(profile).feed(b"".join(line.server.encode(np.zeros((5, 4), np.int32), off, 0)), 0.0)
    assert block.lead_off.tolist() == [0, 1, 2, 3, 8]


@pytest.mark.parametrize("kind, words, error", [(None, "no Shimmer3", MissingError), (10, "kind 10", UserError)])
def test_what_is_no_shimmer3_is_told(kind, words, error):
    server = Server()
    server.hear = lambda data, hear=server.hear: b"" if kind is None else hear(data).replace(b"\x25\x03", b"\x25\x0a")
    with pytest.raises(error, match=words):
        Talk().begin(Line(server))


@pytest.mark.parametrize("wrong", [{"gain": 5}, {"fs": 2000}])
def test_what_the_device_or_the_line_cannot_do_is_refused(wrong):
    with pytest.raises(UserError):
        Talk(**wrong)
