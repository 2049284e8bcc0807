# SPDX-License-Identifier: Apache-2.0
"""bench/latency.py for every target: what is measured is measured, what is estimated says so, the rest is refused."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import targets
from bench import estimate, latency, runtimes, tables
from compress import graph as graphs
from targets import deploy, target
from tests import graphs as make
from train import say

ROOT = Path(__file__).parents[1]
JETSONS, ARMS = target.boards("jetson"), target.boards("arm")
PERCENTILES = ("p50", "p90", "p99", "percentile", "samples")


def cli(script, *words) -> int:
    """Exit code of a script's main."""
    return say.run(script.main, script.parser(), list(map(str, words)))


def told(capsys, script, *words) -> dict:
    """The one JSON object that a script prints."""
    assert cli(script, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A quantized run, built for every runtime that is installed here."""
    b = make.Builder(3, {"ecg": (1, 240)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    x = b.add(x, b.conv(x, 8, 3))
    folder = make.write_run(tmp_path_factory.mktemp("latency") / "r", b.graph(b.classifier(b.reduce("mean", x), 3)))
    with pytest.MonkeyPatch.context() as patch:
        for name in runtimes.RUNTIMES:
            module = targets.load(name)
            patch.setattr(module, "SECONDS", 0.05, raising=False)
            if module.missing() is None and cli(deploy, "--run", folder, "--target", name) != 0:
                pytest.fail(f"the run does not build for {name}")
    return folder


# ---- boards

@pytest.mark.parametrize("key", JETSONS)
def test_the_peaks_of_a_jetson_are_its_sms_times_clock(key):
    gpu = JETSONS[key]["gpu"]
    int8, fp16 = {87: (4096, 2048), 72: (2048, 1024), 53: (0, 512)}[gpu["sm"]]
    assert gpu.get("int8_tops", 0) == pytest.approx(gpu["sms"] * gpu["ghz"] * int8 / 1e3, rel=0.01)
    assert gpu["fp16_tflops"] == pytest.approx(gpu["sms"] * gpu["ghz"] * fp16 / 1e3, rel=0.02)
    assert gpu["sm"] in estimate.LAUNCH and 20 < gpu["gb_s"] < 300 and JETSONS[key]["jetpacks"]


@pytest.mark.parametrize("board", [b for b in (JETSONS | ARMS).values() if "cpu" in b], ids=lambda b: b["key"])
def test_an_arm_processor_is_one_that_the_model_knows(board):
    cpu = board["cpu"]
    peak = 32 if cpu["core"] in ("Cortex-A76", "Cortex-A78AE") else 8
    assert cpu["mac"] == peak and 1 <= cpu["ghz"] <= 2.5 and cpu["cores"] in (4, 6, 8, 12)
    assert (board.get("gpu") or cpu)["gb_s"] > 0


def test_every_arm_board_can_be_estimated():
    assert {"pi3b", "pi4", "pi5", "zero2w"} <= set(ARMS) and all("cpu" in b for b in ARMS.values())


# ---- the model

def chain(*kinds: str) -> graphs.Graph:
    """conv1d, then nodes of these kinds, each on the one before; an `add` takes the first conv1d as well."""
    b = make.Builder(0, {"ecg": (1, 40)})
    first = at = b.conv(b.reshape("ecg", "channel"), 8)
    for kind in kinds:
        at = {"conv1d": lambda x: b.conv(x, 8, 3), "add": lambda x: b.add(first, x),
              "attention": lambda x: b.attention(x, x, x, 2, "band", 3)}[kind](at)
    return b.graph(at)


@pytest.mark.parametrize("kinds, together, single", [
    ((), 1, 1), (("conv1d",), 2, 2),
    (("conv1d", "add"), 2, 3),          # the sum is the last step of the second convolution
    (("attention", "add"), 2, 1 + 6 + 1),
])
def test_operations_are_counted_by_the_stated_rule(kinds, together, single):
    graph = chain(*kinds)
    assert (estimate.fused(graph), estimate.apart(graph)) == (together, single)
    products = sum({"conv1d": 1, "attention": 2}.get(kind, 0) for kind in ("conv1d", *kinds))
    assert estimate.work(graph).operations == {"int8": (together, single + products), "fp16": (together, single)}


def test_a_sum_of_what_others_read_as_well_is_an_operation_of_its_own():
    b = make.Builder(0, {"ecg": (1, 40)})
    a = b.conv(b.reshape("ecg", "channel"), 8)
    c = b.conv(a, 8)
    total = b.add(a, c)
    assert estimate.fused(b.graph(b.add(b.conv(total, 8), c))) == 4      # a and c have other readers, the last has none


def test_an_lstm_is_counted_by_its_steps():
    graph = make.learned(steps=6)
    lstms = sum(n.kind == "lstm" for n in graph.nodes)
    assert lstms and estimate.apart(graph) >= 6 * 4 * lstms and estimate.fused(graph) >= 6 * 2 * lstms


@pytest.mark.parametrize("work, term", [
    (estimate.Work(10 ** 12, (1000, 2000), {"int8": (1, 2), "fp16": (1, 2)}), "arithmetic"),
    (estimate.Work(1000, (10 ** 9, 10 ** 9), {"int8": (1, 2), "fp16": (1, 2)}), "memory"),
    (estimate.Work(10 ** 6, (10 ** 5, 10 ** 5), {"int8": (50, 90), "fp16": (50, 90)}), "kernel launches")])
def test_the_dominating_term_is_the_largest(work, term):
    for row in estimate.gpu(work, JETSONS["orin-nano-super"]):
        assert row["dominated_by"] == [term, term]
        for end in (0, 1):
            parts = {name: p[end] for name, p in row["parts_ms"].items()}
            assert row["ms"][end] == pytest.approx(max(parts["arithmetic"], parts["memory"]) + parts["kernel launches"])


def test_a_gpu_at_its_peak_and_a_launch_for_each_operation_by_hand():
    (row, _) = estimate.gpu(estimate.Work(16_700_000, (0, 0), {"int8": (8, 18), "fp16": (8, 18)}),
                            JETSONS["orin-nano-super"])
    assert row["parts_ms"]["arithmetic"] == pytest.approx([0.001, 0.02])            # 33.4 M operations at 33.4 TOPS
    assert row["parts_ms"]["kernel launches"] == pytest.approx([0.010, 0.100])      # 8 + 2 by 1 us, 18 + 2 by 5 us
    assert row["ms"] == pytest.approx([0.011, 0.120])


def test_more_cores_help_at_the_lower_end_only():
    one, four = estimate.cpu(estimate.work(chain("conv1d")), ARMS["pi4"])
    assert four["parts_ms"]["arithmetic"][0] == pytest.approx(one["parts_ms"]["arithmetic"][0] / 4)
    assert four["ms"][1] == one["ms"][1]


@pytest.mark.parametrize("key", [*JETSONS, *ARMS])
def test_an_estimate_is_a_range_with_its_assumptions(key):
    guess = estimate.of(make.streaming(), (JETSONS | ARMS)[key])
    assert guess["rows"] and len(guess["assumptions"]) > 5 and guess["status"] == estimate.STATUS
    assert all(0 < low < high for low, high in (r["ms"] for r in guess["rows"]))
    assert not any(word in json.dumps(guess) for word in PERCENTILES)


def test_a_nano_has_no_int8_engine():
    forms = {r["form"] for r in estimate.of(make.streaming(), JETSONS["nano"])["rows"] if r["on"] == "GPU"}
    assert forms == {"fp16"}


# ---- latency.py --estimate

@pytest.mark.parametrize("name, board", [("jetson", "orin-nano-super"), ("jetson", "nano"), ("arm", "pi4"),
                                         ("litert", "zero2w")])
def test_an_estimate_has_its_own_field_and_nothing_measured(run, capsys, name, board):
    found = told(capsys, latency, "--target", name, "--run", run, "--estimate", board)
    assert found["estimate"]["board"] == board and "measured" not in found and "machine" not in found
    assert not any(word in json.dumps(found) for word in PERCENTILES)


def test_every_line_of_an_estimate_with_a_time_says_that_it_is_none_measured(run, capsys):
    assert cli(latency, "--target", "jetson", "--run", run, "--estimate", "orin-nx-16") == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith(("int8", "fp16"))]
    assert len(lines) == 4 and all(line.endswith(estimate.STATUS) for line in lines)
    assert "kernel launches" in said and "p50" not in said


@pytest.mark.parametrize("words, code, said", [
    (["--target", "jetson", "--estimate", "orin-nano-sper"], 1, "use orin-nano-super"),
    (["--target", "arm", "--estimate", "pi44"], 1, "use pi4"),
    (["--target", "arm", "--estimate", "orin-nano"], 1, "unknown arm board"),
    (["--target", "host", "--estimate", "pi4"], 1, "--target jetson, arm, litert"),
    (["--target", "mcu", "--estimate", "pico"], 1, "--target mcu"),
    (["--target", "mcu", "--device", "pi@pi"], 1, "--board B"),
    (["--target", "arm", "--device", "-oProxyCommand=x"], 1, "--device"),
    (["--target", "arm", "--device", "pi@pi", "--checkout", "$(x)"], 1, "--checkout"),
    (["--target", "mcu", "--require-measured"], 2, "an estimate from counted instructions"),
    (["--target", "litrt"], 1, "use litert"),
    (["--target", "jetson", "--estimate", "nano", "--seconds", "-1"], 1, "--seconds -1")])
def test_latency_says_what_to_type_instead(run, capsys, words, code, said):
    if targets.load("mcu").missing() and "mcu" in words:
        pytest.skip(targets.load("mcu").missing())
    assert cli(latency, "--run", run, *words) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_an_estimate_needs_a_quantized_run(tmp_path, capsys):
    assert cli(latency, "--run", tmp_path, "--target", "jetson", "--estimate", "nano") == 1
    assert "model.json" in capsys.readouterr().err


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine could be the board")
def test_required_to_be_measured_another_computer_is_no_stand_in_for_a_board(run, capsys):
    assert cli(latency, "--run", run, "--target", "host", "--require-measured", "--seconds", 0.05) in (0, 2)
    capsys.readouterr()
    if targets.load("arm").missing():
        pytest.skip(targets.load("arm").missing())
    assert cli(latency, "--run", run, "--target", "arm", "--estimate", "pi4", "--require-measured", "--json") == 2
    said = capsys.readouterr()
    assert "no Raspberry Pi 4" in said.err and "ms" not in json.loads(said.out)["error"]["what"].split()


def test_the_script_estimates_from_any_directory_as_one_object(run, tmp_path):
    words = ["--target", "jetson", "--run", run, "--estimate", "agx-orin-64", "--json"]
    done = subprocess.run([sys.executable, ROOT / "bench" / "latency.py", *words], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["estimate"]["board"] == "agx-orin-64", done.stderr
    assert done.stdout.count("\n") == 1


# ---- measured here

@pytest.mark.parametrize("name", ["litert", "host"])
def test_a_runtime_of_this_computer_is_measured(run, capsys, name):
    if targets.load(name).missing():
        pytest.skip(targets.load(name).missing())
    found = told(capsys, latency, "--target", name, "--run", run, "--seconds", 0.1)
    assert "estimate" not in found and found["shipped"] == "int8"
    for row in found["measured"]:
        assert row["samples"] > 0 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    machine = found["machine"]
    assert machine["affinity"] == sorted(os.sched_getaffinity(0)) and machine["load"] >= 0 and "governors" in machine


def test_several_threads_take_turns_in_blocks_and_one_thread_call_by_call():
    seen = []
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = latency.in_turns(calls, 1, 0.002)
    assert seen[-4:] in (["a", "b"] * 2, ["b", "a"] * 2) and len(times["a"]) == len(times["b"]) > 0
    seen.clear()
    times = latency.in_turns(calls, 2, 0.02)
    assert seen == sorted(seen) and set(seen) == {"a", "b"} and min(map(len, times.values())) > 0


# ---- measured elsewhere

SSH = """#!/bin/sh
[ -n "$FAKE_LOST" ] && { echo "ssh: connect to host pi port 22: No route to host" >&2; exit 255; }
while case "$1" in -Oexit) exit 0;; -*) true;; *) false;; esac; do shift; done
shift; cd "$FAKE_HOME" && exec sh -c "$*"
"""


@pytest.fixture
def pi(tmp_path, monkeypatch) -> Path:
    """Home of another computer with a checkout, reached by a stand-in ssh; it is this computer in truth."""
    home = tmp_path / "home"
    (home / "leadedge" / "runs").mkdir(parents=True)
    for name in ("bench", "targets", "train", "compress"):
        (home / "leadedge" / name).symlink_to(ROOT / name)
    python = home / "leadedge" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for name, text in (("ssh", SSH), ("scp", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_HOME", str(home))
    return home


def test_another_computer_builds_and_measures_by_itself(run, pi, capsys):
    if targets.load("host").missing():
        pytest.skip(targets.load("host").missing())
    found = told(capsys, latency, "--target", "host", "--run", run, "--device", "pi@pi", "--seconds", 0.1)
    (row,) = found["measured"]
    assert row["form"] == "int8" and row["samples"] > 0 and found["device"] == "pi@pi" and "estimate" not in found
    (folder,) = (pi / "leadedge" / "runs").iterdir()
    assert (folder / "host").is_dir() and folder.name.startswith(run.name) and found["machine"]["cpu"]


def test_an_error_there_is_told_as_one_of_there(run, pi, capsys):
    (pi / "leadedge" / "bench").unlink()
    assert cli(latency, "--target", "host", "--run", run, "--device", "pi@pi") == 2
    assert "no LeadEdge in leadedge on pi@pi" in capsys.readouterr().err
    script = pi / "leadedge" / "bench" / "latency.py"
    script.parent.mkdir()
    script.write_text("")
    (pi / "leadedge" / "targets").unlink()
    deploying = pi / "leadedge" / "targets" / "deploy.py"
    deploying.parent.mkdir()
    deploying.write_text('print(\'{"error": {"what": "no compiler", "expected": "one", "fix": "get it"}}\'); exit(2)')
    assert cli(latency, "--target", "host", "--run", run, "--device", "pi@pi") == 2
    assert "on pi@pi: no compiler" in capsys.readouterr().err
    deploying.write_text("print('hello')")
    assert cli(latency, "--target", "host", "--run", run, "--device", "pi@pi") == 2
    assert "says no JSON" in capsys.readouterr().err


def test_a_connection_that_breaks_while_it_measures_leaves_no_figure(run, pi, capsys):
    script = pi / "leadedge" / ".venv" / "bin" / "python"
    script.write_text("#!/bin/sh\necho 'client_loop: send disconnect: Broken pipe' >&2; exit 255\n")
    assert cli(latency, "--target", "arm", "--run", run, "--device", "pi@pi", "--json") == 2
    said = capsys.readouterr()
    assert "lost while it built or measured" in said.err and "p50" not in said.out


def test_a_computer_that_is_not_there_is_named(run, pi, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_LOST", "1")
    assert cli(latency, "--target", "arm", "--run", run, "--device", "pi@pi", "--estimate", "pi4", "--json") == 2
    said = capsys.readouterr()
    assert "pi@pi: it cannot be reached" in said.err and "estimate" not in said.out


# ---- side by side

def test_runtimes_are_compared_in_one_go_and_tabulated(run, capsys, tmp_path, monkeypatch):
    if targets.load("arm").missing():
        pytest.skip(targets.load("arm").missing())
    monkeypatch.setattr(runtimes, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables.sweep, "RESULTS", tmp_path / "results" / "sweep")
    assert "Not measured yet" in tables.runtimes_table()
    found = told(capsys, runtimes, "--runs", run, "--seconds", 0.4, "--rounds", 4, "--threads", 1, 2, "--write")
    rows = {(r["threads"], r["target"], r["form"]): r for r in found["rows"]}
    assert {(t, "arm", form) for t in (1, 2) for form in ("float", "mixed", "int8")} <= set(rows)
    for row in rows.values():
        assert row["samples"] >= 4 and 0 < row["p50_ms"] <= row["p99_ms"]
        if row["gain"]:
            assert row["gain"]["range"][0] <= row["gain"]["median"] <= row["gain"]["range"][1]
    assert rows[1, "arm", "float"]["gain"]["median"] == 1
    assert (2, "host", "int8") not in rows          # the C has one thread
    kept = (tmp_path / "results" / runtimes.FILE).read_text()
    assert json.loads(kept) == found and str(tmp_path) not in kept and str(run.parent) not in kept
    table = tables.runtimes_table()
    assert f"{rows[1, 'arm', 'float']['p50_ms']:.3f}" in table and found["machine"]["cpu"] in table
    assert len(table.strip().splitlines()) == 2 + 2 + 2


def test_a_gain_is_the_middle_of_the_rounds():
    times = [{("arm", "float"): np.full(2, slow * 1e6), ("arm", "int8"): np.full(2, 1e6)} for slow in (9, 2, 3)]
    row = runtimes.figures(times, ("arm", "int8"))
    assert row["gain"] == {"median": 3.0, "range": [2.0, 9.0], "rounds": 3} and row["samples"] == 6
    assert runtimes.gain(row) == "3.00 (2.00 to 9.00)"


def test_a_runtime_that_a_run_is_not_built_for_is_named_and_left_out(tmp_path, capsys):
    folder = make.write_run(tmp_path / "r", make.streaming(), golden=4)
    assert cli(runtimes, "--runs", folder, "--targets", "host") in (1, 2)
    assert "host" in capsys.readouterr().err
    assert cli(runtimes, "--runs", folder, "--targets", "hst") == 1
    assert "use host" in capsys.readouterr().err
