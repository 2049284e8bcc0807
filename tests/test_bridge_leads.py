# SPDX-License-Identifier: Apache-2.0
"""Leads in the bridge: maps, signs, derived leads, scales, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge.leads import wire
from firmware_bridge.profiles import Channel, Profile
from train.say import UserError

BOARD = Profile("board", "test", "a test board", (
    Channel("ch1", 1000.0, -1000, 1000), Channel("ch2", 500.0, -1000, 1000), Channel("ch3", None, 0, 1023, 512),
    Channel("resp", 1.0, -1000, 1000, kind="respiration")), 250)
HOLTER = Profile("holter", "test", "a Holter", (Channel("a", 1000.0, -99, 99, lead="II"),
                                                Channel("b", 1000.0, -99, 99, lead="V5")), 250)


def uv(wiring, *rows):
    return wiring.uv(np.array(rows, np.int32)).tolist()


@pytest.mark.parametrize("words, wanted, row, expected", [
    (None, ("I",), [7, 0, 0, 0], [[7]]),
    ("ch2=I", ("I",), [7, 9, 0, 0], [[5]]),                 # 4.5 rounds up
    ("ch2=-I", ("I",), [7, 9, 0, 0], [[-4]]),
    ("ch1=I,ch2=II", ("II", "I"), [7, 10, 0, 0], [[5], [7]]),
    ("ch1=I,ch2=II", ("III", "aVR", "aVL", "aVF"), [7, 20, 0, 0], [[3], [-8], [2], [7]]),
    ("I,II", ("I", "II"), [7, 10, 0, 0], [[7], [5]]),       # without channels: in order
    ("ch1=avf", ("aVF",), [7, 0, 0, 0], [[7]]),
    ("ch1=MLII", ("MLII",), [7, 0, 0, 0], [[7]]),
], ids=lambda v: str(v))
def test_channels_become_leads(words, wanted, row, expected):
    assert uv(wire(BOARD, wanted, words), row) == expected


def test_usual_leads_need_no_map():
    assert uv(wire(HOLTER, ("V5", "II")), [3, 4]) == [[4], [3]]
    assert wire(HOLTER, None).leads == ("II", "V5")
    assert wire(BOARD, None, "ch1=I,ch2=II").leads == ("I", "II")


def test_the_middle_of_the_converter_is_0_volt():
    assert uv(wire(BOARD, ("I",), "ch3=I", nv_per_count=2000), [0, 0, 512, 0], [0, 0, 513, 0]) == [[0, 2]]


@pytest.mark.parametrize("words, wanted, nv, what, expected", [
    ("ch1=V1", ("I",), None, "does not know lead V1", "I"),
    ("ch9=I", ("I",), None, "no channel 'ch9'", "ch1, ch2, ch3"),
    ("ch1=I", ("I", "II"), None, "no channel is lead II", "for each lead"),
    ("ch1=I", ("aVF",), None, "no channel is lead aVF", "for each lead"),
    ("resp=I", ("I",), None, "measures respiration", "ECG"),
    ("ch3=I", ("I",), None, "does not tell what a count", "nanovolts"),
    ("ch1=I", ("I",), -3.0, "does not tell what a count", "nanovolts"),
    ("ch1=chest", ("I",), None, "'ch1=chest' is not a lead", "one of"),
    ("I,II,V1,V2", ("I", "II", "V1", "V2"), None, "has only 3 channels", "as many"),
])
def test_what_cannot_be_is_refused_with_what_could(words, wanted, nv, what, expected):
    with pytest.raises(UserError) as raised:
        wire(BOARD, wanted, words, nv)
    assert what in raised.value.what and expected in raised.value.expected


def test_a_derived_lead_is_off_with_either_of_its_two():
    wiring = wire(BOARD, ("I", "III"), "ch1=I,ch2=II")
    assert wiring.lead_off(np.array([0b00, 0b01, 0b10, 0b1000], np.uint32)).tolist() == [0b00, 0b11, 0b10, 0b00]


def test_rails_are_seen_in_counts():
    wiring = wire(BOARD, ("I", "aVF"), "ch1=I,ch2=II")
    counts = np.array([[0, 0, 0, 0], [1000, 0, 0, 0], [0, -995, 0, 0], [985, 0, 0, 0]], np.int32)
    assert wiring.rails(counts, BOARD).tolist() == [[False, True, False, False], [False, True, True, False]]
