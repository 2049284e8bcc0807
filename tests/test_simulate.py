# SPDX-License-Identifier: Apache-2.0
"""The simulator: paced by the clock, exact to half an LSB in every protocol, with the faults asked for and no more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import faults, profiles, simulate, sources
from firmware_bridge.ports import Plug, open_line
from firmware_bridge.session import Gap
from firmware_bridge.simulate import Simulator
from firmware_bridge.timeline import Timeline
from firmware_bridge.wire import Block, LineLost
from train import synth
from train.say import UserError

SCRIPT = Path(simulate.__file__)
PATIENCE_S = 20             # until a test gives up


def begun(simulator):
    """(line, profile as the device says, decoder, blocks that came with the talk) of a served simulator."""
    p = simulator.profile
    line = open_line(simulator.port, p.bauds[0] if p.bauds else 115200, p.dtr)
    module = profiles.module(p.protocol)
    profile, rest = module.Talk(p).begin(line)
    decoder = module.Decoder(profile)
    return line, profile, decoder, blocks(decoder, rest, line.clock())


def blocks(decoder, data, now):
    return [b for b in decoder.feed(data, now) if isinstance(b, Block)]


def heard(simulator, moments):
    """(profile, blocks) of about so many moments, or of all when the line ends before."""
    line, profile, decoder, found = begun(simulator)
    until = time.monotonic() + PATIENCE_S
    try:
        while sum(len(b.counts) for b in found) < moments and time.monotonic() < until:
            found += blocks(decoder, line.read(0.2), line.clock())
    except LineLost:
        pass
    line.close()
    return profile, found


def placed(profile, found):
    """(runs, gaps) of blocks."""
    line = Timeline(profile, profile.fs)
    parts = [p for b in found for p in line.push(b)]
    return [p for p in parts if not isinstance(p, Gap)], [p for p in parts if isinstance(p, Gap)]


def gaps_when_broken(profile, found, gone):
    """The gaps between blocks of a line that was lost at `gone`."""
    line, out = Timeline(profile, profile.fs), []
    for block in found:
        if gone is not None and block.arrived > gone:
            line.broken("unplugged")
            gone = None
        out += line.push(block)
    return [p for p in out if isinstance(p, Gap)]


@pytest.mark.parametrize("name", list(profiles.profiles()))
def test_every_front_end_sends_what_it_measures_to_half_an_lsb(name):
    with Simulator(name, seed=3, speed=8) as device:
        profile, found = heard(device, 400)
    counts = np.concatenate([b.counts for b in found])[:400]
    patient = sources.Patient(device.signal.leads, seed=3)
    uv, _ = patient.take(len(counts) + 64, device.fs)
    patient.close()
    compared = 0
    for place, channel in enumerate(profile.channels):
        own = next((i for i, c in enumerate(device.profile.channels) if c.name == channel.name), place)
        if own not in device.adc.place:
            continue
        k = device.adc.place.index(own)
        nv = channel.nv_per_count or device.adc.nv[own]
        real = uv[k] * device.adc.sign[k] * 1000.0 / nv + channel.zero
        # a gain or a rounding between the source and the wire costs another half
        slack = 0.5 if np.isclose(nv, device.adc.nv[own]) else 1.0
        off = [np.abs(counts[:, place] - real[s:s + len(counts)]).max() for s in range(64)]
        assert min(off) <= slack + 1e-6, channel.name       # a decoder may need some frames to be sure
        compared += 1
    assert compared >= 1 and len(counts) >= 400 - profile.per_frame and device.error is None


@pytest.mark.parametrize("words, rate", [("", 250.0), ("drift=100000", 275.0)])
def test_moments_come_when_they_are_due_and_never_drift(words, rate):
    with Simulator("cyton", faults=words) as device:
        line, _, decoder, found = begun(device)
        arrivals = [line.clock()] * sum(len(b.counts) for b in found)
        while len(arrivals) < 2 * rate:
            n = sum(len(b.counts) for b in blocks(decoder, line.read(0.2), line.clock()))
            arrivals += [line.clock()] * n
        line.close()
    arrivals = np.array(arrivals[1:])
    late = arrivals - arrivals[0] - np.arange(len(arrivals)) / rate
    assert late.min() > -0.02 and np.median(late[-100:]) - np.median(late[:100]) < 0.1
    assert 0.5 / rate < np.median(np.diff(np.unique(arrivals))) < 5 / rate       # not in bursts


def test_a_burst_holds_bytes_back_and_hands_them_over_together():
    with Simulator("cyton", faults="burst=100") as device:
        _, found = heard(device, 250)
    sizes = [len(b.counts) for b in found[1:-1]]
    assert len(sizes) <= 12 and np.median(sizes) == pytest.approx(25, abs=2)


# ---- faults

FRAMES = [bytes([k & 255, k >> 8]) + bytes(range(40)) for k in range(2000)]


@pytest.mark.parametrize("words", ["drop=1e-3", "flip=1e-3", "insert=1e-3", "skip=0.05", "noise=0.05",
                                   "drop=1e-3,flip=1e-3,insert=1e-3,skip=0.01,noise=0.02", ""])
def test_faults_are_counted_to_the_byte(words):
    damage = faults.Damage(faults.parse(words, seed=7))
    sent = [damage.send([f]) for f in FRAMES]
    c = damage.count
    clean = [k for k, out in enumerate(sent) if out.endswith(FRAMES[k])]
    hit = sorted(set(range(len(FRAMES))) - set(clean))
    # a byte put between two frames touches neither
    assert set(hit) <= set(damage.touched) and c.frames == 2000
    assert len(damage.touched) == c.touched + c.skipped == len(set(damage.touched))
    texts = sum(out.count(b"\r\n") for out in sent) if "noise" in words else 0
    assert c.lines == pytest.approx(texts, abs=3 * ("insert" in words))
    length = sum(map(len, sent)) - sum(len(t) + 2 for out in sent for t in faults.TEXTS if out.startswith(t + b"\r\n"))
    assert length == 42 * (2000 - c.skipped) - c.dropped + c.inserted
    for name, done in [("drop", c.dropped), ("flip", c.flipped), ("insert", c.inserted), ("skip", c.skipped)]:
        assert (done > 0) == (name in words)
    again = faults.Damage(faults.parse(words, seed=7))
    assert b"".join(sent) == again.send(FRAMES) and again.count == c


def test_skipped_frames_are_the_missing_moments_of_the_timeline():
    with Simulator("cyton", faults="skip=0.05", seconds=20, speed=0) as device:
        profile, found = heard(device, 10**9)
    runs, gaps = placed(profile, found)
    first = int(found[0].counter[0])
    lost = [n for n in device.damage.touched if n >= first]
    inner = [n for n in lost if n < first + runs[-1].first + len(runs[-1].counts)]
    assert sum(g.length for g in gaps) == len(inner) > 200
    assert device.summary()["skipped"] == len(device.damage.touched) and device.moments == 5000


def test_a_counter_that_starts_near_its_wrap_wraps_without_a_gap():
    with Simulator("cyton", faults="wrap", speed=4) as device:
        profile, found = heard(device, 300)
    counter = np.concatenate([b.counter for b in found])
    assert counter[0] > 100 and (np.diff(counter) == -255).sum() >= 1
    runs, gaps = placed(profile, found)
    assert not gaps and sum(len(r.counts) for r in runs) >= 290


@pytest.mark.parametrize("tcp", [None, 0])
def test_an_unplugged_device_comes_back_and_goes_on_where_it_would_be(tmp_path, tcp):
    device = Simulator("max30003", faults="unplug=0.6/0.7", tcp=tcp, link=tmp_path / "port")
    with device:
        plug = Plug(device.port, 57600)
        line, gone, back, found = plug.open(), None, None, []
        decoder = profiles.module("openview").Decoder(device.profile)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and (back is None or time.monotonic() < back + 0.5):
            try:
                if line is None:
                    time.sleep(0.02)
                    line = plug.again()
                    back = time.monotonic() if line else None
                else:
                    found += blocks(decoder, line.read(0.02), line.clock())
            except LineLost:
                gone, line = time.monotonic(), None
                until = gone + 5
        plug.close()
    assert gone and back and 0.2 < back - gone < 0.7 + 1.0
    arrivals = [b.arrived for b in found]
    assert max(np.diff(arrivals)) < 0.7 + 1.0 and arrivals[-1] > back
    gaps = gaps_when_broken(device.profile, found, gone)
    assert sum(g.length for g in gaps) / 128 == pytest.approx(back - gone, abs=0.5)
    assert device.summary()["unplugs"] == 1 and device.summary()["clients"] == 2
    assert not (tmp_path / "port").exists()


def test_electrodes_come_off_to_the_rail_and_are_reported():
    count = faults.Count()
    off = faults.LeadOff(30, 2, count, seed=1)
    parts = [off.over(np.zeros((2, 50), bool), 250.0) for _ in range(1500)]
    whole = np.concatenate(parts, 1)
    assert count.lead_offs == pytest.approx(150, abs=40)
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(whole[0], 1).astype(int)))) [::2] / 250
    assert lengths.min() > 0.9 and whole.mean() == pytest.approx(30 / 60 * 2.5 / 2, rel=0.4)
    p = profiles.find("cyton")
    counts, mask = sources.adc(p, ("I", "II"), "ch1=I,ch3=-II").counts(np.ones((2, 4), np.int32) * 1000,
                                                                      np.array([[0, 1, 0, 0], [0, 0, 0, 1]], bool))
    assert mask.tolist() == [0, 1, 0, 4] and counts[1, 0] == counts[3, 2] == p.channels[0].high
    assert counts[0, 0] == -counts[0, 2] > 0 and not counts[:, 1].any()


@pytest.mark.parametrize("name", ["cyton"] + [n for n, p in profiles.profiles().items() if p.lead_off == "frame"])
def test_an_electrode_that_is_off_shows_at_the_other_end(name):
    with Simulator(name, faults="lead-off=60", speed=20, leads=f"{profiles.find(name).channels[0].name}=II") as device:
        profile, found = heard(device, 15 * device.fs)
    off = np.concatenate([b.lead_off for b in found]) & 1
    if profile.lead_off == "signal":
        off = np.concatenate([b.counts for b in found])[:, 0] == device.profile.channels[0].high
    assert device.damage.count.lead_offs >= 3 and 0.2 < off.mean() < 1
    lengths = np.diff(np.flatnonzero(np.diff(off.astype(int), prepend=0)))
    assert (lengths > 0.5 * device.fs).any()


@pytest.mark.parametrize("words", ["drap=1", "drop=2", "drop=x", "drop", "unplug=3", "unplug=/", "burst=-1", "skip=nan",
                                   "drift=1e9"])
def test_faults_that_cannot_be_are_refused(words):
    with pytest.raises(UserError):
        faults.parse(words)


# ---- clients

def test_nobody_misses_the_beginning_and_clients_may_come_and_go():
    with Simulator("max30003", tcp=0, speed=4) as device:
        assert device.port.startswith("tcp://127.0.0.1:")
        time.sleep(0.2)
        assert device.moments == 0          # nothing is sent before somebody listens
        for _ in range(2):
            _, found = heard(device, 100)
            assert sum(len(b.counts) for b in found) >= 100
        assert device.clients == 2


def test_a_second_client_is_turned_away():
    with Simulator("max30003", tcp=0) as device:
        line = open_line(device.port)
        assert line.read(5)
        host, port = device.port.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), 5) as other:
            other.settimeout(5)
            assert other.recv(10) == b""
        assert line.read(5)
        line.close()


def test_a_client_finds_nothing_of_what_another_one_did_not_read():
    with Simulator("cyton") as device:
        first = open_line(device.port)
        first.write(b"v")
        time.sleep(0.1)
        first.close()
        time.sleep(0.1)
        near = os.open(device.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)    # pyserial would throw it away itself
        with contextlib.suppress(BlockingIOError):
            assert os.read(near, 100) == b""
        os.close(near)


def test_a_client_that_does_not_read_costs_whole_frames_and_they_are_counted(monkeypatch):
    monkeypatch.setattr(simulate, "QUEUE", 2000)
    with Simulator("max30003", speed=50) as device:
        near = os.open(device.port, os.O_RDWR | os.O_NOCTTY)
        until = time.monotonic() + PATIENCE_S
        while not device.overruns and time.monotonic() < until:
            time.sleep(0.05)
        os.close(near)
    assert device.overruns > 0 and device.moments >= device.overruns


def test_seconds_of_signal_arrive_to_the_last_byte_and_then_the_line_goes_down():
    with Simulator("max30003", seconds=4, speed=0) as device:
        _, found = heard(device, 10**9)
        assert device.wait(PATIENCE_S)
    assert sum(len(b.counts) for b in found) == 4 * 128 == device.moments
    quiet = Simulator("cyton", seconds=0.2)
    assert quiet.run()["moments"] == 0          # nobody came


# ---- what is measured

def test_rhythms_follow_their_schedule_without_a_step():
    patient = sources.Patient(("II",), "bradycardia,tachycardia@20", noise="none")
    uv = np.concatenate([patient.take(500, 250.0)[0] for _ in range(20)], 1)[0]
    patient.close()
    slow, fast = (_beats(part) for part in (uv[:19 * 250], uv[22 * 250:]))
    assert slow < 60 < 95 < fast
    inside = np.abs(np.diff(uv[:15 * 250])).max()
    assert np.abs(np.diff(uv[18 * 250:22 * 250])).max() <= 1.5 * inside


def _beats(uv):
    """Beats a minute, by the steepest places."""
    steep = np.abs(np.convolve(np.diff(uv.astype(float)), np.ones(5), "same"))
    above = np.flatnonzero(steep > 0.5 * steep.max())
    return (np.diff(above) > 75).sum() / (len(uv) / 250) * 60 + 60 / (len(uv) / 250)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=20), st.sampled_from([100.0, 125.0, 50.0]))
def test_the_patient_is_the_same_in_any_portions(sizes, fs):
    one, many = (sources.Patient(("I",), noise="none", seed=5) for _ in range(2))
    whole = one.take(sum(sizes), fs)[0]
    parts = [many.take(n, fs)[0] for n in sizes]
    assert np.array_equal(np.concatenate(parts, 1), whole)
    one.close()
    many.close()


@pytest.mark.parametrize("words", ["", "sinis", "sinus,af", "sinus,af@x", "af@10,sinus@5"])
def test_a_schedule_that_cannot_be_is_refused(words):
    with pytest.raises(UserError):
        sources.schedule(words)


def test_a_record_is_sent_as_it_is_and_at_other_rates_in_its_own_time(tmp_path):
    pytest.importorskip("wfdb")
    made = synth.record("sinus", 4, 12, 360, ("MLII", "V1"), "none")
    path = synth.write_wfdb(made, tmp_path, "rec")
    same = sources.RecordSignal(path)
    uv = np.concatenate([same.take(n, 360.0)[0] for n in (1000, 3000, 5000)], 1)
    assert np.array_equal(uv, made.uv)
    other = sources.RecordSignal(f"{path}.hea", loop=True).take(6000, 250.0)[0]
    assert np.array_equal(other[:, :3000], other[:, 3000:])
    at = (made.beats.sample * 250 / 360).round().astype(int)
    at = at[(at > 10) & (at < 2980)]
    peaks = np.array([a - 8 + np.abs(other[0, a - 8:a + 9]).argmax() for a in at])
    assert np.abs(peaks - at).max() <= 1
    # leads that the channels do not name come in order
    device = Simulator("cyton", sources.RecordSignal(path), seconds=2, fs=360)
    assert device.adc.place == (0, 1)
    with pytest.raises(UserError, match="no lead V2"):
        Simulator("cyton", sources.RecordSignal(path), leads="ch1=V2")
    with pytest.raises(UserError, match="there is no record"):
        sources.RecordSignal(tmp_path / "nothing")


# ---- the command

def test_the_command_prints_the_port_first_and_ends_in_peace():
    command = [sys.executable, str(SCRIPT), "--protocol", "max30003", "--noise", "none", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port = process.stderr.readline().strip()
        line = open_line(port, 57600)
        assert line.read(10)[:2] == b"\x0a\xfa"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE_S)
        line.close()
    result = json.loads(out)
    assert process.returncode == 0 and result["port"] == port and result["clients"] == 1 and result["frames"] >= 1


@pytest.mark.parametrize("words", [("--protocol", "citon"), ("--fault", "drop=7"), ("--rhythm", "waltz"),
                                   ("--noise", "loud"), ("--tcp", "70000"), ("--speed", "-1")])
def test_wrong_words_are_refused(words):
    from train import say
    assert say.run(simulate.main, simulate.parser(), list(words)) == 1
