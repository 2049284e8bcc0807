# SPDX-License-Identifier: Apache-2.0
"""Training with a fraction of the labels: which records keep theirs, and how often an epoch shows them.

All records outside the test part are candidates, so that no label is spent on stopping: training runs for a fixed
number of epochs, without validation. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.say import fail

STEPS_POWER = 0.4       # optimizer steps shrink with (labels kept) ** this: 1 % of the labels gets 16 % of the steps


def subset(source, indices: Sequence[int], fraction: float, seed: int) -> list[int]:
    """The records among `indices` that keep their labels, ascending: `fraction` of each class, at least one.

    Records with several labels count for the rarest, those with none are a class of their own. The order within a class
    depends on the seed alone, so a smaller fraction is a part of a larger one of the same seed.
    """
    if source.geometry.trigger != "hop":
        fail("--labels draws whole records, and this task labels beats", "a task that labels records, such as cinc2017",
             "leave out --labels")
    indices, counts = sorted(source.labelled(indices)), source.counts(indices)
    groups: dict[int, list[int]] = {}
    for i in indices:
        present = source.shards.records[i]["labels"]
        groups.setdefault(min(present, key=lambda k: counts[k]) if present else -1, []).append(i)
    kept = []
    for k, members in groups.items():
        order = np.random.default_rng([seed, k + 1]).permutation(members)
        kept += order[:max(1, round(fraction * len(members)))].tolist()
    return sorted(kept)


def repeated(indices: Sequence[int], fraction: float) -> list[int]:
    """`indices` as often as an epoch shows them: fraction ** (STEPS_POWER - 1) times, rounded."""
    return list(indices) * max(1, round(fraction ** (STEPS_POWER - 1)))
