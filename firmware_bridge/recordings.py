# SPDX-License-Identifier: Apache-2.0
"""A recording that sinks/recorder.py made, whole or cut off, for replay and export: in portions of any size."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Gap
from firmware_bridge.sinks.recorder import COMPLETE, bits
from train.say import UserError, need

SAID = re.compile(r"(?P<words>.*?)(?: @(?P<beat>\d+))? #(?P<logits>(?:[0-9a-f]{2})*)$", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """A decision as it was recorded. words: classes joined by "+", "none" or "unreliable:why"."""

    index: int
    words: str
    beat: int | None
    logits: bytes


class Recording:
    """path: of the folder, of the header, or of the record without its suffix.

    moments: how many are valid. complete: the session came to its end. about: the JSON file beside it.
    """

    def __init__(self, path: str | Path):
        from train.headers import read_header
        self.path = _record(Path(path))
        header = read_header(self._at("hea"))
        try:
            self.about = json.loads(self._at("json").read_text())
            kept = self.about["profile"]
            self.profile = Profile(**kept | {"channels": tuple(Channel(**c) for c in kept["channels"]),
                                             "bauds": tuple(kept["bauds"])})
            self.fs, self.leads = float(self.about["fs"]), tuple(self.about["leads"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._at('json')} cannot be read: {error}", "a recording of live.py --record") from error
        self.settings, self.model = self.about["settings"], self.about["model"]
        self.complete = COMPLETE in header.comments
        self._width = bits(self.profile)
        step = len(self.profile.channels) * self._width // 8
        self._bytes = np.memmap(self._at("dat"), np.uint8, "r") if self._at("dat").stat().st_size else np.zeros(0, "u1")
        self.moments = header.samples if header.samples is not None else len(self._bytes) // step
        if len(self._bytes) < self.moments * step:
            raise UserError(f"{self._at('dat')} is too short", f"{self.moments * step} bytes, as its header tells",
                            "copy the recording again")

    def counts(self, first: int, count: int) -> np.ndarray:
        """int32 (moment, channel), at most `count` moments; missing ones are what missing() says."""
        channels, size = len(self.profile.channels), self._width // 8
        last = min(first + count, self.moments)
        part = np.asarray(self._bytes[first * channels * size:last * channels * size]).reshape(-1, size)
        wide = np.zeros((len(part), 4), np.uint8)
        wide[:, 4 - size:] = part                       # the sign comes along from the top
        return (wide.view("<i4")[:, 0] >> 32 - self._width).reshape(-1, channels).astype(np.int32)

    def missing(self, counts: np.ndarray) -> np.ndarray:
        """bool (moment,): nothing came."""
        return (counts == -1 << self._width - 1).all(1)

    def gaps(self) -> list[Gap]:
        """In order, as far as the recording goes."""
        out = []
        for index, text in self.marks("gap"):
            reason, _, length = text.rpartition(" ")
            if index < self.moments:
                out.append(Gap(index, min(int(length), self.moments - index), reason))
        return out

    def lead_off(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 (n,) moments at which the mask changes, and uint32 (n,) the mask by lead from there on."""
        found = self.marks("off")
        masks = [sum(1 << k for k, lead in enumerate(self.leads) if lead in text.split(",")) for _, text in found]
        return np.array([i for i, _ in found], np.int64), np.array(masks, np.uint32)

    def decisions(self) -> list[Said]:
        """In the order in which they were made."""
        out, classes = [], len(self.model["classes"]) if self.model else None
        for index, text in self.marks("dec"):
            found = SAID.match(text)
            if found and classes in (None, len(found["logits"]) // 2):      # a kill may have cut the last one
                beat = found["beat"] and int(found["beat"])
                out.append(Said(index, found["words"], beat, bytes.fromhex(found["logits"])))
        return out

    def beats(self) -> list[int]:
        """Moments of the R peaks."""
        return [index for index, _ in self.marks("atr")]

    def marks(self, kind: str) -> list[tuple[int, str]]:
        """(moment, text) of an annotation file; none where there is no file."""
        if not self._at(kind).is_file():
            return []
        need("wfdb", "bridge")
        import wfdb
        found = wfdb.rdann(str(self.path), kind)
        return [(int(i), text.rstrip("\0")) for i, text in zip(found.sample, found.aux_note, strict=True)]

    def _at(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


def _record(path: Path) -> Path:
    """The record's path without a suffix."""
    if path.is_dir():
        found = sorted(path.glob("*.hea")) or sorted(path.glob("*/*.hea"))
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found)} recordings", "one",
                            f"for example {found[0].parent}" if found else "the folder that live.py --record made")
        return found[0].with_suffix("")
    path = path.with_suffix("") if path.suffix == ".hea" else path
    if not path.with_name(path.name + ".hea").is_file():
        raise UserError(f"there is no recording {path}", "the folder that live.py --record made")
    return path
