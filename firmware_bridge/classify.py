# SPDX-License-Identifier: Apache-2.0
"""Classification in this process: conditioned microvolts to decisions, by the C twin or an engine around a runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from firmware_bridge.conditioner import Begin, Piece
from firmware_bridge.engine import Engine
from firmware_bridge.session import Decision, Event
from train.frontend import SETTLE_S
from train.manifest import Manifest
from train.say import MissingError


class Classifier(Protocol):
    """Where decisions come from."""

    def push(self, item: Piece | Begin) -> list[Decision | Event]:
        """What comes next in the stream -> the decisions that are ready by now."""

    def poll(self) -> list[Decision | Event]:
        """What has become ready since, also after close(). Empty for a classifier that never waits."""

    def close(self) -> None:
        """Nothing follows."""


class Local:
    """decider: a targets.twin.Twin or an Engine, for samples of fs_in Hz."""

    def __init__(self, manifest: Manifest, decider, fs_in: float, clock: Callable[[], float] = time.monotonic):
        self.manifest, self.decider, self.clock = manifest, decider, clock
        self.ratio = fs_in / manifest.fs
        self.origin, self.why = 0, "settling"

    def push(self, item: Piece | Begin) -> list[Decision]:
        """The decisions that a piece completes."""
        if isinstance(item, Begin):
            self.decider.reset()
            self.origin, self.why = item.first, "settling"
            return []
        if item.bad:
            self.why = item.bad
            self.decider.bad()
        rows = self.decider.decide(item.uv)
        if item.bad:
            self.decider.bad()
        waited = 1000 * (self.clock() - item.arrived)
        return [self._decision(row, waited) for row in rows]

    def poll(self) -> list[Decision]:
        """Nothing waits."""
        return []

    def close(self) -> None:
        """Nothing to give back."""

    def _decision(self, row, waited: float) -> Decision:
        m, sample = self.manifest, int(row["sample"])
        at = self.origin + math.ceil((sample + 1) * self.ratio)
        beat = self.origin + round(sample * self.ratio) if m.trigger.kind == "r-peak" else None
        why = "" if not row["unreliable"] else "settling" if sample < SETTLE_S * m.fs else self.why
        return Decision(at, named(m, int(row["present"])), np.array(row["logits"]), why, beat, waited)


def named(manifest: Manifest, present: int) -> tuple[str, ...]:
    """Bit mask of classes -> their names."""
    return tuple(c.name for k, c in enumerate(manifest.classes) if present >> k & 1)


def local(run: str | Path, name: str, manifest: Manifest, graph, fs_in: float, threads: int = 1) -> Local:
    """The classifier of a run by a target in this process, as deploy.py built it."""
    import targets
    from targets import target
    module = targets.load(name)
    absent = module.missing()
    if absent:
        raise MissingError(f"target {name} cannot run here: {absent}")
    built = target.open_build(run, name, manifest)
    if name == "host":
        from targets import twin
        return Local(manifest, twin.Twin(built.path, graph, fs_in, manifest.fs), fs_in)
    return Local(manifest, Engine(manifest, module.runner(built, graph, threads), fs_in), fs_in)
