# SPDX-License-Identifier: Apache-2.0
"""Decisions on a board: the whole firmware in this computer's memory, and in the emulator behind a pseudo terminal."""

from __future__ import annotations

import errno
import itertools

import boards
import numpy as np
import pytest
from boards import FS, Kind, ecg
from test_bridge import BOARD, Kept, Plain, packed

from firmware_bridge.board import Board, Mirror
from firmware_bridge.bridge import Bridge
from firmware_bridge.classify import Local
from firmware_bridge.leads import wire
from firmware_bridge.ports import LineLost
from firmware_bridge.session import Decision, Event, Session
from firmware_bridge.watch import Watch
from targets import edgelink, toolchain, twin
from train.say import MissingError, UserError

GRAPH, MANIFEST = boards.models()["model"]
PLAIN = Kind()
BUILT, LIBRARIES = {}, {}           # for every module that has the fixture below
if toolchain.missing("host"):
    pytest.skip(str(toolchain.missing("host")), allow_module_level=True)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Kind -> a freshly started board; rate -> the host's twin."""
    built, libraries = BUILT, LIBRARIES
    folder = built.setdefault("folder", None) or tmp_path_factory.mktemp("boards")
    built["folder"] = folder

    class Make:
        def board(self, kind: Kind) -> boards.Board:
            if kind not in built:
                built[kind] = boards.build(kind, folder / str(len(built)))
            return boards.Board(built[kind], kind)

        def local(self, clock, fs=FS) -> Local:
            if fs not in libraries:
                libraries[fs] = twin.build(GRAPH, MANIFEST, folder / f"twin{fs}",
                                           objects=twin.Objects(folder / "objects"))
            return Local(MANIFEST, twin.Twin(libraries[fs], GRAPH, fs, MANIFEST.fs), fs, clock)
    return Make()


class Wire:
    """The line to a board in memory and the plug that it hangs on; it can be pulled out, and lose what is written."""

    port = "memory"

    def __init__(self, board: boards.Board):
        self.board, self.gone, self.lose, self.closed, self.written = board, False, lambda data: False, 0, 0

    def open(self):
        return self

    def again(self):
        if self.gone:
            self.board.run(0.05)
        return None if self.gone else self

    def write(self, data):
        self._there()
        self.written += len(data)
        if not self.lose(data):
            self.board.write(data)

    def read(self, seconds):
        self._there()
        return self.board.read(seconds)

    def clock(self):
        return self.board.clock()

    def close(self):
        self.closed += 1

    def _there(self):
        if self.gone:
            raise LineLost(errno.EIO, "the line to memory is gone")


class Setup:
    """A bridge whose classifier is a board in memory, with the twin as its shadow."""

    def __init__(self, make, kind: Kind = PLAIN, shadow: bool = True):
        self.wire, self.fs = Wire(make.board(kind)), kind.fs
        self.board = Board(self.wire, MANIFEST, kind.fs, threaded=False)
        self.kept = Kept()
        mirror = Mirror(self.board, make.local(self.wire.clock, kind.fs)) if shadow else None
        self.bridge = bridge(self.kept, kind.fs, self.board, mirror)

    def play(self, uv, lost=(), off=(), size=10, also=lambda at: None):
        """Feed int32 (moment, 1) in the board's time; also(at) is called before moment at."""
        start = self.wire.clock()
        for at in range(0, len(uv), size):
            also(at)
            feed(self.bridge, uv, at, size, lost, off, self.wire.clock())
            while self.wire.clock() < start + (at + size) / self.fs:
                self.board.step()
        self.bridge.close()
        return self.of(Decision)

    def of(self, kind):
        return self.kept.of(kind)

    def words(self):
        return [e.text for e in self.of(Event) if e.kind == "board"]


def bridge(kept, fs, classifier, shadow=None) -> Bridge:
    session = Session(BOARD, fs, ("I",), MANIFEST, 0.0)
    return Bridge(session, Plain(), wire(BOARD, ("I",), "ch1=I"), Watch(MANIFEST.frontend, fs, ("I",)), [kept],
                  classifier, shadow)


def feed(b, uv, at, size, lost, off, now):
    here = np.array([i for i in range(at, min(at + size, len(uv))) if i not in lost], int)
    if len(here):
        b.feed(packed(here, np.repeat(uv.T, 2, 0), 1 * np.isin(here, off)), now)
    b.tick(now)


def alone(make, uv, fs=FS, lost=(), off=(), size=10):
    """What the twin alone decides of the same."""
    kept, now = Kept(), itertools.count()
    b = bridge(kept, fs, make.local(lambda: 0.0, fs))
    for at in range(0, len(uv), size):
        feed(b, uv, at, size, lost, off, next(now) * size / fs)
    b.close()
    return kept.of(Decision)


def told(decisions) -> list[tuple]:
    """Everything but the time it took."""
    return [(d.index, d.present, d.logits.tobytes(), d.unreliable, d.beat) for d in decisions]


HOLES = {"lost": {2000, *range(2500, 2512), *range(3000, 3300)}, "off": np.arange(4200, 4400)}


@pytest.mark.parametrize("fs, size", [(250, 10), (250, 3), (250, 64), (500, 25), (360, 13)])
def test_a_board_decides_as_this_computer_would_through_gaps_and_lead_off(make, fs, size):
    uv = ecg(22 * 250 / fs + 6, fs=fs)
    s = Setup(make, Kind(fs=fs))
    found = s.play(uv, **HOLES, size=size)
    assert told(found) == told(alone(make, uv, fs, **HOLES, size=size)) and len(found) > 30
    assert s.bridge.agreement.compared == s.bridge.agreement.equal == len(found) and all(d.agrees for d in found)
    assert {"lead-off", ""} <= {d.unreliable for d in found}
    assert all(0 <= d.latency_ms < 400 for d in found) and s.board.lost == s.board.results_lost == 0
    assert s.wire.closed and not s.words()


def test_frames_that_are_lost_on_the_way_to_the_board_are_noticed_and_both_sides_begin_anew(make):
    s, uv = Setup(make), ecg(40)
    at = [0]
    s.wire.lose = lambda data: 3000 <= at[0] < 3040
    found = s.play(uv, also=lambda now: at.__setitem__(0, now))
    assert s.words() == ["frames to the board were lost on the line"]
    expected = {d.index: d for d in alone(make, uv)}
    before = [d for d in found if d.index <= 3000]
    assert told(before) == told(expected[d.index] for d in before) and len(before) > 50
    # where it began anew by itself nothing can be compared; then everything again
    assert not any(d.agrees is False for d in found)
    after = [d for d in found if d.index > 3040 + 4 * FS]
    assert len(after) > 100 and all(d.agrees for d in after)


def test_the_loss_of_the_very_first_frame_changes_nothing(make):
    s, uv, first = Setup(make), ecg(8), []

    def lose(data):
        samples = data[3:4] == b"\x10" or any(m.payload.TYPE == 0x10 for m in edgelink.Framer().feed(data))
        first.append(samples)
        return samples and sum(first) == 1
    s.wire.lose = lose
    found = s.play(uv)
    assert any(first) and told(found) == told(alone(make, uv)) and all(d.agrees for d in found)


def test_a_board_that_is_reset_is_started_again_and_the_decisions_go_on(make):
    s, uv = Setup(make), ecg(30)
    found = s.play(uv, also=lambda at: s.wire.board.boot() if at == 2000 else None)
    assert any("began anew" in w for w in s.words())
    indices = np.array([d.index for d in found])
    assert (indices < 2000).sum() > 20 and not ((indices > 2050) & (indices < 2000 + 2 * FS)).any()
    after = [d for d in found if d.index > 2000 + 4 * FS]
    assert len(after) > 60 and all(d.agrees for d in found)


def test_a_board_that_is_pulled_out_loses_no_decision_that_it_made_and_comes_back(make):
    s, uv = Setup(make), ecg(30)

    def pull(at):
        s.wire.gone = 2000 <= at < 2500
    found = s.play(uv, also=pull)
    assert s.words() == ["the board is gone: the line to memory is gone", "the board is back"]
    assert all(d.agrees for d in found) and 400 <= s.board.lost <= 600 and s.board.results_lost == 0
    indices = np.array([d.index for d in found])
    assert np.diff(indices[indices < 1980]).max() == 40 and indices.max() > 7300


def test_a_line_that_takes_nothing_is_told_and_taken_up_again(make):
    s, uv = Setup(make), ecg(40)
    states = {2000: boards.CUT, 4500: boards.UP}
    found = s.play(uv, also=lambda at: s.wire.board.line(states[at]) if at in states else None)
    assert s.words()[0] == "the board does not answer any more" and s.words()[-1] == "the board is back"
    assert all(d.agrees for d in found if d.index > 6000) and found[-1].index > 9900
    assert not any(d.agrees is False for d in found)


@pytest.mark.parametrize("kind, fs, words", [
    (Kind(sensor=True), 250, "sensor of its own"), (Kind(fs=500), 250, "takes 500 samples a second"),
    (Kind(channels=2), 250, "takes 2 channels")])
def test_a_board_that_cannot_do_it_is_refused_with_what_to_type(make, kind, fs, words):
    wire = Wire(make.board(kind))
    with pytest.raises(UserError, match=words) as refused:
        Board(wire, MANIFEST, fs, threaded=False)
    assert "--board host" in refused.value.fix and wire.closed


def test_another_model_is_refused_by_its_identity(make):
    wire = Wire(make.board(Kind()))
    with pytest.raises(UserError, match="the device runs model"):
        Board(wire, boards.models()["other"][1], 250, threaded=False)
    assert wire.closed and not wire.board.resets


def test_a_silent_board_is_told(make):
    wire = Wire(make.board(Kind()))
    wire.board.line(boards.CUT)
    with pytest.raises(MissingError, match="HELLO"):
        Board(wire, MANIFEST, 250, threaded=False)


def test_a_board_that_stands_still_never_holds_up_the_bridge(make):
    s = Setup(make, shadow=False)
    uv = ecg(20)
    for at in range(0, len(uv), 10):            # nobody calls step(): the thread hangs in a write
        feed(s.bridge, uv, at, 10, (), (), at / FS)
    assert s.board.lost > 0 and len(s.board._inbox) <= 6 * FS / 10 + 2
    assert any("too slow" in w for w in s.words())
