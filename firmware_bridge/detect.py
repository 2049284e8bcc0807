# SPDX-License-Identifier: Apache-2.0
"""Which front-end is where: `--port auto --protocol auto`, with the reasons.

Listening comes first, since it harms nothing: what comes in at each usual rate is given to every decoder, and the share
of bytes that lie in sound frames decides. Only where nothing sounds like a front-end are devices spoken to that answer
when asked, those whose frames are checked best first, each with the words of its protocol's own Talk.

    python firmware_bridge/detect.py            what is plugged in
    python firmware_bridge/detect.py --port /dev/ttyUSB0
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np

from firmware_bridge import ports, profiles
from firmware_bridge.profiles import Profile
from firmware_bridge.wire import Block, Line, LineEnded, LineLost
from train import say
from train.say import MissingError, UserError

LISTEN_S, LONGER_S = 0.7, 2.0           # at each rate, and where that leaves a doubt
MOST = 1 << 18              # bytes that are looked at
STILL_UV = 20               # an ECG moves more than that from peak to peak
BAUDS = (57600, 115200, 230400, 9600)           # in this order, then what else a profile names
FRAMES = 8                  # sound ones, below which nothing is claimed
SHARE = 0.5                 # of the bytes, likewise; a board that has just been opened says things in words first
TIED = 0.02                 # shares that differ by less than this are equal
RATE_NEAR = 0.02            # so is the distance of the measured rate from the nominal ones
CHECKS = ("crc32c", "crc16", "crc4", "trailer", "text")         # the best first


@dataclass(frozen=True)
class Heard:
    """What one profile makes of the bytes of one port at one rate. share: of the bytes in sound frames; fs: measured
    moments a second, 0 when unknown; inside: of the ECG's values, how many lie between the rails; rough: how much they
    change from moment to moment, in standard deviations; named: the device says the profile's name; asked: it had to be
    spoken to; others: profiles that were set aside for this one."""

    port: str
    baud: int
    profile: Profile
    frames: int
    damaged: int
    share: float
    fs: float
    inside: float = 1.0
    rough: float = 0.0
    named: bool = False
    asked: bool = False
    others: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """In a sentence."""
        which = self.profile.name if self.profile.name == self.profile.protocol else \
            f"{self.profile.protocol}/{self.profile.name}"
        return f"{self.port} at {self.baud}: {self.frames} of {self.frames + self.damaged} frames sound as {which}, " \
               f"{self.share:.0%} of the bytes" + \
               (f", {self.fs:.1f} moments a second" if self.fs else "") + \
               (", which answers when asked" if self.asked else "") + \
               (", which says so itself" if self.named else "") + \
               (f" (rather than {', '.join(self.others)}: values, rate or check are worse)" if self.others else "")

    @property
    def fits(self) -> bool:
        """Enough to claim it."""
        return self.frames >= FRAMES and self.share >= SHARE

    @property
    def off(self) -> float:
        """How far the measured rate is from the nominal one, as a share; 0 where no rate is promised."""
        return abs(self.fs / self.profile.fs - 1) if self.profile.fs and self.fs else 0.0


@dataclass
class Search:
    """Looks at one port through an open line. wanted: the profiles that may be; told: what is done, in words."""

    wanted: list[Profile]
    line: Line
    port: str
    told: Callable[[str], None] = lambda text: None

    def listen(self, bauds: tuple[int, ...]) -> list[Heard]:
        """What fits at the first rate at which something fits."""
        for place, baud in enumerate(bauds):
            self.line.set_baud(baud)
            # a board that was reset by the opening needs its time, once
            grace = max((p.boot_s for p in self.wanted), default=0.0) if place == 0 and self._boots() else 0.0
            heard = self._take(LISTEN_S, grace)
            if not heard[0]:
                if place == 0:
                    break                   # silence is silence at any rate
                continue
            wanted = [p for p in self.wanted if baud in bauds_of(p) or not _has_bauds(self.port)]
            found = self._fitting(wanted, baud, heard)
            if len(best(found)) > 1:
                more = self._take(LONGER_S)
                heard = heard[0] + more[0], heard[1] + more[1]
                found = self._fitting([h.profile for h in found], baud, heard)
            if found:
                return found
            self.told(f"{self.port} at {baud}: {sum(map(len, heard[0]))} bytes that fit nothing")
        return []

    def _fitting(self, wanted: list[Profile], baud: int, heard: tuple[list[bytes], list[float]]) -> list[Heard]:
        return [h for p in wanted if (h := judged(p, self.port, baud, *heard)).fits]

    def ask(self) -> list[Heard]:
        """The first device that answers; those that are checked best are spoken to first."""
        deaf = set()                        # protocols without an answer: their other profiles say the same words
        for profile in sorted(filter(speaks, self.wanted), key=lambda p: CHECKS.index(p.check)):
            for baud in bauds_of(profile) if _has_bauds(self.port) else bauds_of(profile)[:1]:
                if (profile.protocol, baud) in deaf:
                    continue
                self.told(f"{self.port} at {baud}: asking for {profile.title}")
                self.line.set_baud(baud)
                found = self._asked(profile, baud)
                if found is None:
                    deaf.add((profile.protocol, baud))
                elif found.fits:
                    return [found]
        return []

    def _asked(self, profile: Profile, baud: int) -> Heard | None:
        """What is heard of a device that was started, and is stopped again; None without an answer."""
        talk = profiles.module(profile.protocol).Talk(profile)
        try:
            profile, rest = talk.begin(self.line)
        except (UserError, ValueError):
            return None
        try:
            return judged(profile, self.port, baud, *self._take(LISTEN_S, 0.0, rest), asked=True)
        finally:
            talk.end(self.line)
            until = self.line.clock() + LISTEN_S
            with contextlib.suppress(LineLost):     # what was still on its way is not the next one's
                while self.line.clock() < until and self.line.read(0.1):
                    pass

    def _take(self, seconds: float, grace: float = 0.0, data: bytes = b"") -> tuple[list[bytes], list[float]]:
        """Portions and when they came: of so many seconds from the first byte on, which may be `grace` late."""
        parts, times = ([data], [self.line.clock()]) if data else ([], [])
        until, left = self.line.clock() + seconds + grace, MOST
        with contextlib.suppress(LineEnded):
            while self.line.clock() < until and left > 0:
                part = self.line.read(0.05)
                if part:
                    if not parts:
                        until = self.line.clock() + seconds
                    parts.append(part)
                    times.append(self.line.clock())
                    left -= len(part)
        return parts, times

    def _boots(self) -> bool:
        """Opening may have reset it: a serial port that is no pseudo terminal."""
        return _has_bauds(self.port)


def judged(profile: Profile, port: str, baud: int, parts: list[bytes], times: list[float], asked=False) -> Heard:
    """What a profile's decoder makes of portions."""
    module = profiles.module(profile.protocol)
    if not asked:
        with contextlib.suppress(_Spoke, UserError):        # lines of text tell their columns to who listens
            profile, _ = module.Talk(profile).begin(_Played(parts))
    decoder, moments, values = module.Decoder(profile), {}, []
    for part, at in zip(parts, times, strict=True):
        for block in decoder.feed(part, at):
            if isinstance(block, Block):
                moments[at] = moments.get(at, 0) + len(block.counts)
                values.append(block.counts[:, profile.ecg])
    s, arrivals = decoder.stats, list(moments)
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    fs = (sum(moments.values()) - moments[arrivals[0]]) / span if span > 0 else 0.0
    named = len(profile.name) > 4 and profile.name.encode() in b"".join(parts).lower()
    inside, rough = _looks(profile, np.concatenate(values)) if values else (0.0, 0.0)
    return Heard(port, baud, profile, s.frames, sum(s.damaged.values()), 1 - s.noise / s.bytes if s.bytes else 0.0, fs,
                 inside, rough, named, asked)


def _looks(profile: Profile, counts: np.ndarray) -> tuple[float, float]:
    """(share of values between the rails, changes in standard deviations) of int32 (moment, channel). Bytes that are
    read as another board's leave the rails, or jump: sqrt(2) is noise, an ECG is well below 1; what stands still is no
    better than noise."""
    channels = [profile.channels[i] for i in profile.ecg]
    low, high = np.array([c.low for c in channels]), np.array([c.high for c in channels])
    spread = counts.std(0)
    moves = np.diff(counts.astype(np.float64), axis=0).std(0) if len(counts) > 1 else spread
    still = np.ptp(counts, axis=0) <= [STILL_UV * 1000 / (c.nv_per_count or np.inf) for c in channels]
    rough = np.where(still, np.sqrt(2), moves / np.maximum(spread, 1e-9))
    return float(((counts >= low) & (counts <= high)).mean()), float(rough.mean())


def bauds_of(profile: Profile) -> tuple[int, ...]:
    """Its rates; any will do on USB."""
    return profile.bauds or BAUDS[:1]


def _order(wanted: list[Profile]) -> tuple[int, ...]:
    """The rates to listen at: the usual order, as far as a profile has them, then the others."""
    named = {b for p in wanted for b in bauds_of(p)}
    return tuple(b for b in BAUDS if b in named) + tuple(sorted(named - set(BAUDS), reverse=True))


def _has_bauds(port: str) -> bool:
    """A real serial line: pseudo terminals, files and sockets carry bytes at any rate."""
    real = os.path.realpath(port) if "://" not in port else port
    return not ("://" in port or port.startswith("file:") or real.startswith(("/dev/pts/", "/dev/ttys")))


class _Spoke(Exception):
    """It wants to say something."""


class _Played:
    """A line that says what it said before, to see what would be answered."""

    def __init__(self, parts: list[bytes]):
        self._parts, self._now = list(parts), 0.0

    def write(self, data: bytes) -> None:
        raise _Spoke

    def read(self, seconds: float) -> bytes:
        self._now += max(seconds, 0.01)
        return self._parts.pop(0) if self._parts else b""

    def clock(self) -> float:
        return self._now


def speaks(profile: Profile) -> bool:
    """Whether starting the device takes words."""
    try:
        profiles.module(profile.protocol).Talk(profile).begin(_Played([]))
    except _Spoke:
        return True
    except UserError:
        pass
    return False


# ---- deciding


# what a worse candidate costs, and how much worse than the best one is as good
CRITERIA: tuple[tuple[Callable[[Heard], float], Callable[[float], float]], ...] = (
    (lambda h: -h.share, lambda least: least + TIED),
    (lambda h: not h.named, lambda least: least),
    (lambda h: -h.inside, lambda least: least + TIED),
    (lambda h: h.rough, lambda least: 1.5 * least + 0.1),
    (lambda h: h.off, lambda least: least + RATE_NEAR),
    (lambda h: CHECKS.index(h.profile.check), lambda least: least),
    (lambda h: h.profile.name != h.profile.protocol, lambda least: least),      # claims more than was heard
)


def best(found: list[Heard]) -> list[Heard]:
    """The likeliest, several when nothing tells them apart: more of the bytes, a name in the text, values that look
    like a signal, the nearer rate, the stronger check; then the profile that claims least."""
    left = found
    for cost, as_good in CRITERIA:
        limit = as_good(min(map(cost, left), default=0.0))
        left = [h for h in left if cost(h) <= limit]
    others = tuple(h.profile.name for h in found if h not in left)
    return [replace(h, others=others) for h in left]


def search(port: str, wanted: list[Profile], baud: int | None = None,
           told: Callable[[str], None] = lambda text: None) -> list[Heard]:
    """What is at one port."""
    line = ports.open_line(port, baud or _order(wanted)[0], "hold")      # so that opening it again resets nothing
    try:
        looking = Search(wanted, line, port, told)
        # where rates mean nothing one is enough
        bauds = (baud,) if baud else _order(wanted) if _has_bauds(port) else _order(wanted)[:1]
        return best(looking.listen(bauds) or looking.ask())
    except LineLost as error:
        told(str(error))
        return []
    finally:
        line.close()


def detect(port: str = "auto", protocol: str = "auto", baud: int | None = None,
           told: Callable[[str], None] = lambda text: None) -> Heard:
    """The front-end that is meant; its `why` says why. UserError when several may be, MissingError when none is."""
    wanted = candidates(protocol)
    names = [f.port for f in _worth()] if port == "auto" else [port]
    if not names:
        raise MissingError("there is no serial port", "a front-end that is plugged in", "--port sim needs no hardware")
    found, refusals = [], []
    for name in names:
        try:
            found += search(name, wanted, baud, told)
        except UserError as error:
            if port != "auto":
                raise
            refusals.append(str(error.what))
    if not found:
        raise MissingError(f"no front-end was heard at {', '.join(names)}" + "".join(f"; {r}" for r in refusals),
                           "; ".join(sorted({p.title for p in wanted})),
                           "switch it on, and name it: --port PORT --protocol P --baud B")
    if len(found) > 1:
        raise UserError("it may be one of several:\n    " + "\n    ".join(h.why for h in found), "one of them",
                        " or ".join(f"--port {h.port} --protocol {h.profile.name}" for h in found))
    return found[0]


def candidates(protocol: str) -> list[Profile]:
    """The profiles of a protocol, one profile, or all."""
    if protocol == "auto":
        return list(profiles.profiles().values())
    if protocol in profiles.PROTOCOLS:
        return list(profiles.profiles(protocol).values())
    return [profiles.find(protocol)]


def _worth() -> list[ports.Found]:
    """The ports to look at: those on USB, where there are any."""
    every = ports.list_ports()
    return [f for f in every if f.usb is not None] or every


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Find out which ECG front-end is plugged in, at which port and rate.")
    p.add_argument("--port", default="auto", help="a port, tcp://host:port or file:PATH; auto: all serial ports")
    p.add_argument("--protocol", default="auto", help="look for this protocol or front-end only")
    p.add_argument("--baud", type=int, help="listen at this rate only")
    return p


def main(args) -> dict:
    """List the ports, search, say why."""
    every = ports.list_ports()
    for f in every:
        say.info(f"{f.port}: {f.title}")
    found = detect(args.port, args.protocol, args.baud, say.info)
    say.info(found.why)
    say.info(f"next: python firmware_bridge/live.py --run R --port {found.port} --protocol {found.profile.name} "
             f"--baud {found.baud}")
    return {"port": found.port, "baud": found.baud, "protocol": found.profile.protocol, "profile": found.profile.name,
            "fs": float(np.round(found.fs, 2)), "frames": found.frames, "damaged": found.damaged,
            "share": round(found.share, 4), "why": found.why,
            "ports": [{"port": f.port, "title": f.title} for f in every]}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
