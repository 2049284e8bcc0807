# SPDX-License-Identifier: Apache-2.0
"""Channels of a front-end -> the leads that a manifest asks for, in microvolts.

`ch1=I,ch2=-II` maps by name and sign; III, aVR, aVL and aVF follow from I and II. A scale that the device does not tell
has to be given: a wrong one would not be noticed, only classified.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from train.leads import DERIVED, derive, parse_map
from train.manifest import LEADS
from train.say import UserError

LIMIT_UV = 1 << 30          # an input of the front end; its clamp is far below


@dataclass(frozen=True)
class Source:
    """A lead straight from a channel. place: of the channel; zero: its count of 0 V; uv: signed microvolts a count."""

    place: int
    zero: int
    uv: float


@dataclass(frozen=True)
class Wiring:
    """leads: names, in order. sources: the channels' own leads by name; other leads derive from those of I and II."""

    leads: tuple[str, ...]
    sources: dict[str, Source]

    @functools.cached_property
    def _columns(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Places, counts of 0 V and microvolts a count of the channels, in the order of sources."""
        held = self.sources.values()
        return [s.place for s in held], np.array([s.zero for s in held], float), np.array([s.uv for s in held])

    @functools.cached_property
    def _order(self) -> list[int] | None:
        """Place among the sources of each lead, None when a lead derives from others."""
        names = list(self.sources)
        return [names.index(lead) for lead in self.leads] if set(self.leads) <= set(names) else None

    def uv(self, counts: np.ndarray) -> np.ndarray:
        """int32 (moment, channel) -> int32 microvolts (lead, moment), halves rounded up."""
        places, zero, uv = self._columns
        real = np.floor((counts[:, places] - zero) * uv + 0.5)
        held = np.minimum(np.maximum(real, -LIMIT_UV), LIMIT_UV).astype(np.int32).T
        return self._leads(held, lambda lead, by_name: derive(lead, by_name["I"], by_name["II"]))

    def _leads(self, held: np.ndarray, other) -> np.ndarray:
        """(source, moment) -> (lead, moment); other(lead, rows by source) for a lead that has no channel."""
        if self._order is not None:
            return np.ascontiguousarray(held[self._order])
        by_name = dict(zip(self.sources, held, strict=True))
        return np.stack([by_name[lead] if lead in by_name else other(lead, by_name) for lead in self.leads])

    def lead_off(self, masks: np.ndarray) -> np.ndarray:
        """uint32 (moment,) by channel -> by lead: a derived lead is off with either of those it comes from."""
        out = np.zeros_like(masks)
        if not masks.any():
            return out
        for k, lead in enumerate(self.leads):
            for name in (lead,) if lead in self.sources else ("I", "II"):
                out |= (masks >> np.uint32(self.sources[name].place) & np.uint32(1)) << np.uint32(k)
        return out

    def rails(self, counts: np.ndarray, profile: Profile) -> np.ndarray:
        """bool (lead, moment): a channel that the lead comes from is at 99 % of either rail or beyond."""
        low, high = _rails(profile.channels)
        places = self._columns[0]
        taken = counts[:, places]
        at = ((taken <= low[places]) | (taken >= high[places])).T
        return self._leads(at, lambda lead, by_name: by_name["I"] | by_name["II"])


@functools.lru_cache(maxsize=8)
def _rails(channels: tuple[Channel, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Counts (channel,) that are 99 % of the way to either rail."""
    low, high = (np.array([getattr(c, side) for c in channels], float) for side in ("low", "high"))
    margin = (high - low) / 200
    return low + margin, high - margin


def wire(profile: Profile, wanted: tuple[str, ...] | None, words: str | None = None,
         nv_per_count: float | None = None) -> Wiring:
    """The wiring for a manifest's leads; all leads that the words or the profile name when `wanted` is None.

    words: a lead map, None for the profile's usual leads; when one lead is wanted, a channel that has a usual lead or
    else the first. UserError for channels that do not exist, leads that the manifest does not list, leads missing, and
    an unknown scale.
    """
    given = _given(profile, wanted, words)
    for lead in given:
        if wanted and lead not in wanted and not _helps(lead, wanted):
            raise UserError(f"the model does not know lead {lead}", ", ".join(wanted),
                            f"--leads {_example(profile, wanted)}")
    sources = {lead: _source(profile, channel, nv_per_count) for lead, channel in given.items()}
    leads = tuple(wanted or given)
    missing = [lead for lead in leads if lead not in sources and not (lead in DERIVED and {"I", "II"} <= set(sources))]
    if missing:
        raise UserError(f"no channel is lead {', '.join(missing)}", f"a channel of {profile.title} for each lead",
                        f"--leads {_example(profile, wanted)}")
    return Wiring(leads, sources)


def _given(profile: Profile, wanted, words: str | None) -> dict[str, str]:
    """Lead -> channel, with a minus sign in front when it is turned over."""
    if words is not None:
        leads, channels = parse_map(words)
        names = [c.name for c in profile.channels]
        # a bare lead name without a channel of that name: the front-end's channels in order
        spare = iter(n for i, n in enumerate(names) if i in profile.ecg)
        return {lead: channel if channel.removeprefix("-") in names else _next(spare, lead, channel, profile)
                for lead, channel in zip(leads, channels, strict=True)}
    usual = {profile.channels[i].lead: profile.channels[i].name for i in profile.ecg if profile.channels[i].lead}
    if wanted is None:
        return usual or {LEADS[k]: profile.channels[i].name for k, i in enumerate(profile.ecg[:len(LEADS)])}
    if len(wanted) == 1 and wanted[0] not in usual and not {"I", "II"} <= set(usual):
        return {wanted[0]: next(iter(usual.values()), profile.channels[profile.ecg[0]].name)}
    return {lead: name for lead, name in usual.items() if lead in wanted or _helps(lead, wanted)}


def _helps(lead: str, wanted) -> bool:
    """I and II help where a lead is wanted that derives from them."""
    return lead in ("I", "II") and any(name in DERIVED for name in wanted)


def _next(spare, lead: str, channel: str, profile: Profile) -> str:
    if channel.removeprefix("-") != lead:
        raise UserError(f"{profile.title} has no channel {channel.removeprefix('-')!r}",
                        ", ".join(profile.channels[i].name for i in profile.ecg))
    name = next(spare, None)
    if name is None:
        raise UserError(f"{profile.title} has only {len(profile.ecg)} channels", f"as many leads, not {lead} too")
    return ("-" if channel.startswith("-") else "") + name


def _source(profile: Profile, channel: str, nv_per_count: float | None) -> Source:
    name = channel.removeprefix("-")
    place = [c.name for c in profile.channels].index(name)
    found = profile.channels[place]
    if found.kind != "ecg":
        raise UserError(f"channel {name} of {profile.title} measures {found.kind}", "a channel with an ECG",
                        ", ".join(profile.channels[i].name for i in profile.ecg))
    nv = found.nv_per_count if nv_per_count is None else nv_per_count
    if nv is None or not nv > 0:
        raise UserError(f"{profile.title} does not tell what a count of {name} is worth", "nanovolts a count",
                        "--nv-per-count 2930 for an AD8232 board (gain 1100) on a 10-bit converter at 3.3 V")
    return Source(place, found.zero, (-1 if channel.startswith("-") else 1) * nv / 1000)


def _example(profile: Profile, wanted) -> str:
    """A map that would do."""
    names = [profile.channels[i].name for i in profile.ecg]
    return ",".join(f"{name}={lead}" for name, lead in zip(names, wanted, strict=False))
