# SPDX-License-Identifier: Apache-2.0
"""One integer graph, one build per device. A target is a module with the verbs of `target.py`, loaded on first use."""

from __future__ import annotations

import difflib
import importlib

from train.say import MissingError, choose

TARGETS = {"arm": "targets.arm", "host": "targets.host", "jetson": "targets.jetson",
           "litert": "targets.litert", "mcu": "targets.mcu"}


def load(name: str):
    """The module of a target; a misspelt name is a UserError, a target that does not exist a MissingError."""
    if name not in TARGETS and not difflib.get_close_matches(name, TARGETS, 1):
        raise MissingError(f"this release has no target {name!r}", ", ".join(TARGETS))
    return importlib.import_module(TARGETS[choose(name, TARGETS, "target")])
