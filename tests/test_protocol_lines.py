# SPDX-License-Identifier: Apache-2.0
"""Lines of numbers: every way to write them, what is no number, endless lines, what a sender says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_faults import FAULTS, RATES, damage, portions

from firmware_bridge.profiles import find
from firmware_bridge.protocols.lines import LONGEST, Decoder, Server, Talk, numbers
from firmware_bridge.wire import Block, Note
from train.say import MissingError


@pytest.mark.parametrize("line, names, values", [
    ("512", [], [512]), ("512,3", [], [512, 3]), ("512\t3 ; -4", [], [512, 3, -4]), (" 1.5, 2e3 ", [], [1.5, 2000]),
    ("ecg:512,resp:-3", ["ecg", "resp"], [512, -3]), ("ecg:512 resp:3.25", ["ecg", "resp"], [512, 3.25]),
    ('{"t": 17, "ecg": [1, 2], "hr": 60}', ["ecg1", "ecg2", "hr"], [1, 2, 60]), ('{"ecg": 5}', ["ecg"], [5]),
])
def test_numbers_are_read_however_they_are_written(line, names, values):
    assert numbers(line) == (names, values)


@pytest.mark.parametrize("line", ["", "nan", "inf", "1e999", "0x10", "12ab", "1,2,x", "ERR", '{"ecg": NaN}', "{",
                                  '{"ecg": "x"}', '{"ecg": true}', "[" * 2000, '{"a":' * 2000, "١٢", "1__0", "--5"])
def test_what_is_no_number_is_no_data(line):
    assert numbers(line) is None


class Typed:
    """A line that types what it is given, in portions."""

    def __init__(self, text: bytes):
        self.left, self.now = text, 0.0

    def read(self, seconds):
        self.now += seconds
        data, self.left = self.left[:64], self.left[64:]
        return data

    def write(self, data):
        raise AssertionError("nobody listens")

    def clock(self):
        return self.now


def told(text: str, profile="lines", **options):
    """(profile as the lines show it, decoder, blocks, notes) of a text."""
    typed = Typed(text.encode())
    found, data = Talk(find(profile), **options).begin(typed)
    decoder = Decoder(found)
    items = decoder.feed(data + typed.left, 0.0)
    return found, decoder, [i for i in items if isinstance(i, Block)], [i for i in items if isinstance(i, Note)]


def test_columns_names_unit_and_rate_come_from_the_lines():
    text = "2,3\n# fs=250 unit=uV\necg,resp\n" + "".join(f"{k},{-k}\n" for k in range(40))
    found, decoder, blocks, notes = told(text)
    assert [c.name for c in found.channels] == ["ecg", "resp"] and found.fs == 250
    assert found.channels[0].nv_per_count == 1000 and "fs=250" in notes[0].text
    assert blocks[0].counts.tolist() == [[k, -k] for k in range(40)] and decoder.stats.damaged == {"text": 1}


def test_fractions_are_kept_as_thousandths():
    found, _, blocks, _ = told("0\n# unit=mV\n" + "".join(f"{k / 8}\n" for k in range(40)))
    assert found.channels[0].nv_per_count == 1000 and found.scale == 1000
    assert blocks[0].counts[:, 0].tolist() == [round(k * 125) for k in range(40)]


def test_an_ad8232_says_lead_off_with_a_word_of_its_own():
    found, _, blocks, _ = told("51\n" + "512\r\n" * 10 + "!\r\n!\r\n" + "515\r\n" * 10, "ad8232")
    assert found.name == "ad8232" and found.channels[0].zero == 512
    block = blocks[0]
    assert block.lead_off.tolist() == [0] * 10 + [1, 1] + [0] * 10 and block.counts[10:12, 0].tolist() == [512, 512]


def test_the_users_rate_goes_before_the_senders():
    assert told("1\n# fs=100\n" + "1\n" * 30, fs=193.0)[0].fs == 193


def test_silence_and_prose_are_told():
    for text in (b"", b"Lorem ipsum\n" * 50):
        with pytest.raises(MissingError, match="no lines of numbers"):
            Talk().begin(Typed(text))


def frames(n):
    counts = np.stack([np.arange(n) + 1_000_000, -np.arange(n) - 1_000_000], 1).astype(np.int32)
    profile, _, _, _ = told("0,0\n" + "1,-1\n" * 30)
    return profile, [s for s in Server(profile).encode(counts, np.zeros(n, np.uint32), 1)], counts


def test_what_is_encoded_is_decoded_in_any_portions():
    profile, sent, counts = frames(500)
    decoder = Decoder(profile)
    blocks = [b for p in portions(b"0,0\n" + b"".join(sent)) for b in decoder.feed(p, 0.0) if isinstance(b, Block)]
    assert np.array_equal(np.concatenate([b.counts for b in blocks])[-500:], counts)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_costs_the_lines_it_touched_and_no_other(fault, p):
    profile, sent, counts = frames(10_000)
    bad = damage(sent, fault, p, seed=3)
    decoder, blocks = Decoder(profile), []
    for part in portions(bad.data):
        blocks += [b for b in decoder.feed(part, 0.0) if isinstance(b, Block)]
    found = np.concatenate([b.counts for b in blocks])
    right = int(np.isin(found[:, 0].astype(np.int64) * (1 << 32) + found[:, 1],
                        counts[:, 0].astype(np.int64) * (1 << 32) + counts[:, 1]).sum())
    # a line end that goes missing takes two lines, one of which was not touched
    assert right >= int((~bad.touched).sum()) - int(bad.touched.sum()) * 0.2 - 10
    numbers_ = np.concatenate([b.counter for b in blocks])
    slip = found[:, 0] - 1_000_000 - numbers_
    assert np.median(np.abs(slip)) <= (1 if p < 1e-2 else 200)


def test_endless_lines_and_floods_keep_nothing():
    decoder = Decoder(find("lines"))
    for _ in range(64):
        decoder.feed(b"7" * 65536, 0.0)
        assert len(decoder._held) <= LONGEST
    decoder.feed(b"\n5\n6\n", 0.0)
    block, = decoder.feed(b"7\n", 0.0)
    assert block.counts.tolist() == [[7]] and decoder.stats.damaged["length"] >= 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(max_size=300) | st.text(max_size=80).map(lambda t: t.encode() + b"\n"), max_size=12))
def test_no_bytes_break_the_decoder_or_are_lost_from_its_account(parts):
    decoder, data = Decoder(find("lines")), b"".join(parts)
    for part in parts:
        decoder.feed(part, 0.0)
    lines = data.count(b"\n")
    assert decoder.stats.bytes == len(data) and decoder.stats.frames <= lines and len(decoder._held) <= LONGEST
