# SPDX-License-Identifier: Apache-2.0
"""The architectures by name, imported when asked for.

A network takes ecg (batch, 1, lead, window) in millivolt and its side inputs (train.sides), and returns logits (batch,
class); see network.Network. An architecture is one file and its line in ARCHS.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from train.say import choose, fail

ARCHS = {"local-lead": "train.models.local_lead:LocalLead",
         "lga": "train.models.lga:Lga",
         "hierarchical": "train.models.hierarchical:Hierarchical",
         "nat": "train.models.nat:Nat",
         "efficient": "train.models.efficient:Efficient"}


def find(arch: str):
    """The class of an architecture by name, or of `path/to/file.py:Class`."""
    if ".py:" in arch:
        file, name = arch.rsplit(":", 1)
        if not Path(file).is_file():
            fail(f"no file {file}", "--arch path/to/file.py:Class", "check the path")
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        where = file
    else:
        where, name = ARCHS[choose(arch, ARCHS, "architecture")].split(":")
        module = importlib.import_module(where)
    if not hasattr(module, name):
        fail(f"{where} has no class {name}", "a class that follows train/models/local_lead.py: LocalLead")
    return getattr(module, name)


def build(arch: str, preset: str, task: str, leads: int, classes: int, rr: int = 0):
    """A fresh network of `arch` in the size `preset` for a task.

    `leads` waveforms, `classes` logits, `rr` RR features (0: a hop task). UserError when the architecture has no such
    preset or the task's window does not fit it.
    """
    from train.models.geometry import task_window
    cls = find(arch)
    size = cls.PRESETS[choose(preset, cls.PRESETS, f"preset of {arch}")]
    network = size if isinstance(size, type) else cls       # a preset may be a network of its own
    return network(preset, task_window(task, "r-peak" if rr else "hop"), leads, classes, rr)
