# SPDX-License-Identifier: Apache-2.0
"""Float networks compared on records that none of them was trained on: sizes, and what they get right per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from compress import report
from compress.evaluate import FLOAT_STEP, Logits
from train import say
from train.loop import predict, quality
from train.models.cost import Cost


def logits(net, source, indices: Sequence[int], device: str = "cpu") -> Logits:
    """Logits of the rows that have a class: records, or beats."""
    out = predict(net.to(device), source, indices, device)
    truth = source.truth(indices)
    unit = np.array([source.shards.records[i]["name"] for i in source.units(indices)])
    known = np.ones(len(truth), bool) if truth.ndim == 2 else truth >= 0
    sums = np.rint(out[known] / FLOAT_STEP).astype(np.int64)
    return Logits(sums, np.ones(len(sums), np.int64), truth[known], unit[known], FLOAT_STEP)


def compared(forms: Mapping[str, Sequence[Logits]], classes: Sequence[str], task: str) -> dict:
    """Print and return the table of several networks, the first the base; several Logits of one are pooled.

    Argmax without offsets, or a probability of one half where a record may have several classes.
    """
    pooled = {form: Logits.join(parts) for form, parts in forms.items()}
    called = {form: x.sums >= 0 if x.truth.ndim == 2 else x.sums.argmax(1) for form, x in pooled.items()}
    result = report.compare(called, pooled, list(classes), task)
    areas = {form: quality(x.mean, x.truth) for form, x in pooled.items()}
    for form, value in areas.items():
        say.info(f"{form:20s} mean AUROC {value:.4f}")
    return result | {"auroc": {form: None if np.isnan(value) else value for form, value in areas.items()}}


def sizes(costs: Mapping[str, Cost]) -> dict:
    """Print and return parameters, multiply-accumulates and the estimate of int8 bytes."""
    say.table([[name, f"{c.parameters:,}", f"{c.macs / 1e6:.2f}", f"{c.int8_bytes / 1000:.0f}"]
               for name, c in costs.items()], ("network", "parameters", "MMAC", "kB as int8, estimated"))
    return {name: asdict(c) for name, c in costs.items()}
