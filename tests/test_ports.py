# SPDX-License-Identifier: Apache-2.0
"""Ports: bursts come whole, every loss is one error, what was pulled out is found again, refusals say what to do."""

from __future__ import annotations

import errno
import os
import pty
import socket
import stat
import time
import tty

import pytest
from serial.tools.list_ports_common import ListPortInfo

from firmware_bridge import captures, ports, profiles
from firmware_bridge.captures import Capture, FileLine, Teed
from firmware_bridge.ports import Found, Plug, open_line
from firmware_bridge.wire import LineEnded, LineLost
from train.say import MissingError, UserError

DEADLINE = 1.0          # seconds in which a loss is noticed, and what is back is found


class Socket:
    """A serial cable made of a pseudo terminal: the far end, and the name of the near one."""

    def __init__(self, link=None):
        self.far, near = pty.openpty()
        tty.setraw(near)
        self.port = os.ttyname(near)
        os.close(near)
        self.link = link
        if link:
            link.symlink_to(self.port)

    def pull(self):
        if self.link:
            self.link.unlink()
        os.close(self.far)


@pytest.fixture
def cable():
    made = Socket()
    yield made
    try:
        os.close(made.far)
    except OSError:
        pass


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address(server):
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("dtr", ["any", "assert", "hold"])
def test_a_burst_comes_whole_and_a_terminal_without_modem_lines_is_no_trouble(cable, dtr):
    line = open_line(cable.port, 57600, dtr)
    os.write(cable.far, bytes(range(256)) * 8)
    time.sleep(0.05)
    assert line.read(1.0) == bytes(range(256)) * 8
    line.write(b"b")
    assert os.read(cable.far, 10) == b"b"
    line.set_baud(9600)
    started = line.clock()
    assert line.read(0.1) == b"" and 0.05 < line.clock() - started < DEADLINE
    line.close()


@pytest.mark.parametrize("scheme", ["tcp", "socket"])
def test_a_socket_is_a_line(server, scheme):
    line = open_line(address(server).replace("tcp", scheme))
    peer, _ = server.accept()
    peer.sendall(b"x" * 100_000)
    got = b""
    while len(got) < 100_000:
        part = line.read(1.0)
        assert part
        got += part
    line.write(b"b")
    assert peer.recv(10) == b"b" and line.read(0.01) == b""
    peer.close()
    line.close()


def lost_within(line):
    """Seconds until reading raises."""
    started = time.monotonic()
    with pytest.raises(LineLost, match="gone"):
        while time.monotonic() - started < 5:
            line.read(0.05)
    return time.monotonic() - started


def test_a_terminal_that_is_closed_is_a_lost_line(cable):
    line = open_line(cable.port)
    cable.pull()
    assert lost_within(line) < DEADLINE
    with pytest.raises(LineLost):
        line.write(b"x")
    with pytest.raises(LineLost):
        line.read(0)


def test_a_socket_that_is_closed_is_a_lost_line_after_its_last_bytes(server):
    line = open_line(address(server))
    peer, _ = server.accept()
    peer.sendall(b"the end")
    peer.close()
    assert line.read(1.0) == b"the end"
    assert lost_within(line) < DEADLINE


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF])
@pytest.mark.parametrize("method", ["read", "write"])
def test_whatever_the_system_calls_it_the_line_is_lost(cable, monkeypatch, code, method):
    line = open_line(cable.port)

    def fail(*_):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(line._port, method, fail)
    with pytest.raises(LineLost, match=f"line to {cable.port} is gone"):
        line.read(0.1) if method == "read" else line.write(b"x")


# ---- refusals

def test_a_port_that_another_program_reads_is_refused_by_name(cable):
    line = open_line(cable.port)
    with pytest.raises(MissingError, match="in use by") as refusal:
        open_line(cable.port)
    assert refusal.value.code == 2
    line.close()


def test_a_missing_port_is_told_with_the_ports_that_exist(monkeypatch):
    monkeypatch.setattr(ports, "list_ports", lambda: [Found("/dev/ttyUSB3", "FT232R, FTDI, 0403:6001")])
    with pytest.raises(MissingError, match="no port /dev/ttyUSB9") as refusal:
        open_line("/dev/ttyUSB9")
    assert "/dev/ttyUSB3 (FT232R, FTDI, 0403:6001)" in refusal.value.expected


@pytest.mark.parametrize("code, words", [(errno.EACCES, "no permission"), (errno.EBUSY, "in use"),
                                         (errno.ENOTTY, "no serial port"), (errno.EIO, "does not open")])
def test_a_refusal_says_what_it_means(code, words):
    error = ports.refused("/dev/null", OSError(code, os.strerror(code)))
    assert words in error.what and (code != errno.EACCES or "usermod -aG dialout" in error.fix)


def test_names_that_are_no_ports_are_refused(tmp_path, server):
    (tmp_path / "raw.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="is a file") as refusal:
        open_line(str(tmp_path / "raw.bin"))
    assert f"file:{tmp_path}/raw.bin" in refusal.value.fix
    for name in ("tcp://nowhere", "tcp://127.0.0.1:0", "tcp://127.0.0.1:99999999", "gopher://x", str(tmp_path)):
        with pytest.raises(UserError):
            open_line(name)
    url = address(server)
    server.close()
    with pytest.raises(MissingError, match="does not answer"):
        open_line(url)


def test_ports_are_described_for_people(monkeypatch):
    usb, plain = ListPortInfo("/dev/ttyUSB0"), ListPortInfo("/dev/ttyS0")
    usb.vid, usb.pid, usb.serial_number, usb.description = 0x1A86, 0x7523, None, "USB Serial"
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [plain, usb])
    assert ports.list_ports() == [Found("/dev/ttyUSB0", "USB Serial, WCH, 1a86:7523", (0x1A86, 0x7523, None)),
                                  Found("/dev/ttyS0", "ttyS0")]
    assert "/dev/ttyUSB0" in ports.there_are()


# ---- pulled out and plugged in

def back_within(plug, seconds=5.0):
    """(line, seconds it took)."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        line = plug.again()
        if line is not None:
            return line, time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError("it was not found again")


def test_a_port_that_comes_back_is_found_and_waiting_costs_next_to_nothing(tmp_path):
    link = tmp_path / "port"
    cable = Socket(link)
    plug = Plug(str(link))
    line = plug.open()
    cable.pull()
    assert lost_within(line) < DEADLINE
    spent, started = time.thread_time(), time.monotonic()
    while time.monotonic() - started < 1.0:
        assert plug.again() is None
        time.sleep(0.02)
    assert (time.thread_time() - spent) / (time.monotonic() - started) < 0.05
    cable = Socket(link)
    line, took = back_within(plug)
    assert took < DEADLINE
    os.write(cable.far, b"again")
    assert line.read(1.0) == b"again"
    line = plug.again()                 # asked for once more, as when the device did not answer on it
    os.write(cable.far, b"and again")
    assert line.read(1.0) == b"and again"
    plug.close()
    cable.pull()


@pytest.mark.parametrize("serial", ["A10", None])
def test_a_device_is_found_under_another_name_by_what_it_is(monkeypatch, serial):
    first, here = Socket(), []
    monkeypatch.setattr(ports, "list_ports", lambda: list(here))
    usb = (0x0403, 0x6015, serial)
    here.append(Found(first.port, "dongle", usb, "1-2"))
    plug = Plug(first.port)
    line = plug.open()
    stranger, second = Socket(), Socket()
    first.pull()
    lost_within(line)
    other = (0x0403, 0x6015, "B20") if serial else usb
    here[:] = [Found(stranger.port, "its twin", other, "1-9"), Found(second.port, "dongle", usb, "1-2")]
    line, took = back_within(plug)
    assert took < DEADLINE and plug.port == second.port
    os.write(second.far, b"me")
    os.write(stranger.far, b"not me")
    assert line.read(1.0) == b"me"
    plug.close()
    for cable in (stranger, second):
        cable.pull()


def test_a_server_that_comes_back_is_found(server):
    plug = Plug(address(server))
    line = plug.open()
    peer, _ = server.accept()
    number = server.getsockname()[1]
    peer.close()
    server.close()
    lost_within(line)
    assert plug.again() is None
    with socket.create_server(("127.0.0.1", number)):
        line, took = back_within(plug)
        assert took < DEADLINE
        plug.close()


def test_the_simulator_is_a_port_like_any_other():
    plug = Plug("sim:bradycardia", profile=profiles.find("max30003"))
    line = plug.open()
    assert line.read(5.0)[:5] == b"\x0a\xfa\x0c\x00\x02"
    assert plug.simulator.signal.plan == [(0.0, "bradycardia")]
    plug.close()
    assert plug.simulator.error is None


def test_the_simulator_is_pulled_out_and_plugged_in_as_hardware_is():
    plug = Plug("sim", profile=profiles.find("max30003"), faults="unplug=0.3/0.3", leads="ecg=V2")
    line = plug.open()
    assert plug.simulator.signal.leads == ("V2",)
    assert lost_within(line) < 0.2 + 0.3 + DEADLINE
    line, took = back_within(plug)
    assert took < 0.3 + DEADLINE and line.read(5.0)
    plug.close()
    assert plug.simulator.error is None


# ---- files

class Says:
    """A line with portions of its own, at times of its own."""

    def __init__(self, *portions):
        self.name, self.portions, self.now = "says", list(portions), 0.0

    def read(self, seconds):
        self.now, data = self.portions.pop(0)
        return data

    def clock(self):
        return self.now

    def close(self):
        pass


PORTIONS = [(100.0, b"abc"), (100.5, b"d" * 1000), (103.0, b"e")]


def captured(folder):
    """A file of PORTIONS."""
    capture = Capture(folder / "raw")
    line = Teed(Says(*PORTIONS), capture)
    heard = [line.read(1.0) for _ in PORTIONS]
    capture.close()
    assert heard == [data for _, data in PORTIONS]
    return folder / "raw"


def test_a_capture_is_for_its_owner_only_and_can_be_heard_again(tmp_path):
    (tmp_path / "raw").write_bytes(b"of an earlier time, and readable by all")
    path = captured(tmp_path)
    assert path.read_bytes() == b"abc" + b"d" * 1000 + b"e"
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    line = open_line(f"file:{path}")
    heard = [(line.read(0.1), line.clock()) for _ in PORTIONS]
    assert [data for data, _ in heard] == [data for _, data in PORTIONS]
    assert [at - heard[0][1] for _, at in heard] == pytest.approx([0.0, 0.5, 3.0], abs=1e-5)
    with pytest.raises(LineEnded, match="is over"):
        line.read(0.1)
    assert Plug(f"file:{path}").open().read(1) == b"abc"


def test_a_capture_is_paced_when_asked(tmp_path):
    line = FileLine(captured(tmp_path), speed=10)
    started, sizes = time.monotonic(), []
    while len(sizes) < len(PORTIONS):
        data = line.read(0.05)
        sizes += [len(data)] if data else []
    assert 0.28 < time.monotonic() - started < 3 and sizes == [3, 1000, 1]
    assert line.clock() - line._began > 2.8


def test_a_capture_that_was_cut_off_between_its_files_still_gives_every_byte(tmp_path):
    path = captured(tmp_path)
    times = path.with_name("raw.times")
    times.write_text("\n".join(times.read_text().splitlines()[:-1]))
    line = FileLine(path)
    assert [len(line.read(0)) for _ in range(3)] == [3, 1000, 1]
    times.write_text("nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        FileLine(path)


def test_a_file_without_times_comes_at_the_rate_of_its_front_end(tmp_path):
    import numpy as np
    cyton = profiles.module("cyton")
    frames = cyton.Server().encode(np.zeros((2500, 8), np.int32), np.zeros(2500, np.uint32), 0)
    (tmp_path / "raw").write_bytes(b"".join(frames))
    line = open_line(f"file:{tmp_path}/raw", profile=profiles.find("cyton"))
    started, data = line.clock(), b""
    with pytest.raises(LineEnded):
        while True:
            data += line.read(0.1)
    assert data == b"".join(frames) and line.clock() - started == pytest.approx(10.0, rel=0.01)
    with pytest.raises(UserError, match="holds nothing"):
        open_line(f"file:{tmp_path}/raw", profile=profiles.find("max30003"))


def test_a_full_disk_ends_the_capture_and_not_the_line(tmp_path, monkeypatch, capsys):
    capture = Capture(tmp_path / "raw")

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass
    monkeypatch.setattr(capture, "_files", [Full(), Full()])
    line = captures.Teed(Says(*PORTIONS), capture)
    assert [line.read(1) for _ in PORTIONS] == [data for _, data in PORTIONS]
    assert "No space left" in capture.failed and capsys.readouterr().err.count("No space") == 1
