# SPDX-License-Identifier: Apache-2.0
"""The sweep over architectures: its cells, what is stale, how it goes on; and the README's tables from its figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import sweep, tables
from train import say
from train.models import ARCHS

ROOT = Path(__file__).parents[1]
SECONDS = {"float": 1.0, "qat": 1.0}


def forms(value: float, figures: bool = False) -> dict:
    """What report.py says of float and int8."""
    def one(form, lost):
        f = {"value": value - lost, "95": [value - 0.05, value + 0.05], "difference": -lost,
             "difference_95": [-lost - 0.01, -lost + 0.01]}
        return {"mean_f1": f["value"], "mean_f1_95": f["95"], "difference": f["difference"],
                "difference_95": f["difference_95"], "false_s": 0.0123} | ({"figures": {"auroc": f}} if figures else {})
    return {form: one(form, lost) for form, lost in (("float", 0.0), ("post-training int8", 0.02), ("QAT int8", 0.004))}


def found(cell: sweep.Cell, value: float = 0.8) -> dict:
    """Figures like those of `sweep.figures`."""
    rates = {"se": 0.9, "ppv": 0.8}
    return {"part": "test", "rows": 1355, "units": 1355 if cell.task != "mitbih" else 21,
            "classes": {name: {form: rates for form in forms(value)} for name in "NSV"},
            "forms": forms(value, cell.task == "ptbxl"), "weight_bytes": 39_000, "macs": 1_560_000,
            "ram": {"ram_bytes": 8_800}, "seconds": dict(SECONDS)}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder for figures."""
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def scripts(results, monkeypatch):
    """Scripts that only write what the real ones would leave; the calls in order."""
    called = []

    def script(name, run, log, *words):
        called.append((name, run.name, words))
        run.mkdir(parents=True, exist_ok=True)
        if script.broken and script.broken in run.name:
            say.fail(f"{name} for {run.name} ended with 1", "0")
        if name == "train/fit.py":
            (run / "model.json").write_text("{}")
    script.broken = ""
    monkeypatch.setattr(sweep, "_script", script)
    by_name = {cell.name: cell for cell in sweep.cells("", 5, 3)}
    monkeypatch.setattr(sweep, "figures", lambda run: found(by_name[run.name]))
    script.called = called
    return script


def cli(tmp_path, *words) -> int:
    """Exit code of the sweep."""
    return say.run(sweep.main, sweep.parser(), ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), *words])


def test_every_architecture_has_a_cell_for_each_line_of_the_table():
    names = [cell.name for cell in sweep.cells("")]
    assert len(names) == len(set(names)) == len(ARCHS) * (len(sweep.TABLE) + len(sweep.ABLATION)) + len(sweep.STREAM)
    assert names[:len(ARCHS)] == [f"{arch}-tiny-cinc2017" for arch in ARCHS]


def test_words_choose_cells_and_folds_and_seeds_multiply_them():
    assert {cell.arch for cell in sweep.cells("lga-tiny-c,nat-tiny-c")} == {"lga", "nat"}
    many = sweep.cells("lga-tiny-mitbih", folds=5, seeds=2)
    assert len({cell.name for cell in many}) == 10 and many[-1].name == "lga-tiny-mitbih-seed1-fold4"
    with pytest.raises(say.UserError, match="no cell is called"):
        sweep.cells("no-such-cell")


def test_everything_that_decides_the_figures_is_in_the_recipe():
    cell = sweep.Cell("lga", "tiny", "cinc2017", 16, 2)
    others = [replace(cell, **change) for change in (
        {"arch": "nat"}, {"preset": "small"}, {"task": "ptbxl"}, {"epochs": 17}, {"qat_epochs": 3}, {"seed": 1},
        {"fold": 1})]
    assert len({cell.recipe, *(other.recipe for other in others)}) == 1 + len(others)
    assert cell.recipe == replace(cell).recipe


def test_a_cell_is_open_then_done_and_stale_under_another_recipe(results):
    cell = sweep.Cell("lga", "tiny", "cinc2017", 16, 2)
    assert cell.state() == "open"
    results.mkdir()
    cell.path.write_text(json.dumps({"recipe": cell.recipe}))
    assert cell.state() == "done" and replace(cell, epochs=20).state() == "stale"


def test_a_sweep_trains_quantizes_and_keeps_one_json_a_cell(tmp_path, results, scripts):
    assert cli(tmp_path, "--cells", "lga-tiny-cinc2017") == 0
    assert [name for name, *_ in scripts.called] == ["train/fit.py", "compress/qat.py"]
    words = scripts.called[0][2]
    given = dict(zip(words[::2], words[1::2], strict=False))
    epochs = sweep.EPOCHS["cinc2017", "tiny"][0]
    assert given["--epochs"] == str(epochs) and given["--data"] == str(tmp_path / "cinc2017")
    kept = json.loads((results / "lga-tiny-cinc2017.json").read_text())
    assert kept["recipe"] == sweep.cells("lga-tiny-cinc2017")[0].recipe and kept["seconds"]["whole"] >= 0


def test_what_is_done_is_not_made_again_and_what_is_stale_only_when_asked(tmp_path, results, scripts, monkeypatch):
    cli(tmp_path, "--cells", "lga-tiny-cinc2017")
    scripts.called.clear()
    assert cli(tmp_path, "--cells", "lga-tiny-cinc2017") == 0 and not scripts.called
    monkeypatch.setitem(sweep.EPOCHS, ("cinc2017", "tiny"), (99, 2))
    assert cli(tmp_path, "--cells", "lga-tiny-cinc2017") == 0 and not scripts.called
    assert cli(tmp_path, "--cells", "lga-tiny-cinc2017", "--again") == 0 and scripts.called


def test_a_trained_run_is_only_quantized_and_an_interrupted_one_goes_on(tmp_path, results, scripts):
    run = tmp_path / "runs" / "lga-tiny-cinc2017"
    run.mkdir(parents=True)
    (run / "checkpoint.safetensors").write_bytes(b"")
    cli(tmp_path, "--cells", "lga-tiny-cinc2017")
    assert "--resume" in scripts.called[0][2]
    scripts.called.clear()
    (results / "lga-tiny-cinc2017.json").unlink()
    cli(tmp_path, "--cells", "lga-tiny-cinc2017")
    assert [name for name, *_ in scripts.called] == ["compress/qat.py"]


def test_one_broken_cell_does_not_stop_the_others(tmp_path, results, scripts, capsys):
    scripts.broken = "nat-tiny-cinc2017"
    assert cli(tmp_path, "--cells", "tiny-cinc2017") == 1
    assert "1 cells failed: nat-tiny-cinc2017" in capsys.readouterr().err
    assert len(list(results.glob("*.json"))) == len(ARCHS) - 1
    scripts.broken = ""
    assert cli(tmp_path, "--cells", "tiny-cinc2017") == 0 and len(list(results.glob("*.json"))) == len(ARCHS)


def test_a_script_that_fails_ends_with_the_last_lines_of_its_log(tmp_path):
    with pytest.raises(say.UserError, match="ended with 1"):
        sweep._script("train/fit.py", tmp_path / "r", "fit.log", "--no-such-option")
    assert "no-such-option" in (tmp_path / "r.fit.log").read_text()


def test_the_list_shows_states_without_data(results, capsys):
    assert say.run(sweep.main, sweep.parser(), ["--list", "--cells", "lga-tiny"]) == 0
    assert "lga-tiny-ptbxl" in capsys.readouterr().out


# ---- the README's tables

def fill(results, cells, value=0.8) -> None:
    """Figures for cells."""
    results.mkdir(exist_ok=True)
    for cell in cells:
        about = {"name": cell.name, "recipe": cell.recipe, "arch": cell.arch, "preset": cell.preset, "task": cell.task}
        cell.path.write_text(json.dumps(found(cell, value) | about))


def readme(tmp_path, body="") -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n<!-- table: sweep -->\n{body}<!-- end -->\nbetween\n"
                    "<!-- table: ablation --><!-- end -->\nlast\n".replace("--><!--", "-->\n<!--"))
    return path


def cli_tables(path, *words) -> int:
    return say.run(tables.main, tables.parser(), ["--readme", str(path), *words])


def test_tables_hold_every_cell_and_leave_the_rest_of_the_text_alone(tmp_path, results):
    fill(results, sweep.cells(""))
    path = readme(tmp_path, "old\n")
    assert cli_tables(path) == 0
    text = path.read_text()
    assert text.startswith("# Title\n") and "\nbetween\n" in text and text.endswith("last\n") and "old" not in text
    assert text.count("| `nat` |") == len(sweep.TABLE) + len(sweep.ABLATION)
    assert "0.800 [0.750, 0.850] | **0.796 [0.750, 0.850]** | -0.40 [-1.40, +0.60] | 0.900 / 0.800" in text
    assert "1.23 %" in text and "1,355 beats of 21 records" in text and "macro AUROC, 1,355 records" in text
    assert cli_tables(path, "--check") == 0


def test_check_fails_when_a_figure_has_changed(tmp_path, results, capsys):
    fill(results, sweep.cells("lga-tiny-cinc2017"))
    path = readme(tmp_path)
    cli_tables(path)
    fill(results, sweep.cells("lga-tiny-cinc2017"), 0.9)
    before = path.read_text()
    assert cli_tables(path, "--check") == 1 and path.read_text() == before
    assert "python bench/tables.py" in capsys.readouterr().err


def test_stale_figures_are_left_out_and_named(tmp_path, results, monkeypatch, capsys):
    fill(results, sweep.cells("tiny-cinc2017"))
    monkeypatch.setitem(sweep.EPOCHS, ("cinc2017", "tiny"), (99, 2))
    path = readme(tmp_path)
    assert cli_tables(path) == 0 and "No cell has been made" in path.read_text()
    assert "lga-tiny-cinc2017.json was made by another recipe" in capsys.readouterr().err


@pytest.mark.parametrize("text,says", [("<!-- table: swep -->\n<!-- end -->\n", "use sweep"),
                                       ("<!-- table: sweep -->\n", "1 tables are opened and 0 are closed")])
def test_wrong_markers_end_in_a_sentence(tmp_path, results, capsys, text, says):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert cli_tables(path) == 1 and says in capsys.readouterr().err


def test_the_tables_of_the_readme_are_what_the_figures_say():
    assert cli_tables(ROOT / "README.md", "--check") == 0


def test_folds_are_pooled_by_record():
    joint = [[[50, 2], [1, 7]], [[0, 3], [2, 35]]]
    one = sweep.pooled([{"joint": joint}], "synthetic")
    two = sweep.pooled([{"joint": joint}] * 2, "synthetic")
    assert two["rows"] == 2 * one["rows"] == 200 and two["int8"] == one["int8"]
    before = (2 * 52 / (60 + 55) + 2 * 37 / (40 + 45)) / 2      # N: 52 of 60, 55 called so; the others likewise
    assert abs(one["float"] - before) < 1e-12
    low, high = two["difference_95"]
    assert low < two["difference"] < high and high - low < one["difference_95"][1] - one["difference_95"][0]
