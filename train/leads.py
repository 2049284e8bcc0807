# SPDX-License-Identifier: Apache-2.0
"""Lead names: the standard spelling, leads that follow from I and II, and maps such as `ch1=I,ch2=-II`.

Numpy only, so that live inputs and files share one rule. A lead is int32 microvolts (time,).
"""

from __future__ import annotations

import numpy as np

from train.manifest import LEADS
from train.say import UserError

_SPELLING = {lead.upper(): lead for lead in LEADS} | {"DI": "I", "DII": "II", "DIII": "III"}
DERIVED = {"III": (-2, 2), "aVR": (-1, -1), "aVL": (2, -1), "aVF": (-1, 2)}     # halves of I and of II


def standard(name: str) -> str:
    """The standard spelling of a lead ("avf" -> "aVF", "DII" -> "II"); other names come back as they are."""
    return _SPELLING.get(name.strip().upper(), name.strip())


def derive(lead: str, i: np.ndarray, ii: np.ndarray) -> np.ndarray | None:
    """III, aVR, aVL or aVF from I and II by Einthoven's and Goldberger's laws, halves rounded up; None for others."""
    if lead not in DERIVED:
        return None
    a, b = DERIVED[lead]
    return ((a * i.astype(np.int64) + b * ii.astype(np.int64) + 1) >> 1).astype(np.int32)


def parse_map(words: str | tuple[str, ...] | list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read a lead map, "I,II" or ("ch1=I", "ch2=-II"): (leads served, channels they come from).

    A minus sign turns the channel over: "ch2=-II" serves lead II as channel ch2 inverted, source "-ch2".
    Raises UserError for a lead that no model can list, or one given twice.
    """
    if isinstance(words, str):
        words = words.split(",")
    leads, sources = [], []
    for word in (w.strip() for w in words):
        channel, equals, target = word.rpartition("=")
        sign, lead = ("-", target[1:]) if target.startswith("-") else ("", target)
        lead = standard(lead)
        if lead not in LEADS or (equals and not channel):
            raise UserError(f"{word!r} is not a lead", f"one of {', '.join(LEADS)}, or channel=lead, or channel=-lead",
                            "for example --leads I,II or --leads ch1=I,ch2=-II")
        if lead in leads:
            raise UserError(f"lead {lead} is given twice in {','.join(words)}", "each lead once")
        leads.append(lead)
        sources.append(sign + (channel.strip() or lead))
    return tuple(leads), tuple(sources)
