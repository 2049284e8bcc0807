# SPDX-License-Identifier: Apache-2.0
"""What each task learns: classes, the codes that map to them, and splits that keep patients whole."""

import csv
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

from train import records, tasks
from train.manifest import LEADS
from train.records import Entry
from train.say import RecordError, UserError
from train.tasks import AAMI, DS1, DS2, NO_TARGET, PACED, TASKS

ALL = list(TASKS.values())
BEATS = "N L R e j A a J S V E F / f Q".split()
MITDB = ("100 101 102 103 104 105 106 107 108 109 111 112 113 114 115 116 117 118 119 121 122 123 124 "
         "200 201 202 203 205 207 208 209 210 212 213 214 215 217 219 220 221 222 223 228 230 231 232 233 234").split()


def by_name(task):
    return task.name


def entry(name, fold=None, patient=""):
    return Entry(name, Path(), patient or name, fold=fold)


@pytest.mark.parametrize("task", ALL, ids=by_name)
def test_a_task_is_complete_and_can_be_sent_to_a_process(task):
    assert task.dataset == "synthetic" or task.dataset in records.DATASETS
    assert len({c.name for c in task.classes}) == len(task.classes) and all(":" in c.code for c in task.classes)
    assert set(task.leads) <= set(LEADS) and task.trigger in ("hop", "r-peak") and task.unit in ("patient", "record")
    assert task.rule and task.source and set(task.codes.values()) - {NO_TARGET} == set(range(len(task.classes)))
    copy = pickle.loads(pickle.dumps(task))
    assert copy.name == task.name and copy.codes == task.codes
    assert copy.split(entry("100", 0)) == task.split(entry("100", 0))


@pytest.mark.parametrize("task", ALL, ids=by_name)
def test_an_unknown_class_is_an_error_that_lists_the_known_ones(task):
    code = "Rhythm: unheard of" if task.name == "ludb" else "no class!"
    with pytest.raises(RecordError, match="unknown class") as error:
        task.labels((code,))
    assert next(iter(task.codes)) in error.value.expected


def test_an_unknown_task_is_answered_with_the_nearest_name():
    with pytest.raises(UserError) as error:
        tasks.find("cinc17")
    assert error.value.fix == "use cinc2017"


def test_beats_map_to_the_aami_classes_and_nothing_else_is_a_beat():
    assert sorted(AAMI) == sorted(BEATS)
    groups = {name: {s for s, c in AAMI.items() if c == name} for name in "NSVFQ"}
    assert groups == {"N": set("NLRej"), "S": set("AaJS"), "V": set("VE"), "F": set("F"), "Q": set("/fQ")}
    task = TASKS["mitbih"]
    for symbol, name in AAMI.items():
        assert task.label(symbol) == ("NSV".index(name) if name in "NSV" else NO_TARGET)
    for symbol in ("+", "~", "|", "!", "[", "]", "x", "\"", "B", "n", "r", "?"):
        assert symbol not in task.codes


def test_the_inter_patient_split_is_de_chazals_without_202():
    task = TASKS["mitbih"]
    split = {name: task.split(entry(name)) for name in MITDB}
    assert Counter(split.values()) == {"train": 22, "test": 21, "apart": 1, "excluded": 4}
    assert split["201"] == "train" and split["202"] == "apart" and {split[n] for n in PACED} == {"excluded"}
    assert not set(DS1) & set(DS2) and {n for n, s in split.items() if s == "train"} == set(DS1)
    assert task.split(entry("201"), fold=3) == "train"


@pytest.mark.parametrize("name", ["cinc2017", "cinc2021", "ludb", "code15"])
def test_five_folds_test_every_record_once(name):
    task = TASKS[name]
    for k in range(40):
        one = entry(f"A{k:05d}", fold=records.sha1_fold(f"A{k:05d}"))
        assert [task.split(one, fold) for fold in range(5)].count("test") == 1
        assert {task.split(one, fold) for fold in range(5)} == {"test", "train"}


def test_ptbxl_trains_on_eight_folds_and_keeps_the_last_for_the_end():
    task = TASKS["ptbxl"]
    assert [task.split(entry("x", fold)) for fold in range(1, 11)] == ["train"] * 8 + ["test", "apart"]


@pytest.mark.parametrize("name, codes, expected", [
    ("cinc2017", ("A",), ("A",)), ("cinc2017", ("~",), ("~",)), ("synthetic", ("O",), ("O",)),
    ("cinc2021", ("59118001", "713427006", "164889003", "55827005"), ("AF", "RBBB")),
    ("cinc2020", ("164909002", "6374002"), ("LBBB",)), ("cinc2020", ("733534002",), ()),
    ("cinc2021", ("733534002", "6374002"), ("BBB", "LBBB")),
    ("ptbxl", ("NORM", "LVOLT", "SR"), ("NORM",)), ("ptbxl", ("IMI", "LVH", "LAO/LAE"), ("MI", "HYP")),
    ("code15", ("RBBB", "AF"), ("RBBB", "AF")), ("code15", (), ()),
    ("ludb", ("Rhythm: Sinus bradycardia", "Left ventricular hypertrophy"), ("N",)),
    ("ludb", ("Rhythm: Atrial flutter, typical",), ("O",))])
def test_codes_become_classes(name, codes, expected):
    task = TASKS[name]
    assert tuple(task.classes[k].name for k in task.labels(codes)) == expected


def test_two_classes_on_a_record_of_one_are_refused():
    with pytest.raises(RecordError, match="N, A on one record"):
        TASKS["cinc2017"].labels(("A", "N"))


def test_codes_joined_by_the_challenge_are_one_class():
    task = TASKS["cinc2021"]
    assert len(task.classes) == 26 and len(TASKS["cinc2020"].classes) == 24
    for a, b in (("713427006", "59118001"), ("284470004", "63593006"), ("427172004", "17338001"),
                 ("733534002", "164909002")):
        assert task.label(a) == task.label(b)


DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


def table(path):
    if not path.is_file():
        pytest.skip(f"LEADEDGE_DATA holds no {path.name}")
    with open(path, newline="") as f:
        return list(csv.reader(f))


def test_the_classes_of_2021_are_those_of_the_official_weights():
    header = table(DATA / "cinc2021" / "weights.csv")[0][1:]
    assert [set(c.code.removeprefix("SNOMED:").split("|")) for c in TASKS["cinc2021"].classes] == [
        set(column.split("|")) for column in header]


def test_the_superclasses_are_those_of_the_published_statements():
    rows = table(DATA / "ptbxl" / "scp_statements.csv")
    column, task = rows[0].index("diagnostic_class"), TASKS["ptbxl"]
    published = {row[0]: row[column] for row in rows[1:]}
    assert {code: task.classes[k].name for code, k in task.codes.items()} == {c: s for c, s in published.items() if s}
    assert all(task.label(code) == NO_TARGET for code, superclass in published.items() if not superclass)


@pytest.mark.parametrize("task", [t for t in ALL if t.dataset in ("mitdb", "cinc2017", "cinc2021", "ptbxl", "ludb")],
                         ids=by_name)
def test_every_real_record_has_a_place_and_no_patient_has_two(task):
    if not (DATA / task.dataset).is_dir():
        pytest.skip(f"LEADEDGE_DATA holds no folder {task.dataset}")
    entries = records.catalog(task.dataset, DATA / task.dataset)
    places = {}
    for one in entries:
        assert task.split(one) in tasks.SPLITS
        if task.trigger == "hop":
            task.labels(one.labels)
        if task.split(one) in ("train", "test"):
            places.setdefault(one.patient, set()).add(task.split(one))
    assert places and all(len(place) == 1 for place in places.values())
