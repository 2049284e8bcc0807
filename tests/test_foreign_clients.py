# SPDX-License-Identifier: Apache-2.0
"""Drivers that others wrote read the simulator: values to half a count, and every frame that was dropped is missed.

BrainFlow (Cyton, Shimmer3), PLUX's bitalino and pyshimmer, unmodified, over a pseudo terminal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.protocols.shimmer3_frames import nv_per_count
from firmware_bridge.simulate import Simulator
from train.manifest import LEADS

DEADLINE_S = 30.0


def client(name):
    """A driver's module; a test without it is skipped. Of bitalino's requirements PyBluez does not build any more, and
    serial ports do without."""
    how = "--no-deps bitalino==1.2.6" if name == "bitalino" else "-e '.[dev]'"
    return pytest.importorskip(name, reason=f"needs the package {name.partition('.')[0]}: pip install {how}")


@pytest.fixture(scope="module")
def shim():
    """BrainFlow, quiet. Up to Python 3.11 its loader wants a piece of setuptools that newer ones no longer have."""
    found = client("brainflow.board_shim")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("pkg_resources") is None:
            folder = Path(found.__file__).parent
            patch.setitem(sys.modules, "pkg_resources",
                          types.SimpleNamespace(resource_filename=lambda _, name: str(folder / name)))
        found.BoardShim.disable_board_logger()
    return found


class Ramp:
    """Microvolts that tell which moment it is: lead l at moment k is (k * pace + 37 l) around zero."""

    def __init__(self, leads, pace=1, span=100_000):
        self.leads, self.pace, self.span, self.made = leads, pace, span, 0

    def uv(self, k):
        """int64 (lead, moment) at moments k."""
        return (np.asarray(k)[None] * self.pace + 37 * np.arange(len(self.leads))[:, None]) % self.span - self.span // 2

    def take(self, n, fs):
        """As sources.Signal's."""
        k = np.arange(self.made, self.made + n)
        self.made += n
        return self.uv(k).astype(np.int32), np.zeros((len(self.leads), n), bool)


def moments(uv, ramp):
    """The moment of each value of the first lead, as far as the span tells them apart."""
    return np.rint((uv + ramp.span // 2) / ramp.pace).astype(np.int64)


def until(ready, seconds=DEADLINE_S):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "the client did not get its data in time"
        time.sleep(0.02)


@contextlib.contextmanager
def streaming(shim, board, port, *config):
    """(an open BrainFlow session that streams, answers to `config`); it always ends: its reader would spin for ever
    when the port went first."""
    params = shim.BrainFlowInputParams()
    params.serial_port = port
    session = shim.BoardShim(board, params)
    session.prepare_session()
    try:
        answers = [session.config_board(c) for c in config]
        session.start_stream(45_000)
        try:
            yield session, answers
        finally:
            session.stop_stream()
    finally:
        session.release_session()


def skipped(simulator, first, last):
    """Frames between two moments that were never sent."""
    return sum(first < k < last for k in simulator.damage.touched)


def missed(numbers, modulus):
    """Frames that a client's own package numbers say are missing."""
    return int(((np.diff(numbers.astype(np.int64)) - 1) % modulus).sum())


def test_brainflow_reads_a_cyton_to_half_a_count_and_misses_what_was_dropped(shim):
    ramp = Ramp(tuple(LEADS[:8]))
    wiring = ",".join(f"ch{k + 1}={lead}" for k, lead in enumerate(ramp.leads))
    with Simulator("cyton", ramp, leads=wiring, faults="skip=0.05", seed=3, speed=8) as simulator, \
            streaming(shim, shim.BoardIds.CYTON_BOARD, simulator.port) as (session, _):
        until(lambda: session.get_board_data_count() >= 3000)
        data = session.get_board_data()
    uv = data[shim.BoardShim.get_eeg_channels(shim.BoardIds.CYTON_BOARD)]
    k = moments(uv[0], ramp)
    assert np.abs(uv - ramp.uv(k)).max() <= simulator.profile.channels[0].nv_per_count / 2000 + 1e-6
    dropped = skipped(simulator, k[0], k[-1])
    assert dropped > 50 and len(k) + dropped == k[-1] - k[0] + 1
    assert missed(data[shim.BoardShim.get_package_num_channel(shim.BoardIds.CYTON_BOARD)], 256) == dropped


def test_brainflow_sets_the_gain_of_a_cyton_and_is_answered(shim):
    ramp = Ramp(("I",))
    with Simulator("cyton", ramp, leads="ch1=I", speed=8) as simulator, \
            streaming(shim, shim.BoardIds.CYTON_BOARD, simulator.port, "x1040110X") as (session, answers):
        until(lambda: session.get_board_data_count() >= 500)
        data = session.get_board_data()
        assert simulator.server.gains[0] == 8
    assert "Success" in answers[0]
    uv = data[shim.BoardShim.get_eeg_channels(shim.BoardIds.CYTON_BOARD)[0]]
    # BrainFlow knows the gain that it set: half a count of gain 8, and half one of the simulator's own 24
    limit = simulator.profile.channels[0].nv_per_count / 2000 * (3 + 1)
    assert np.abs(uv - ramp.uv(moments(uv, ramp))[0]).max() <= limit + 1e-6


@pytest.mark.parametrize("rate", [256, 512])
def test_brainflow_reads_a_shimmer3_exactly_at_the_rate_that_it_sets(rate, shim):
    board = shim.BoardIds.SHIMMER3_BOARD
    ramp = Ramp(("II", "I", "V1", "V2"))
    wiring = "exg1-ch1=II,exg1-ch2=I,exg2-ch1=V1,exg2-ch2=V2"
    with Simulator("shimmer3", ramp, leads=wiring, speed=4) as simulator, \
            streaming(shim, board, simulator.port, f"sampling_rate:{rate}") as (session, answers):
        until(lambda: session.get_board_data_count() >= 1500)
        data = session.get_board_data()
        assert simulator.server.fs == rate and session.get_board_id() == board
    assert answers == ["OK"]
    # BrainFlow hands counts on, and numbers what it receives: it has no number of the device's
    nv = simulator.profile.channels[0].nv_per_count
    uv = data[shim.BoardShim.get_ecg_channels(board)] * nv / 1000
    k = moments(uv[0], ramp)
    assert np.array_equal(k, np.arange(k[0], k[0] + len(k)))
    assert np.abs(uv - ramp.uv(k)).max() <= nv / 2000 + 1e-6
    assert missed(data[shim.BoardShim.get_package_num_channel(board)], 1 << 40) == 0


def read_by_pyshimmer(simulator, count, gain=None):
    """Packets of all four channels: (clock, counts (moment, channel)), and what the device says of itself."""
    import serial
    pyshimmer = client("pyshimmer")
    from pyshimmer.dev.channels import ESensorGroup
    kinds = [getattr(pyshimmer.EChannelType, f"EXG_ADS1292R_{c}_CH{k}_24BIT") for c in (1, 2) for k in (1, 2)]
    port = serial.Serial(simulator.port, pyshimmer.DEFAULT_BAUDRATE)
    shimmer, packets = pyshimmer.ShimmerBluetooth(port), []
    shimmer.initialize()
    try:
        shimmer.add_stream_callback(packets.append)
        shimmer.set_sampling_rate(512)
        shimmer.set_sensors([ESensorGroup.EXG1_24BIT, ESensorGroup.EXG2_24BIT])
        if gain is not None:
            for chip in (0, 1):
                shimmer.set_exg_register(chip, 3, bytes([gain << 4, gain << 4]))
        said = (shimmer.get_sampling_rate(), shimmer.get_exg_register(0).ch1_gain, shimmer.get_device_name(),
                shimmer.get_battery_state(False), shimmer.get_status()[4])
        shimmer.start_streaming()
        until(lambda: len(packets) >= count)
        shimmer.stop_streaming()
    finally:
        shimmer.shutdown()
    clock = np.array([p[pyshimmer.EChannelType.TIMESTAMP] for p in packets], np.int64)
    return clock, np.array([[p[kind] for kind in kinds] for p in packets]), said


@pytest.mark.parametrize("code, gain", [(None, 4), (6, 12), (1, 1)])
def test_pyshimmer_reads_a_shimmer3_to_half_a_count_and_misses_what_was_dropped(code, gain):
    client("pyshimmer")
    ramp = Ramp(("II", "I", "V1", "V2"))
    wiring = "exg1-ch1=II,exg1-ch2=I,exg2-ch1=V1,exg2-ch2=V2"
    simulator = Simulator("shimmer3", ramp, leads=wiring, faults="skip=0.05,wrap", seed=4, speed=4)
    with simulator:
        clock, counts, (rate, found, name, volts, busy) = read_by_pyshimmer(simulator, 1500, code)
    assert (rate, found, busy) == (512, gain, False) and name.startswith("Shimmer") and 3 < volts < 4.5
    nv = nv_per_count(gain)
    uv = counts.T * nv / 1000
    k = moments(uv[0], ramp)
    # the simulator's own converter has gain 4: half a count of it, and half one of the gain that was set
    limit = (nv + (gain != 4) * nv_per_count(4)) / 2000
    assert np.abs(uv - ramp.uv(k)).max() <= limit + 1e-6
    dropped = skipped(simulator, k[0], k[-1])
    assert dropped > 20 and len(k) + dropped == k[-1] - k[0] + 1
    assert missed(clock // 64, (1 << 24) // 64) == dropped and (np.diff(clock) < 0).any()


def opened(bitalino, port):
    """PLUX's client on a port; it imports Bluetooth only for addresses of Bluetooth."""
    return bitalino.BITalino(port, timeout=5)


def test_bitalino_reads_all_channels_and_misses_what_was_dropped():
    bitalino = client("bitalino")
    ramp = Ramp(tuple(LEADS[:4]), pace=3, span=2400)
    wiring = ",".join(f"A{k + 1}={lead}" for k, lead in enumerate(ramp.leads))
    with Simulator("bitalino", ramp, leads=wiring, faults="skip=0.05", seed=5) as simulator:
        device = opened(bitalino, simulator.port)
        try:
            assert device.version() == "BITalino_v5.2" and device.isBitalino52
            device.battery(30)
            state = device.state()
            assert state["batteryThreshold"] == simulator.server.threshold == 30 and len(state["analogChannels"]) == 6
            device.start(1000, [0, 1, 2, 3, 4, 5])
            rows = device.read(600)
            device.stop()
            until(lambda: not simulator.server.streaming)
        finally:
            device.close()
    sent = np.delete(np.arange(800), [k for k in simulator.damage.touched if k < 800])[:600]
    counts = rows[:, 5:]
    nv = simulator.profile.channels[0].nv_per_count
    assert np.abs((counts[:, :4] - 512).T * nv / 1000 - ramp.uv(sent)).max() <= nv / 2000 + 1e-6
    assert (counts[:, 4:] == 32).all() and not rows[:, 1:5].any()
    dropped = skipped(simulator, sent[0], sent[-1])
    assert dropped > 10 and missed(rows[:, 0], 16) == dropped


@pytest.mark.parametrize("channels", [[1], [0, 3], [1, 2, 5], [0, 1, 2, 4, 5]])
def test_bitalino_reads_any_channels_at_another_rate(channels):
    bitalino = client("bitalino")
    ramp = Ramp(tuple(LEADS[:4]), pace=3, span=2400)
    wiring = ",".join(f"A{k + 1}={lead}" for k, lead in enumerate(ramp.leads))
    with Simulator("bitalino", ramp, leads=wiring, speed=4) as simulator:
        device = opened(bitalino, simulator.port)
        try:
            device.start(100, channels)
            rows = device.read(50)
            device.stop()
            assert simulator.server.fs == 100
        finally:
            device.close()
    assert np.array_equal(rows[:, 0], np.arange(50) % 16)
    nv = simulator.profile.channels[0].nv_per_count
    for slot, place in enumerate(channels):
        if place < 4:
            uv = (rows[:, 5 + slot] - 512) * nv / 1000
            assert np.abs(uv - ramp.uv(np.arange(50))[place]).max() <= nv / 2000 + 1e-6
