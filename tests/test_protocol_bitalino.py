# SPDX-License-Identifier: Apache-2.0
"""BITalino: the golden frame, alignment without a start marker, what four bits of CRC leave, the talk with a device."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.leads import wire
from firmware_bridge.profiles import profiles
from firmware_bridge.protocols import bitalino
from firmware_bridge.protocols.bitalino import Decoder, Server, Talk, frame_size
from firmware_bridge.timeline import Timeline
from train.say import MissingError, UserError

PROFILES = profiles("bitalino")


def started(profile):
    """A device of a profile that was told to start."""
    server = Server(profile)
    server.hear(bytes([Talk(profile).mask << 2 | 1]))
    return server


def frames(name, n, seed=0):
    """(frames, int32 (n, channel)): every moment different, at the pace of an ECG at most."""
    profile, rng = PROFILES[name], np.random.default_rng(seed)
    ramp = 400 - np.abs(np.arange(n) % 1600 - 800) + 512
    counts = np.stack([ramp if c.high > 63 else 20 + np.arange(n) // 16 % 20 for c in profile.channels], 1)
    counts = counts + rng.integers(-2, 3, counts.shape)
    return started(profile).encode(counts.astype(np.int32), np.zeros(n, np.uint32), 0), counts.astype(np.int32)


def decoded(name, parts):
    """(counts, numbers, decoder) of everything that comes out."""
    decoder = Decoder(PROFILES[name])
    blocks = [b for part in parts for b in decoder.feed(part, 0.0)]
    empty = np.zeros((0, len(PROFILES[name].channels)), np.int32)
    return (np.concatenate([empty, *(b.counts for b in blocks)]),
            np.concatenate([np.zeros(0, np.int64), *(b.counter for b in blocks)]), decoder)


def test_the_golden_frame_is_made_and_read():
    golden = bytes.fromhex("f00a5f")
    server = started(PROFILES["bitalino-ecg"])
    assert server.encode(np.array([[700]], np.int32), np.zeros(1, np.uint32), 5) == [golden]
    assert bitalino.unpack(np.frombuffer(golden, np.uint8)[None], 1).tolist() == [[700]]


def test_the_ecg_sensor_spans_three_millivolts():
    channel = PROFILES["bitalino-ecg"].channels[0]
    assert (channel.high - channel.zero) * channel.nv_per_count / 1e6 == pytest.approx(1.497, abs=1e-3)


@pytest.mark.parametrize("channels, size", [(1, 3), (2, 4), (3, 6), (4, 7), (5, 8), (6, 8)])
def test_frames_of_any_channels_have_their_size_and_come_back(channels, size):
    assert frame_size(channels) == size
    high = np.array([1023] * 4 + [63] * 2)[:channels]
    counts = np.random.default_rng(1).integers(0, high + 1, (200, channels)).astype(np.int32)
    packed = bitalino.pack(counts, 9)
    assert packed.shape == (200, size) and np.array_equal(bitalino.unpack(packed, channels), counts)
    assert np.array_equal(packed[:, -1] >> 4, (np.arange(200) + 9) % 16)


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_encoded_is_decoded_in_any_portions(name):
    sent, counts = frames(name, 1000)
    found, numbers, decoder = decoded(name, portions(b"".join(sent), most=40))
    assert np.array_equal(found, counts[:-1]) and np.array_equal(numbers, np.arange(999))
    assert decoder.stats.noise == 0 and not decoder.stats.damaged


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_decoder_that_joins_mid_frame_loses_that_frame_alone(cut):
    sent, counts = frames("bitalino", 50)
    found, _, _ = decoded("bitalino", [b"".join(sent)[cut:]])
    assert np.array_equal(found, counts[1:-1])


@pytest.mark.parametrize("name", PROFILES)
def test_text_nuls_and_noise_are_passed_over_in_bounded_memory(name):
    sent, counts = frames(name, 40)
    rng = np.random.default_rng(2)
    flood = [b"\0" * 1_000_000, b"BITalino_v5.2\n" * 20_000, rng.integers(0, 256, 20_000, np.uint8).tobytes()]
    found, _, decoder = decoded(name, [*flood, b"".join(sent)])
    assert np.array_equal(found[-36:], counts[-37:-1]) and len(found) < 60
    assert len(decoder._held) <= (bitalino.WINDOW + 3) * decoder.size


@pytest.mark.parametrize("lost", [1, 3, 15])
def test_whole_frames_that_never_came_are_counted(lost):
    sent, _ = frames("bitalino", 60)
    del sent[20:20 + lost]
    _, numbers, _ = decoded("bitalino", portions(b"".join(sent), most=40))
    assert np.array_equal(numbers, np.delete(np.arange(59), np.arange(20, 20 + lost)))


@pytest.mark.parametrize("bad", [3, 18, 100])
def test_the_bytes_that_were_lost_say_how_many_turns_the_sequence_took(bad):
    sent, _ = frames("bitalino", 200)
    for k in range(20, 20 + bad):
        sent[k] = b"\xff" * 8
    _, numbers, decoder = decoded("bitalino", portions(b"".join(sent), most=40))
    assert np.array_equal(numbers, np.delete(np.arange(199), np.arange(20, 20 + bad)))
    assert decoder.stats.damaged == {"crc": bad}


@pytest.mark.parametrize("name", PROFILES)
def test_words_between_frames_are_not_taken_for_frames_that_were_lost(name):
    sent, _ = frames(name, 100)
    sent[50] = b"I (4711) adc: temperature 41, and more of that\r\n" + sent[50]
    _, numbers, decoder = decoded(name, portions(b"".join(sent), most=40))
    assert np.array_equal(numbers, np.arange(99)) and decoder.stats.text == decoder.stats.noise == 48


def received(name, fault, p, n=12_000):
    """(right of the decoder, right behind a timeline, damage): bool by moment, whether it is the one that was sent."""
    profile = PROFILES[name]
    sent, counts = frames(name, n + 4)              # three in front for a decoder to begin with, one behind the last
    bad = damage(sent[3:-1], fault, p, seed=3)
    decoder, line, raw, clean = Decoder(profile), Timeline(profile, profile.fs, profile.ecg), [], []
    for part in portions(b"".join([*sent[:3], bad.data, sent[-1]]), most=500):
        now = decoder.stats.bytes / decoder.size / profile.fs
        for block in decoder.feed(part, now):
            raw += zip(block.counter, block.counts, strict=True)
            clean += [(r.first + k, row) for r in line.push(block) if hasattr(r, "counts")
                      for k, row in enumerate(r.counts)]
    fine = list(profile.ecg)
    return [np.array([k < len(counts) and np.array_equal(counts[k, fine], row[fine]) for k, row in found])
            for found in (raw, clean)] + [bad]


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PROFILES)
def test_damage_costs_the_frames_it_touched_and_little_of_it_passes(name, fault, p):
    raw, clean, bad = received(name, fault, p)
    n, touched = len(bad.touched) + 3, int(bad.touched.sum())
    assert min(raw.sum(), clean.sum()) >= n - touched - 0.001 * n
    # four bits of CRC alone would let 6.3 % pass
    share = 0.005 if fault != "insert" else 0.02 if name == "bitalino" else 0.04
    assert (~raw).sum() <= share * touched + 2 and (~clean).sum() <= (~raw).sum()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PROFILES)), st.lists(st.binary(max_size=300), max_size=12))
def test_no_bytes_break_the_decoder_or_are_lost_from_its_account(name, parts):
    decoder = Decoder(PROFILES[name])
    for part in parts:
        decoder.feed(part, 0.0)
    s = decoder.stats
    assert s.bytes == s.frames * decoder.size + s.noise + len(decoder._held)
    assert len(decoder._held) <= (bitalino.WINDOW + 3) * decoder.size


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_frames_cut_and_mixed_with_noise_keep_the_account_and_the_order(name, data):
    raw = bytearray(b"".join(frames(name, 60)[0]))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at:at + data.draw(st.integers(0, 60))] = data.draw(st.binary(max_size=60))
    found, numbers, decoder = decoded(name, portions(bytes(raw), most=50))
    s = decoder.stats
    assert s.bytes == s.frames * decoder.size + s.noise + len(decoder._held)
    assert len(found) == s.frames and (np.diff(numbers) > 0).all()


def test_a_leap_there_and_back_is_suspect_and_a_step_is_not():
    profile = PROFILES["bitalino"]
    _, counts = frames("bitalino", 30)
    counts[10, 1] += 150
    counts[20:, 2] += 200
    block, = Decoder(profile).feed(b"".join(started(profile).encode(counts, np.zeros(30, np.uint32), 0)), 0.0)
    assert np.argwhere(block.suspect).tolist() == [[10, 1]]


class Device:
    """A line to a Server that notes when each byte of command came."""

    def __init__(self, profile=PROFILES["bitalino"]):
        self.server, self.out, self.now, self.said = Server(profile), b"", 0.0, []

    def write(self, data):
        self.said.append((self.now, data))
        self.out += self.server.hear(data)

    def read(self, seconds):
        data, self.out = self.out, b""
        self.now += 0.001 if data else seconds
        return data

    def clock(self):
        return self.now


@pytest.mark.parametrize("channels, fs, mask",
                         [(None, None, 0b111111), (("A2",), 100, 0b10), (("A5", "A1"), 10, 0b10001)])
def test_the_talk_starts_the_channels_and_the_rate_asked_for(channels, fs, mask):
    device = Device()
    device.server.streaming = True                      # left on by another program
    talk = Talk(channels=channels, fs=fs)
    profile, rest = talk.begin(device)
    assert device.server.streaming and device.server.fs == profile.fs == (fs or 1000) and rest == b""
    assert device.server.chosen == tuple(k for k in range(6) if mask >> k & 1)
    assert [c.name for c in profile.channels] == [bitalino.NAMES[k] for k in device.server.chosen]
    times = [t for t, _ in device.said]
    assert all(len(data) == 1 for _, data in device.said) and min(np.diff(times)) >= bitalino.PAUSE_S - 1e-9
    counts = np.full((5, 6), 30, np.int32)
    block, = Decoder(profile).feed(b"".join(device.server.encode(counts, np.zeros(5, np.uint32), 0)), 0.0)
    assert block.counts[0, 0] == 30 and len(block.counts) == 4
    talk.end(device)
    assert not device.server.streaming


def test_a_device_that_does_not_answer_is_told():
    device = Device()
    device.server.hear = lambda data: b""
    with pytest.raises(MissingError, match="no BITalino"):
        Talk().begin(device)


@pytest.mark.parametrize("wrong", [{"fs": 250}, {"channels": ("A9",)}])
def test_what_the_device_cannot_do_is_refused(wrong):
    with pytest.raises(UserError):
        Talk(**wrong)


def test_the_ecg_sensor_is_the_lead_that_a_model_wants():
    for wanted in (None, ("I",), ("II",)):
        wiring = wire(PROFILES["bitalino"], wanted)
        assert [PROFILES["bitalino"].channels[s.place].name for s in wiring.sources.values()] == ["A2"]
