# SPDX-License-Identifier: Apache-2.0
"""The leads over the Lab Streaming Layer, received by its own client."""

from __future__ import annotations

import time

import numpy as np
import pytest
from recorded import FS, session, stretch

from firmware_bridge.session import Gap, Stretch
from firmware_bridge.sinks import lsl

pylsl = pytest.importorskip("pylsl", reason='pylsl is not installed: pip install -e ".[lsl]"')


def moments(first, n, began):
    """A stretch in microvolts, portion by portion as if it had begun at `began`."""
    one, k = stretch(first, n), np.arange(first, first + n)
    return Stretch(first, one.counts, np.stack([k, -k]).astype(np.int32), one.lead_off, first / FS,
                   began + (first + n - 1) / FS)


@pytest.fixture
def inlet(tmp_path):
    """(sink, inlet) of a stream that only this computer is told of."""
    sink, one = lsl.LslOutlet(), session()
    one.settings["port"] = str(tmp_path)            # no other test's
    sink.begin(one)
    found = pylsl.resolve_byprop("source_id", lsl.source_id(one), 1, 15)
    assert len(found) == 1
    inlet = pylsl.StreamInlet(found[0], recover=False)
    inlet.open_stream(15)
    assert sink.outlet.wait_for_consumers(15)
    yield sink, inlet
    inlet.close_stream()
    sink.end()


def pulled(inlet, count):
    """float (moment, lead) and time stamps."""
    rows, stamps, until = [], [], time.monotonic() + 15
    while len(rows) < count and time.monotonic() < until:
        more, when = inlet.pull_chunk(0.2)
        rows += list(more) if more is not None else []
        stamps += list(when)
    return np.array(rows), np.array(stamps)


def test_a_receiver_gets_microvolts_in_time_and_missing_moments_as_nan(inlet):
    sink, inlet = inlet
    began = time.monotonic() - 3.0
    for first in range(0, 500, 25):
        sink.take(moments(first, 25, began))
    sink.take(Gap(500, 40, "lost"))
    sink.take(moments(540, 25, began))
    rows, stamps = pulled(inlet, 565)
    k = np.arange(565)
    expected = np.stack([k, -k], 1).astype(float)
    expected[500:540] = np.nan
    assert np.array_equal(rows, expected, equal_nan=True)
    assert stamps == pytest.approx(began + k / FS, abs=2e-3)
    about = inlet.info()
    assert (about.type(), about.nominal_srate(), about.channel_count()) == ("ECG", FS, 2)
    assert about.channel_format() == pylsl.cf_float32 and about.get_channel_labels() == ["I", "II"]
    assert about.get_channel_units() == ["microvolts", "microvolts"]
    assert about.desc().child_value("session") == sink.session.id


def test_of_a_gap_of_hours_only_what_an_outlet_keeps_is_sent(inlet, monkeypatch):
    sink, inlet = inlet
    monkeypatch.setattr(lsl, "KEPT_S", 100)
    sink.take(moments(0, 25, time.monotonic()))
    sink.take(moments(10 * 3600 * FS, 25, time.monotonic() - 36000))
    rows, stamps = pulled(inlet, 50 + 100 * FS)
    assert len(rows) == 50 + 100 * FS and np.isnan(rows[25:-25]).all() and not np.isnan(rows[-25:]).any()
    assert np.diff(stamps[25:]) == pytest.approx(1 / FS, abs=2e-3)


def test_the_source_stays_the_same_from_session_to_session_and_tells_no_port():
    one, two, other = session(), session(), session()
    other.settings["port"] = "/dev/ttyUSB7"
    assert one.id != two.id and lsl.source_id(one) == lsl.source_id(two) != lsl.source_id(other)
    assert "someone" not in lsl.source_id(one)
