# SPDX-License-Identifier: Apache-2.0
"""The score of the PhysioNet/CinC Challenges of 2020 and 2021: credit for diagnoses that are treated alike.

A record with true classes T and called classes C adds the sum of weight[t, c] over t in T and c in C, divided by the
number of classes in T or C. The score is 1 for calling what is true and 0 for calling every record normal. No label is
changed on the way: a record without a scored class stays one, and adds nothing.

The official table of weights (weights.csv of the evaluation code, 2021; that of 2020 holds the same numbers for its
classes) is 0.5 less the distance of two diagnoses on a line, but for two pairs; so the line is what is kept here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from train.metrics import Figure
from train.say import fail

NORMAL = "426783006"        # sinus rhythm
TASKS = ("cinc2020", "cinc2021")
PLACES = {                  # on the line -> SNOMED codes
    -0.1: "164917005",                                              # abnormal Q wave
    0.0: "164889003 164890007 164934002 59931005",                  # AF, flutter, abnormal T, inverted T
    0.025: "6374002 733534002 164909002",                           # bundle branch block, left, complete left
    0.05: "111975006",                                              # long QT
    0.075: "251146004 365413008",                                   # low QRS voltages, poor R progression
    0.1: "713427006 59118001",                                      # right bundle branch block, complete and not
    0.125: "10370003 427172004 17338001 427084000",                 # paced, ventricular beats, sinus tachycardia
    0.15: "39732003 47665007 445118002 698252002",                  # axes, left anterior block, conduction disorder
    0.1625: "284470004 63593006",                                   # premature atrial beats
    0.2: "426627000 270492004 713426002 164947007 427393009 426177001",     # bradycardia, first-degree AV block, ...
    0.25: NORMAL}
CLOSER = {frozenset(("6374002", "733534002")), frozenset(("251146004", "365413008"))}     # 0.475 at one place


def weights(labels: Iterable) -> np.ndarray:
    """The official weights of classes given as manifest labels, float (class, class); true classes are the rows.

    A label whose code joins several, "SNOMED:a|b", goes by the first: joined codes weigh the same.
    """
    line = {code: place for place, codes in PLACES.items() for code in codes.split()}
    codes = [_first(label) for label in labels]
    for code in codes:
        if code not in line:
            fail(f"{code} is no scored diagnosis of the challenge", ", ".join(line))
    at = np.array([line[code] for code in codes])
    table = 0.5 - np.abs(at[:, None] - at)
    for i, a in enumerate(codes):
        for j, b in enumerate(codes):
            if {a, b} in CLOSER:
                table[i, j] = 0.475
    np.fill_diagonal(table, 1)
    return table


def _first(label) -> str:
    return label.code.removeprefix("SNOMED:").split("|")[0]


def figure(labels: Iterable, truth, called) -> Figure:
    """The challenge score of bool (record, class) decisions on classes `labels`."""
    labels = list(labels)
    table, truth = weights(labels), np.asarray(truth, bool)
    normal = np.zeros_like(truth)
    normal[:, [_first(label) for label in labels].index(NORMAL)] = True
    return Figure(np.stack([_credit(table, truth, c) for c in (np.asarray(called, bool), truth, normal)], 1), _score)


def _credit(table: np.ndarray, truth: np.ndarray, called: np.ndarray) -> np.ndarray:
    """What each record adds, (record,)."""
    return ((truth @ table) * called).sum(1) / np.maximum((truth | called).sum(1), 1)


def _score(sums: np.ndarray) -> np.ndarray:
    """From credit of what was called, of the truth and of normal, (..., 3); 0 where normal is the whole truth."""
    got, most, none = np.moveaxis(sums, -1, 0)
    return np.divide(got - none, most - none, out=np.zeros(np.shape(got)), where=most != none)
