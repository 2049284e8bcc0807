# SPDX-License-Identifier: Apache-2.0
"""Our own firmware as a front-end: golden bytes, damage, what else it says, the lease, and resets of the board."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edgelink import ABOUT, FRAMES, GOLDEN
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.profiles import find
from firmware_bridge.protocols.edgelink import OTHER_BOOT, Board, Decoder, Heard, Server, Talk, _channels
from firmware_bridge.session import Gap
from firmware_bridge.timeline import Timeline
from firmware_bridge.wire import Block, Note
from targets import edgelink
from targets.edgelink import Message, encode
from train.say import MissingError, UserError

PROFILE = find("edgelink")


def profile(channels: int = 2) -> Board:
    """A board of its own, so that tests share nothing."""
    return replace(PROFILE, channels=_channels(channels, 1000.0)).hearing(Heard())


def ecg(n: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """int32 (n, channel), every row different."""
    counts = np.cumsum(np.random.default_rng(seed).integers(-300, 300, (n, channels)), 0).astype(np.int32)
    counts[:, 0] = np.arange(n) - n // 2
    return counts


def sent(counts: np.ndarray, off=None, first: int = 0) -> list[bytes]:
    return Server(profile(counts.shape[1])).encode(counts, np.zeros(len(counts), np.uint32) if off is None else off,
                                                   first)


def decoded(parts, decoder=None):
    """(blocks, notes, decoder)"""
    decoder = decoder or Decoder(profile())
    items = [i for part in parts for i in decoder.feed(part, 0.0)]
    return [i for i in items if isinstance(i, Block)], [i for i in items if isinstance(i, Note)], decoder


def test_the_golden_frames_are_those_of_the_firmware():
    blocks, _, decoder = decoded([bytes.fromhex(GOLDEN["samples"])])
    block, = blocks
    assert block.counts.tolist() == FRAMES["samples"][0].payload.data.tolist() == [[-1, 255], [0, -8388608],
                                                                                   [8388607, 1]]
    assert block.counter.tolist() == [1000, 1001, 1002] and block.lead_off.tolist() == [2, 2, 2]
    assert block.suspect is None and decoder.stats.frames == 1 and decoder.stats.noise == 0
    decoder.feed(bytes.fromhex(GOLDEN["result"]), 3.5)
    (result, at), = decoder.heard.results
    assert (result.number, result.first_index, at) == (5, 2250, 3.5) and result.scores.tolist() == [-5, 17, -128, 127]


def test_what_the_simulated_board_sends_is_decoded_in_any_portions():
    counts, off = ecg(1000), np.repeat(np.array([0, 1, 0, 2], np.uint32), 250)
    blocks, notes, decoder = decoded(portions(b"".join(sent(counts, off, 77))))
    assert np.array_equal(np.concatenate([b.counts for b in blocks]), counts) and not notes
    assert np.array_equal(np.concatenate([b.counter for b in blocks]), np.arange(77, 1077))
    assert np.array_equal(np.concatenate([b.lead_off for b in blocks]), off)
    assert decoder.stats.frames == 104 and not decoder.stats.damaged and not decoder.stats.noise


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_costs_the_frames_it_touched_and_brings_no_wrong_one(fault, p):
    counts = ecg(20_000)
    frames = sent(counts)
    bad = damage(frames, fault, p, seed=5)
    line, found, gaps = Timeline(PROFILE, 250.0), [], 0
    decoder = Decoder(profile())
    for k, part in enumerate(portions(bad.data, most=2000)):
        for block in decoder.feed(part, k * 4.0 / 25):
            for part in line.push(block):
                if isinstance(part, Gap):
                    gaps += part.length
                else:
                    found.append(part)
    start = int(np.flatnonzero((counts == found[0].counts[0]).all(1))[0])
    for run in found:           # behind the CRC every moment is right and has its own index
        assert np.array_equal(run.counts, counts[start + run.first:start + run.first + len(run.counts)])
    whole = sum(len(r.counts) for r in found)
    assert whole >= 10 * int((~bad.touched).sum()) - 0.001 * len(counts)
    assert whole + gaps == found[-1].first + len(found[-1].counts) and bad.touched.any() == (gaps > 0)
    assert decoder.stats.damaged.get("crc", 0) + decoder.stats.damaged.get("lost", 0) > 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), st.sampled_from([bytes.fromhex(g) for g in GOLDEN.values()])),
                max_size=12))
def test_no_bytes_break_the_decoder_or_fill_its_memory(parts):
    decoder = Decoder(profile())
    for part in parts:
        for item in decoder.feed(part, 0.0):
            assert not isinstance(item, Block) or len(item.counts) == len(item.counter) == len(item.lead_off) > 0
    s = decoder.stats
    assert s.bytes == sum(map(len, parts)) and s.noise <= s.bytes and len(decoder.heard.results) <= 256


def test_floods_of_text_nuls_and_endless_frames_are_passed_over():
    counts = ecg(100)
    flood = b"\0" * 100_000 + b"rst:0x1 (POWERON_RESET)\r\n" * 20_000 + b"\x01" * 500_000
    blocks, _, decoder = decoded([flood + b"\0", b"".join(sent(counts))])
    assert np.array_equal(np.concatenate([b.counts for b in blocks]), counts)
    assert len(decoder._framer._part) <= edgelink.LONGEST and decoder.stats.noise >= 900_000


def told(payload, seq: int = 0) -> bytes:
    return encode(Message(payload, seq, 0))


STATUS = edgelink.Status(*(0,) * 14)


def test_words_errors_and_losses_of_the_board_are_notes():
    decoder = Decoder(profile())
    data = told(edgelink.Log(2, "battery low")) + told(edgelink.Error(7, 2, "samples are not taken"))
    data += told(STATUS) + told(replace(STATUS, overruns=12)) + told(edgelink.Ack(3, 5, 6))
    _, notes, _ = decoded([data], decoder)
    assert [(n.level, n.text) for n in notes] == [
        ("warning", "battery low"), ("error", "samples are not taken: no START came before it"),
        ("warning", "the board lost 12 samples of its sensor"),
        ("error", "the board refuses frame 0x05: a value outside the range of the setting")]
    assert decoder.stats.overruns == 12


def test_frames_of_another_board_and_of_later_versions_are_counted_and_left():
    other = told(edgelink.Samples.of(0, np.zeros((10, 3), int)))
    foreign = bytearray(edgelink.HEAD.pack(0x20, 0x10, 1, 0))
    from cobs import cobs
    data = b"\0" + cobs.encode(bytes(foreign) + edgelink.crc16(foreign).to_bytes(2, "little")) + b"\0"
    blocks, _, decoder = decoded([other, data])
    assert not blocks and decoder.stats.damaged == {"channels": 1, "version": 1}


def test_a_frame_that_was_damaged_is_counted_once_and_one_that_never_came_too():
    frames = sent(ecg(100))
    frames[3] = frames[3][:9] + bytes([frames[3][9] ^ 64]) + frames[3][10:]
    del frames[6:8]
    _, _, decoder = decoded(frames)
    assert decoder.stats.damaged == {"crc": 1, "lost": 2} and decoder.stats.frames == 8


def test_a_result_that_is_missing_is_asked_for_and_taken_once():
    def result(n):
        return told(edgelink.Result(n, 10 * n, 1, 0, 160, 0, 0, 0, 3, 0, np.zeros(3)))
    host, decoder = Talk(profile()), Decoder(profile())
    host.heard = heard = decoder.heard
    heard.about = ABOUT
    board = Wire(Server(profile()))
    host._device = edgelink_device(board)
    decoder.feed(result(0) + result(1) + result(3) + result(4), 1.0)
    assert [r.number for r, _ in heard.results] == [0, 1] and heard.again
    host.keep(board)
    asked = board.heard[-1]
    assert asked.payload.flags & 2 and asked.payload.next_result == 2
    decoder.feed(result(5), 2.0)                            # was on its way
    decoder.feed(told(edgelink.Ack(asked.seq, 3, 0)) + result(3) + result(4), 3.0)     # 2 was let go by the board
    decoder.feed(result(3) + result(5), 4.0)
    assert [r.number for r, _ in heard.results] == [0, 1, 3, 4, 5] and heard.skipped == 1 and not heard.again


# ---- the talk

class Wire:
    """A line to a Server; heard: the host's messages."""

    def __init__(self, server):
        self.server, self.out, self.now, self.heard = server, b"", 0.0, []
        self._framer = edgelink.Framer()

    def write(self, data):
        self.heard += self._framer.feed(data)
        self.out += self.server.hear(data)

    def read(self, seconds):
        data, self.out = self.out, b""
        self.now += 0.0 if data else seconds
        return data

    def clock(self):
        return self.now


def edgelink_device(line):
    from targets.device import Device
    return Device(line)


def test_the_talk_takes_the_boards_word_for_channels_rate_and_scale_and_loses_no_sample():
    server = Server(profile(3), 500.0)
    line = Wire(server)
    line.heard = []
    counts, hear = ecg(30, 3), server.hear

    def and_go_on(data):        # the first samples come with the answer to START
        out = hear(data)
        return out + b"".join(server.encode(counts, np.zeros(30, np.uint32), 0)) if server.streaming else out
    server.hear = and_go_on
    talk = Talk(profile())
    found, rest = talk.begin(line)
    assert (len(found.channels), found.fs, found.channels[0].nv_per_count) == (3, 500.0, 1000.0)
    blocks, _, _ = decoded([rest], Decoder(found))
    assert np.array_equal(blocks[0].counts, counts) and server.streaming
    talk.end(line)
    assert not server.streaming


def test_settings_reach_the_board_and_heartbeats_keep_the_lease(monkeypatch):
    server = Server(profile())
    line, now = Wire(server), [100.0]
    monkeypatch.setattr("firmware_bridge.protocols.edgelink.time.monotonic", lambda: now[0])
    talk = Talk(profile(), {"age": 63, "sex": 2})
    talk.begin(line)
    sets = [m.payload for m in line.heard if isinstance(m.payload, edgelink.Set)]
    assert [(s.key, s.value) for s in sets] == [(3, 63), (4, 2)]
    for _ in range(12):
        now[0] += 1.0
        talk.keep(line)
        assert server.streaming
    now[0] += 6.0
    assert not server.streaming


def test_a_board_that_began_anew_is_asked_who_it_is_and_its_count_starts_again():
    old, new = Server(profile()), Server(profile())
    line = Wire(old)
    talk = Talk(profile())
    found, rest = talk.begin(line)
    decoder, timeline = Decoder(found), Timeline(found, 250.0)
    counts, none = ecg(250), np.zeros(250, np.uint32)
    items = decoder.feed(rest + b"".join(old.encode(counts, none, 4000)), 1.0)
    runs = [r for b in items for r in timeline.push(b)]
    line.server = new
    kinds = []
    for _ in range(3):
        talk.keep(line)
        for item in decoder.feed(line.read(0.1), 3.0):
            kinds.append(item.reset)
            timeline.broken("reset")
    assert kinds == [True] and new.streaming and decoder.heard.about.boot_id == new.boot_id
    runs += [r for b in decoder.feed(b"".join(new.encode(counts, none, 0)), 4.0) for r in timeline.push(b)]
    assert [type(r).__name__ for r in runs] == ["Run", "Gap", "Run"] and runs[1].reason == "reset"
    assert runs[1].length == pytest.approx(500, abs=5) and np.array_equal(runs[2].counts, counts)


def test_a_board_without_a_sensor_and_one_that_is_silent_are_told():
    server = Server(profile())
    about = server._about
    server._about = lambda nonce: replace(about(nonce), caps=0)
    with pytest.raises(UserError, match="no sensor"):
        Talk(profile()).begin(Wire(server))
    server.hear = lambda data: b""
    with pytest.raises(MissingError, match="HELLO"):
        Talk(profile()).begin(Wire(server))


def test_a_start_for_another_boot_is_refused():
    server = Server(profile())
    answer, = edgelink.Framer().feed(server.hear(told(edgelink.Start(1, 0, 0, server.boot_id ^ 1, 0))))
    assert answer.payload.error == OTHER_BOOT and not server.streaming
