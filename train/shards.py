# SPDX-License-Identifier: Apache-2.0
"""Prepared records on disk: int16 microvolts behind the front end at the task's fs, memory-mapped.

A cache folder holds `index.json`, which is written last and vouches for the rest, and for each shard
    00000.i16       record after record, each (lead, length) int16 little-endian
    00000.npy       beats of its records in one structured array (tasks that label beats)
    00000.json      what is in the two, written behind them
Lengths and positions are samples at fs. Numpy only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from train.records import Entry
from train.say import UserError
from train.tasks import TASKS

VERSION = 1
_OPEN = 256             # shard files mapped at a time; a map holds a file descriptor


def beat_dtype(features: int) -> np.dtype:
    """One beat: R position in signal(i), class index or -1, annotation symbol, RR features."""
    return np.dtype([("sample", "<i8"), ("label", "i1"), ("symbol", "U1"), ("rr", "i1", (features,))])


class Shards:
    """The records of a prepared data set.

    `task` name, `classes` names, `fs`, `leads` names, `frontend` spec, `excluded` names (records the task's rule keeps
    out of everything), `skipped` [{"name", "why"}] (records that were broken), and `records`: a dict each with name,
    patient, fold, split (for fold 0), labels [class index], shard, start, length, duration_s, age, sex; for tasks that
    label beats also beats [first, last) in the shard, and flutter [[first, last], ...], the stretches of ventricular
    flutter. It can be sent to other processes: the maps stay behind and are opened again there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            index = json.loads((self.path / "index.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} holds no prepared records ({error})", "a cache folder",
                            "python train/prepare.py --task ... --data ...") from None
        if index.get("version") != VERSION:
            raise UserError(f"{self.path} was prepared by another version", f"version {VERSION}", "prepare it again")
        self.task, self.classes, self.fs = index["task"], tuple(index["classes"]), index["fs"]
        self.leads, self.frontend = tuple(index["leads"]), index["frontend"]
        self.records, self.skipped, self.excluded = index["records"], index["skipped"], index["excluded"]
        self._maps: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def signal(self, i: int) -> np.ndarray:
        """int16 microvolts (lead, length) of record `i`, a read-only view of the file."""
        record = self.records[i]
        size = len(self.leads) * record["length"]
        whole = self._map(f"{record['shard']:05d}.i16")
        return whole[record["start"]:record["start"] + size].reshape(len(self.leads), -1)

    def beats(self, i: int) -> np.ndarray:
        """Beats of record `i` in order of time, see beat_dtype; UserError for a task that labels whole records."""
        record = self.records[i]
        if "beats" not in record:
            raise UserError(f"task {self.task} labels whole records", "a task that labels beats, such as mitbih")
        first, last = record["beats"]
        return self._map(f"{record['shard']:05d}.npy")[first:last]

    def splits(self, fold: int = 0) -> list[str]:
        """The split of every record when `fold` is tested on, see Task.split."""
        task = TASKS[self.task]
        return [task.split(Entry(r["name"], Path(), r["patient"], fold=r["fold"]), fold) for r in self.records]

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            while len(self._maps) >= _OPEN:
                del self._maps[next(iter(self._maps))]
            path = self.path / name
            if name.endswith(".npy"):
                self._maps[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                self._maps[name] = np.memmap(path, "<i2", "r") if path.stat().st_size else np.zeros(0, "<i2")
        return self._maps[name]


def open_shards(path: str | Path) -> Shards:
    """The prepared records in a cache folder that `prepare` returned."""
    return Shards(path)
