# SPDX-License-Identifier: Apache-2.0
"""Finding the front-end: every profile at every rate it has, listening before speaking, doubt told and not hidden."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge import detect, ports, profiles, sources
from firmware_bridge.detect import Heard, best
from firmware_bridge.ports import Found
from firmware_bridge.simulate import USUAL_FS, Simulator
from firmware_bridge.wire import LineLost
from train import say
from train.say import MissingError, UserError

NAMES = list(profiles.profiles())


class Wire:
    """A real serial line with a device at `baud`, in a time of its own: at another rate bytes come garbled.

    after: seconds from opening until the device speaks; preamble: what it says first.
    """

    def __init__(self, name, baud, after=0.0, preamble=b""):
        self.profile, self.baud, self.after = profiles.find(name), baud, after
        self.fs = self.profile.fs or USUAL_FS
        self.server = profiles.module(self.profile.protocol).Server(self.profile, self.fs)
        patient = sources.Patient(("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"), seed=1)
        uv, off = patient.take(round(40 * self.fs), self.fs)
        patient.close()
        self.counts, self.mask = sources.adc(self.profile, patient.leads).counts(uv, off)
        self.now, self.sent, self.set, self.out = 0.0, 0, 0, b""
        self.preamble, self.written, self.closed = preamble, [], False
        self.rng = np.random.default_rng(0)

    def set_baud(self, baud):
        self.set, self.out = baud, b""

    def write(self, data):
        self.written.append((self.set, data))
        if self.set == self.baud:
            self.out += self.server.hear(data)

    def read(self, seconds):
        if not self.out:
            self.now += min(seconds, 0.02)
        due = max(int((self.now - self.after) * self.fs), 0)
        due -= due % self.profile.per_frame
        if due > self.sent:
            if self.sent == 0 and self.server.streaming:
                self.out += self.preamble
            if self.server.streaming:
                frames = self.server.encode(self.counts[self.sent:due], self.mask[self.sent:due], self.sent)
                self.out += b"".join(frames)
            self.sent = due
        data, self.out = self.out, b""
        return data if self.set == self.baud else self.rng.integers(0, 256, len(data) // 2, np.uint8).tobytes()

    def clock(self):
        return self.now

    def close(self):
        self.closed = True


@pytest.fixture
def plugged(monkeypatch):
    """Plug wires in: plugged(name=wire) makes them the ports of this computer, all real and on USB."""
    def plug(**wires):
        monkeypatch.setattr(ports, "list_ports", lambda: [Found(f"/dev/{n}", n, (1, 2, n)) for n in wires])
        monkeypatch.setattr(ports, "open_line", lambda port, *_: wires[port.removeprefix("/dev/")])
        return wires
    return plug


def found_as(name):
    """What a device may be found as: itself, or the profile of its protocol that claims nothing about the device."""
    return {name, profiles.find(name).protocol} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_front_end_is_found_at_each_of_its_rates(plugged, name):
    for baud in detect.bauds_of(profiles.find(name)):
        wire = plugged(ttyUSB0=Wire(name, baud))["ttyUSB0"]
        found = detect.detect()
        assert found.profile.name in found_as(name) and (found.port, found.baud) == ("/dev/ttyUSB0", baud)
        assert found.why.startswith(f"/dev/ttyUSB0 at {baud}: {found.frames} of ") and name[:4] in found.why
        assert found.fs == pytest.approx(wire.fs, rel=0.15) and wire.closed
        assert not wire.server.streaming or not detect.speaks(found.profile)     # what was started is stopped


@pytest.mark.parametrize("name", [n for n in NAMES if not detect.speaks(profiles.find(n))])
def test_nothing_is_said_to_a_device_that_can_be_heard(plugged, name):
    wire = plugged(ttyUSB0=Wire(name, detect.bauds_of(profiles.find(name))[0]))["ttyUSB0"]
    detect.detect()
    assert wire.written == []


def test_a_board_that_boots_for_three_seconds_and_talks_first_is_waited_for(plugged):
    plugged(ttyUSB0=Wire("max30003", 57600, after=3.0, preamble=b"Initialization is done\r\n" * 3))
    assert detect.detect().profile.name == "max30003"


def test_a_board_that_names_itself_decides_where_its_bytes_do_not(plugged):
    wire = Wire("max30001", 57600, preamble=b"MAX30001 Detected. Rev ID:  80\r\n")
    wire.counts[:] = 0              # electrodes off: both read the same
    plugged(ttyUSB0=wire)
    found = detect.detect()
    assert found.profile.name == "max30001" and "says so itself" in found.why and "max30003" in found.others


def test_doubt_is_told_with_what_to_type(plugged):
    wire = Wire("max30001", 57600)
    wire.counts[:] = 0
    plugged(ttyUSB0=wire)
    with pytest.raises(UserError, match="one of several") as doubt:
        detect.detect()
    assert "--port /dev/ttyUSB0 --protocol max30003 or --port /dev/ttyUSB0 --protocol max30001" in doubt.value.fix
    assert detect.detect(protocol="max30001").profile.name == "max30001"


def test_two_devices_are_both_told(plugged):
    plugged(ttyUSB0=Wire("ads1292r", 57600), ttyUSB1=Wire("cyton", 115200))
    with pytest.raises(UserError) as doubt:
        detect.detect()
    assert "--port /dev/ttyUSB0 --protocol ads1292r or --port /dev/ttyUSB1 --protocol cyton" in doubt.value.fix
    assert detect.detect("/dev/ttyUSB1").profile.name == "cyton"


class Silent(Wire):
    """Nothing ever comes."""

    def read(self, seconds):
        self.now += seconds
        return b""


class Babble(Wire):
    """Random bytes at any rate."""

    def read(self, seconds):
        self.now += min(seconds, 0.02)
        return self.rng.integers(0, 256, 100, np.uint8).tobytes()


class Gone(Wire):
    """Pulled out while it is looked at."""

    def read(self, seconds):
        raise LineLost(5, "the line is gone")


@pytest.mark.parametrize("kind", [Silent, Babble, Gone])
def test_what_is_no_front_end_is_not_taken_for_one(plugged, kind):
    wire = plugged(ttyUSB0=kind("cyton", 115200))["ttyUSB0"]
    with pytest.raises(MissingError, match="no front-end was heard at /dev/ttyUSB0"):
        detect.detect()
    assert wire.closed and wire.now < 120


def test_devices_whose_frames_are_checked_best_are_asked_first(plugged):
    wire = plugged(ttyUSB0=Silent("cyton", 115200))["ttyUSB0"]
    told = []
    with pytest.raises(MissingError):
        detect.detect(told=told.append)
    order = [detect.CHECKS.index(p.check) for t in told if "asking for" in t for p in profiles.profiles().values()
             if t.endswith(f"asking for {p.title}")]
    assert order == sorted(order) and order and wire.written


def test_no_port_and_refused_ports_are_told(monkeypatch):
    monkeypatch.setattr(ports, "list_ports", lambda: [])
    with pytest.raises(MissingError, match="no serial port"):
        detect.detect()
    monkeypatch.setattr(ports, "list_ports", lambda: [Found("/dev/ttyUSB9", "pulled out just now", (1, 2, None))])
    with pytest.raises(MissingError, match="there is no port /dev/ttyUSB9"):
        detect.detect()
    with pytest.raises(MissingError, match="there is no port"):
        detect.detect("/dev/ttyUSB9")


def test_the_better_one_wins_by_each_criterion_in_turn():
    a, b = profiles.find("max30003"), profiles.find("max30001")

    def heard(p, share=1.0, fs=128.0, inside=1.0, rough=0.5, named=False):
        return Heard("p", 1, p, 50, 0, share, fs, inside, rough, named)
    for other in (heard(b, share=0.9), heard(b, inside=0.5), heard(b, rough=1.4), heard(b, fs=100.0)):
        assert [h.profile for h in best([other, heard(a)])] == [a]
    assert [h.profile for h in best([heard(a), heard(b, fs=100.0, named=True)])] == [b]
    assert len(best([heard(a), heard(b)])) == 2 and best([]) == []


@pytest.mark.parametrize("name, tcp", [("ads1293", None), ("cyton", 0)])
def test_a_simulated_device_is_found_on_a_terminal_and_on_tcp(name, tcp):
    with Simulator(name, tcp=tcp) as device:
        # asking for all others first would take their time
        assert detect.detect(device.port, "auto" if tcp is None else name).profile.name == name


def test_a_capture_is_recognised_and_the_command_says_so(tmp_path, capsys):
    wire = Wire("healthypi4", 115200)
    (tmp_path / "raw").write_bytes(b"".join(wire.server.encode(wire.counts[:200], wire.mask[:200], 0)))
    assert say.run(detect.main, detect.parser(), ["--port", f"file:{tmp_path}/raw"]) == 0
    assert "200 of 200 frames sound as openview/healthypi4" in capsys.readouterr().out
