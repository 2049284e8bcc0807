# SPDX-License-Identifier: Apache-2.0
"""When samples were taken: a line fitted to the arrivals, which come in bursts and late, and the rate it implies.

Recursive least squares with forgetting, t = t0 + n / fs, on one point a portion: the moment that came last and when it
came. The method is that of the Lab Streaming Layer's dejittering (time_postprocessor.cpp there): a fixed half-life, so
that a drifting clock is followed, and times that never go back.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.say import UserError

HALF_LIFE_S = 90.0          # after which an arrival counts half
WARM_S = 4.0                # before that the nominal rate is believed
WARN, REFUSE = 0.005, 0.05  # relative difference of measured and nominal rate
JUDGED_S = 10.0             # seconds of arrivals on which the rate is judged


class Clock:
    """The line. nominal: moments a second that the device promises."""

    def __init__(self, nominal: float):
        self.nominal = nominal
        self._latest = -float("inf")
        self.restart()

    def restart(self) -> None:
        """After a reconnection the old arrivals say nothing about the new; what time() gave stays a lower bound."""
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._first = self._last = None

    def arrived(self, index: int, seconds: float) -> None:
        """Moment `index` was the last of a portion that came in at `seconds` (host, monotonic)."""
        if self._first is None:
            self._first = index
        elif index <= self._last:
            return
        step = (index - self._last) / self.nominal if self._last is not None else 0.0
        keep = 0.5 ** (step / HALF_LIFE_S)
        self._last = index
        # weighted means and centred moments: exact after days, where sums of squares would have lost their digits
        self._weight = self._weight * keep + 1
        dn, dt = index - self._n, seconds - self._t
        self._n += dn / self._weight
        self._t += dt / self._weight
        self._nn = self._nn * keep + dn * (index - self._n)
        self._nt = self._nt * keep + dn * (seconds - self._t)

    @property
    def span(self) -> float:
        """Seconds of signal that were observed."""
        return (self._last - self._first) / self.nominal if self._last is not None else 0.0

    @property
    def fs(self) -> float:
        """Measured moments a second; the nominal rate until WARM_S have been seen."""
        return self._nn / self._nt if self.span >= WARM_S and self._nt > 0 else self.nominal

    def time(self, index: float) -> float:
        """Host seconds (monotonic) at which moment `index` came, without the bursts; never before an earlier answer."""
        if self._first is None:
            raise ValueError("no moment has arrived")
        found = self._t + (index - self._n) / self.fs
        self._latest = max(self._latest, found)
        return self._latest

    def expected(self, seconds: float) -> float:
        """The moment, with a fraction, that should have come at `seconds`."""
        return self._n + (seconds - self._t) * self.fs


@dataclass(frozen=True)
class Verdict:
    """What the measured rate says: off is relative to the nominal one."""

    fs: float
    off: float

    @property
    def warn(self) -> bool:
        """Worth a sentence."""
        return abs(self.off) > WARN


def judge(clock: Clock, allow: float = REFUSE) -> Verdict | None:
    """The verdict once JUDGED_S have been seen, else None; UserError beyond `allow`."""
    if clock.span < JUDGED_S:
        return None
    off = clock.fs / clock.nominal - 1
    if abs(off) > allow:
        raise UserError(f"the device sends {clock.fs:.2f} moments a second, {off:+.1%} beside its profile's",
                        f"{clock.nominal:g} within {allow:.0%}", f"pass the true rate: --rate {clock.fs:.4g}")
    return Verdict(clock.fs, off)
