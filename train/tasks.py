# SPDX-License-Identifier: Apache-2.0
"""What a model can be trained for: classes, how a data set's codes map to them, and who is trained on and tested on.

A `Task` maps a raw code (a beat symbol, a SNOMED code, "A") to a class index, NO_TARGET (known, but nothing to learn:
AAMI F and Q, unscored diagnoses) or an error. Splits never divide `unit`: a patient where ids are published, else a
record. The file to change for a new task is this one (`TASKS` at the end).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from train.manifest import LEADS, Label
from train.records import Entry
from train.say import RecordError, choose

NO_TARGET = -1
SPLITS = ("train", "test", "apart", "excluded")     # apart: scored in a row of its own, never in a headline figure
TWELVE = LEADS[:12]


@dataclass(frozen=True)
class Task:
    """A classification task. `codes` maps raw codes to class indices.

    `trigger` "r-peak" labels beats by their annotation symbol, "hop" labels whole records.
    """

    name: str
    dataset: str                    # of records.DATASETS, or "synthetic"
    classes: tuple[Label, ...]
    leads: tuple[str, ...]          # default leads
    trigger: str                    # hop | r-peak
    unit: str                       # patient | record: what a split keeps whole
    rule: str                       # the split in words, for the manifest
    source: str                     # what the records are and their licence, for the manifest
    codes: Mapping[str, int] = field(hash=False, repr=False)
    splitter: Callable[[Entry, int], str] = field(repr=False)
    multi_label: bool = False
    other_codes: str = ""           # regular expression of codes that are known and no target
    fs: int = 250                   # Hz at the network

    def label(self, code: str) -> int:
        """Class index of a raw code, or NO_TARGET; RecordError for a code the data set does not define."""
        if code in self.codes:
            return self.codes[code]
        if re.fullmatch(self.other_codes, code):
            return NO_TARGET
        raise RecordError(f"unknown class {code!r} in task {self.name}", ", ".join(sorted(self.codes)),
                          "correct the label, or leave the record out with --skip-broken")

    def labels(self, codes: Iterable[str]) -> tuple[int, ...]:
        """Class indices present in a record, ascending; RecordError when a single-label task finds two."""
        found = sorted({self.label(code) for code in codes} - {NO_TARGET})
        if len(found) > 1 and not self.multi_label:
            raise RecordError(f"classes {', '.join(self.classes[k].name for k in found)} on one record",
                              f"one class of task {self.name}", "leave the record out with --skip-broken")
        return tuple(found)

    def split(self, entry: Entry, fold: int = 0) -> str:
        """One of SPLITS when `fold` is the one tested on (tasks with a published split ignore `fold`)."""
        return self.splitter(entry, fold)


def find(task: str | Task) -> Task:
    """The task of that name; UserError with the nearest spelling."""
    return task if isinstance(task, Task) else TASKS[choose(task, TASKS, "task")]


def _codes(classes: Iterable[Iterable[str]]) -> Mapping[str, int]:
    """{code: index} from the codes of each class."""
    return {code: k for k, codes in enumerate(classes) for code in codes}


def _by_fold(entry: Entry, fold: int) -> str:
    return "test" if entry.fold == fold else "train"


FOLDS = "five folds, SHA-1 of the {} name modulo 5; fold 0 is the development test"

# ---- mitbih: ANSI/AAMI EC57 beat classes, inter-patient split of de Chazal et al. 2004

# Annotation symbol -> AAMI class. A symbol that is not here is no beat.
AAMI = {symbol: name for name, symbols in (("N", "NLRej"), ("S", "AaJS"), ("V", "VE"), ("F", "F"), ("Q", "/fQ"))
        for symbol in symbols}
DS1 = tuple("101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split())
DS2 = tuple("100 103 105 111 113 117 121 123 200 210 212 213 214 219 221 222 228 231 232 233 234".split())
PACED = ("102", "104", "107", "217")


def _mitbih_split(entry: Entry, fold: int) -> str:
    """DS1 trains, DS2 tests. 202 is the patient of 201, who trains: apart. Paced records are excluded (EC57)."""
    if entry.name in DS1:
        return "train"
    if entry.name in DS2:
        return "test"
    return "excluded" if entry.name in PACED else "apart"


_AAMI_CLASSES = ("N", "S", "V")
MITBIH = Task(
    "mitbih", "mitdb", tuple(Label(c, f"AAMI:{c}") for c in _AAMI_CLASSES), ("MLII",), "r-peak", "patient",
    "de Chazal DS1 against DS2; 202 apart (the patient of 201), paced 102 104 107 217 excluded",
    "MIT-BIH Arrhythmia Database 1.0.0, ODC-By 1.0",
    # F (fusion) and Q (paced, unclassifiable) keep their symbol in the beat table without a label. F trained as: none.
    {s: _AAMI_CLASSES.index(c) if c in _AAMI_CLASSES else NO_TARGET for s, c in AAMI.items()},
    _mitbih_split)

# ---- rhythm of single-lead records

_RHYTHMS = {"N": Label("N", "SNOMED:426783006"), "A": Label("A", "SNOMED:164889003"), "O": Label("O", "CINC2017:O"),
            "~": Label("~", "CINC2017:~")}
CINC2017 = Task(
    "cinc2017", "cinc2017", tuple(_RHYTHMS.values()), ("I",), "hop", "record",
    "by record, no patient ids are published: " + FOLDS.format("record"),
    "PhysioNet/CinC Challenge 2017 training set, v3 labels, ODC-By 1.0", _codes(_RHYTHMS), _by_fold)


def _synthetic_split(entry: Entry, fold: int) -> str:
    return "train" if entry.name.startswith("train") else "test"


SYNTHETIC_RECORDS = {"train": 2400, "test": 400}        # 30 s each
SYNTHETIC_SEED = 1
SYNTHETIC = Task(
    "synthetic", "synthetic", tuple(_RHYTHMS[c] for c in "NAO"), ("I",), "hop", "patient",
    "other synthetic patients in test than in training", "records made by train/synth.py, Apache-2.0",
    _codes("NAO"), _synthetic_split)

# ---- 12-lead diagnoses

# Scored classes of the challenge of 2021; codes joined by its weights table count as one class.
_CINC2021 = {"AF": "164889003", "AFL": "164890007", "BBB": "6374002", "Brady": "426627000",
             "LBBB": "733534002 164909002", "RBBB": "713427006 59118001", "IAVB": "270492004", "IRBBB": "713426002",
             "LAD": "39732003", "LAnFB": "445118002", "LPR": "164947007", "LQRSV": "251146004", "LQT": "111975006",
             "NSIVCB": "698252002", "NSR": "426783006", "PAC": "284470004 63593006", "PR": "10370003",
             "PRWP": "365413008", "PVC": "427172004 17338001", "QAb": "164917005", "RAD": "47665007", "SA": "427393009",
             "SB": "426177001", "STach": "427084000", "TAb": "164934002", "TInv": "59931005"}
# 2020 scored neither BBB nor PRWP, and LBBB under one code only.
_CINC2020 = {name: codes for name, codes in _CINC2021.items() if name not in ("BBB", "PRWP")} | {"LBBB": "164909002"}


def _cinc(year: int, classes: dict[str, str]) -> Task:
    return Task(f"cinc{year}", f"cinc{year}",
                tuple(Label(name, "SNOMED:" + codes.replace(" ", "|")) for name, codes in classes.items()), TWELVE,
                "hop", "record", "by record, no patient ids are published: " + FOLDS.format("record"),
                f"PhysioNet/CinC Challenge {year} training sets, CC BY 4.0",
                _codes(codes.split() for codes in classes.values()), _by_fold, multi_label=True, other_codes=r"\d+")


# Diagnostic superclasses of PTB-XL (diagnostic_class of scp_statements.csv); form and rhythm statements are no target.
_PTBXL = {"NORM": "NORM",
          "MI": "IMI ASMI ILMI AMI ALMI INJAS LMI INJAL IPLMI IPMI INJIN INJLA PMI INJIL",
          "STTC": "NDT NST_ DIG LNGQT ISC_ ISCAL ISCIN ISCIL ISCAS ISCLA ANEUR EL ISCAN",
          "CD": "LAFB IRBBB 1AVB IVCD CRBBB CLBBB LPFB WPW ILBBB 3AVB 2AVB",
          "HYP": "LVH LAO/LAE RVH RAO/RAE SEHYP"}


def _ptbxl_split(entry: Entry, fold: int) -> str:
    """Folds 1-8 train, 9 is the development test; 10, the final test, is kept apart."""
    return "train" if entry.fold in range(1, 9) else "test" if entry.fold == 9 else "apart"


PTBXL = Task("ptbxl", "ptbxl", tuple(Label(name, f"SCP:{name}") for name in _PTBXL), TWELVE, "hop", "patient",
             "strat_fold 1-8 train, 9 development test, 10 apart", "PTB-XL 1.0.3, CC BY 4.0",
             _codes(codes.split() for codes in _PTBXL.values()), _ptbxl_split, multi_label=True,
             other_codes=r"[A-Z0-9_/()?]+")

_CODE15 = {"1dAVb": "270492004", "RBBB": "59118001", "LBBB": "164909002", "SB": "426177001", "ST": "427084000",
           "AF": "164889003"}
CODE15 = Task("code15", "code15", tuple(Label(name, f"SNOMED:{code}") for name, code in _CODE15.items()), TWELVE, "hop",
              "patient", FOLDS.format("patient"), "CODE-15%, CC BY 4.0", _codes([name] for name in _CODE15), _by_fold,
              multi_label=True)

_LUDB = (("Sinus rhythm", "Sinus bradycardia", "Sinus tachycardia", "Sinus arrhythmia", "Irregular sinus rhythm"),
         ("Atrial fibrillation",), ("Atrial flutter, typical", "Abnormal rhythm"))
LUDB = Task("ludb", "ludb", tuple(_RHYTHMS[c] for c in "NAO"), TWELVE, "hop", "record",
            "by record: " + FOLDS.format("record"),
            "Lobachevsky University Electrocardiography Database 1.0.1, ODC-By 1.0",
            _codes([f"Rhythm: {r}" for r in rhythms] for rhythms in _LUDB), _by_fold, other_codes="(?!Rhythm:).*")

TASKS = {task.name: task for task in (SYNTHETIC, MITBIH, CINC2017, _cinc(2020, _CINC2020), _cinc(2021, _CINC2021),
                                      PTBXL, CODE15, LUDB)}
