# SPDX-License-Identifier: Apache-2.0
"""Who owns the line: reads it, feeds the bridge, notices that it was pulled out and takes it up again."""

from __future__ import annotations

import time
from collections.abc import Callable

from firmware_bridge import profiles
from firmware_bridge.bridge import Bridge
from firmware_bridge.ports import Plug
from firmware_bridge.wire import Line, LineEnded, LineLost, Talk
from train.say import UserError

READ_S, TICK_S, KEEP_S = 0.02, 0.1, 1.0
GATHER_S, SMALL = 0.016, 512    # a wait after a portion of fewer bytes: moments that come one by one go on together
LOOK_S = 0.05           # between two looks for a line that is gone
SILENT_S = 1.0          # without a byte, where bytes should come: told once


class Loop:
    """talk: the words that start the device, said again whenever it comes back."""

    def __init__(self, bridge: Bridge, plug: Plug, talk: Talk):
        self.bridge, self.plug, self.talk = bridge, plug, talk
        self._ticked = self._kept = self._heard = 0.0
        self._silent = False
        self.lost = 0           # times that the line went down

    def run(self, line: Line, rest: bytes, stop: Callable[[], bool]) -> None:
        """Until stop() or the end of a recording. rest: bytes that were read while the device was set up."""
        try:
            now = line.clock()
            self._heard = now + self.bridge.session.profile.boot_s
            if rest:
                self.bridge.feed(rest, now)
            while not stop():
                try:
                    self._step(line)
                except LineEnded:
                    return
                except LineLost as error:
                    self.lost += 1
                    self.bridge.broken("unplugged", error.strerror or str(error))
                    line = self._again(stop)
                    if line is None:
                        return
        finally:
            if line is not None:
                self._quietly(lambda: self.talk.end(line))
            self.bridge.close()

    def _step(self, line: Line) -> None:
        data = line.read(READ_S)
        now = line.clock()
        if data:
            self._heard, self._silent = max(now, self._heard), False
            self.bridge.feed(data, now)
        elif now - self._heard > SILENT_S and not self._silent:
            self._silent = True
            self.bridge.quiet()
        self._work(now)
        if now - self._kept >= KEEP_S:
            self._kept = now
            self.talk.keep(line)
        if 0 < len(data) < SMALL and getattr(line, "live", True):
            time.sleep(GATHER_S)

    def _work(self, now: float) -> None:
        if now - self._ticked >= TICK_S:
            self._ticked = now
            self.bridge.tick(now)

    def _again(self, stop: Callable[[], bool]) -> Line | None:
        """Wait for the line; the rest goes on meanwhile."""
        while not stop():
            line = self.plug.again()
            if line is not None and self._started(line):
                return line
            self._work(time.monotonic())
            time.sleep(LOOK_S)
        return None

    def _started(self, line: Line) -> bool:
        """Say the words again; a device that is still booting is asked again later."""
        try:
            profile, rest = self.talk.begin(line)
        except (UserError, LineLost):
            return False
        self.bridge.back(f"{self.plug.port} is there again", profiles.module(profile.protocol).Decoder(profile))
        self._heard = line.clock() + profile.boot_s
        if rest:
            self.bridge.feed(rest, line.clock())
        return True

    @staticmethod
    def _quietly(call) -> None:
        try:
            call()
        except (LineLost, UserError):
            pass
