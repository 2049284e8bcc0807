# SPDX-License-Identifier: Apache-2.0
"""Train and quantize every architecture by one recipe a cell, and keep one JSON a cell.

    python bench/sweep.py --data DIR --list                 what there is, done or not
    python bench/sweep.py --data DIR --cells tiny-cinc2017  the cells whose name holds that word
    python bench/sweep.py --data DIR --cells lga-tiny-cinc2017 --folds 5

DIR holds one folder a data set: cinc2017, mitdb, ptbxl. A cell is skipped when its JSON is there and was made by the
same recipe; a training that was interrupted goes on. One cell that fails does not stop the others. Development runs on
fold 0; --folds 5 is for the recipe that was chosen, once.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from dataclasses import asdict, dataclass, replace

from train import runs, say
from train.models import ARCHS

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "sweep"
FOLDER = {"cinc2017": "cinc2017", "mitbih": "mitdb", "ptbxl": "ptbxl"}     # of a task's data set, below --data
# Epochs of float training and of quantization-aware training: a few minutes on one core each.
EPOCHS = {("cinc2017", "tiny"): (12, 2), ("cinc2017", "small"): (8, 2), ("mitbih", "tiny"): (6, 1),
          ("ptbxl", "tiny"): (40, 6)}
TABLE = (("tiny", "cinc2017"), ("tiny", "mitbih"), ("tiny", "ptbxl"), ("small", "cinc2017"))
ABLATION = (("tiny-plain", "cinc2017"), ("small-plain", "cinc2017"))
STREAM = (("local-lead", "tiny-stream", "cinc2017"),)       # beside the preset without the word


@dataclass(frozen=True)
class Cell:
    """One training and quantization; everything that decides its figures."""

    arch: str
    preset: str
    task: str
    epochs: int
    qat_epochs: int
    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """The name of its files."""
        more = (f"-seed{self.seed}" if self.seed else "") + (f"-fold{self.fold}" if self.fold else "")
        return f"{self.arch}-{self.preset}-{self.task}{more}"

    @property
    def recipe(self) -> str:
        """A hash of the above: figures of another recipe are stale."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def path(self) -> pathlib.Path:
        """Where its figures are kept."""
        return RESULTS / f"{self.name}.json"

    def state(self) -> str:
        """done | stale | open."""
        if not self.path.is_file():
            return "open"
        return "done" if json.loads(self.path.read_text())["recipe"] == self.recipe else "stale"


def cells(words: str, folds: int = 1, seeds: int = 1) -> list[Cell]:
    """The cells whose name holds one of the comma-separated words; all when there is no word. Table first."""
    found = []
    everyone = [(arch, preset, task) for preset, task in (*TABLE, *ABLATION) for arch in ARCHS]
    for arch, preset, task in (*everyone, *STREAM):
        epochs, qat = EPOCHS[task, preset.split("-")[0]]
        if not words or any(word in Cell(arch, preset, task, epochs, qat).name for word in words.split(",")):
            found += [Cell(arch, preset, task, epochs, qat, seed, fold)
                      for fold in range(folds) for seed in range(seeds)]
    if not found:
        say.fail(f"no cell is called {words!r}", "a part of a name such as lga-tiny-cinc2017", "--list shows them all")
    return found


def evaluate(cell: Cell, data: pathlib.Path, folder: pathlib.Path) -> dict:
    """Train and quantize one cell in processes of their own, write its JSON, return it."""
    run = folder / cell.name
    records = ["--data", str(data / FOLDER[cell.task])]
    started = time.monotonic()
    if not (run / "model.json").is_file():
        resume = ["--resume"] if (run / "checkpoint.safetensors").is_file() or (run / "folds").is_dir() else []
        _script("train/fit.py", run, "fit.log", "--arch", cell.arch, "--preset", cell.preset, "--task", cell.task,
                "--epochs", str(cell.epochs), "--seed", str(cell.seed), "--fold", str(cell.fold), *records, *resume)
    if not (run / "qat.json").is_file():
        _script("compress/qat.py", run, "qat.log", "--epochs", str(cell.qat_epochs), "--seed", str(cell.seed), *records)
    found = asdict(cell) | {"name": cell.name, "recipe": cell.recipe, **figures(run)}
    found["seconds"]["whole"] = round(time.monotonic() - started, 1)
    runs.write(RESULTS, {cell.path.name: json.dumps(found, indent=1) + "\n"})
    return found


def figures(run: pathlib.Path) -> dict:
    """What a finished run folder says of itself, without paths."""
    from compress import graph as graphs
    from targets import ram
    from train import fit
    graph = graphs.load(run)
    _, net = fit.load(run)
    training, qat = (json.loads((run / name).read_text()) for name in ("training.json", "qat.json"))
    about = json.loads((run / "model.json").read_text())
    kept = ("part", "rows", "units", "classes", "forms", "joint", "flips", "out_of_fold", "agreement", "weight_bytes",
            "machine")
    return {key: qat[key] for key in kept if key in qat} | {
        "parameters": sum(p.numel() for p in net.parameters()), "macs": graphs.macs(graph),
        "ram": ram.summary(graph, about["trigger"]["hop"]),
        "kinds": sorted({n.kind for n in graph.nodes}),
        "seconds": {"float": training["seconds"], "qat": qat["seconds"]}, "best_epoch": training["best_epoch"]}


def _script(name: str, run: pathlib.Path, log: str, *words: str) -> None:
    """One of our scripts on one core, its words in a log beside the run; UserError with the last lines on failure."""
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f"{run.name}.{log}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(path, "w") as out:
        code = subprocess.run([sys.executable, str(ROOT / name), "--run", str(run), *words], stdout=out, stderr=out,
                              stdin=subprocess.DEVNULL, env=env, check=False).returncode
    if code:
        last = " / ".join(path.read_text().strip().splitlines()[-3:])
        say.fail(f"{name} for {run.name} ended with {code}: {last}", "0", f"read {path}")


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=pathlib.Path, help="folder that holds one folder a data set")
    p.add_argument("--cells", default="", metavar="WORDS", help="comma-separated parts of cell names (default: all)")
    p.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "sweep", help="where the run folders go")
    p.add_argument("--jobs", type=int, default=1, help="cells side by side, a core each")
    p.add_argument("--folds", type=int, default=1, choices=(1, 5), help="5: test on every fold once")
    p.add_argument("--seeds", type=int, default=1, help="trainings of each cell")
    p.add_argument("--again", action="store_true", help="make stale cells again")
    p.add_argument("--list", action="store_true", help="only show what is done, stale and open")
    return p


def main(args) -> dict:
    """Evaluate what is open."""
    wanted = cells(args.cells, args.folds, args.seeds)
    states = {cell.name: cell.state() for cell in wanted}
    if args.list:
        say.table([[cell.name, states[cell.name], cell.epochs, cell.qat_epochs] for cell in wanted],
                  ("cell", "state", "epochs", "QAT"))
        return {"cells": states}
    if args.data is None or not args.data.is_dir():
        say.fail(f"--data {args.data}", f"a folder that holds {', '.join(FOLDER.values())}")
    todo = [c for c in wanted if states[c.name] == "open" or (args.again and states[c.name] == "stale")]
    say.info(f"{len(todo)} of {len(wanted)} cells to make")
    failed = {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(evaluate, cell, args.data.resolve(), args.runs.resolve()): cell for cell in todo}
        for job in concurrent.futures.as_completed(jobs):
            name = jobs[job].name
            try:
                say.info(f"{name}: {sentence(job.result())}")
            except Exception as error:      # one broken cell must not cost the others
                failed[name] = str(error)
                say.warn(f"{name}: {error}")
    if args.folds > 1:
        pool(wanted)
    if failed:
        say.fail(f"{len(failed)} cells failed: {', '.join(failed)}", "none", "read their logs, then repeat the command")
    return {"cells": {cell.name: cell.state() for cell in wanted}}


def pool(wanted: list[Cell]) -> None:
    """Print and write the figures of all folds together, of each network whose folds are all done."""
    for cell in (c for c in wanted if c.fold == 0):
        folds = [c for c in wanted if replace(c, fold=0) == cell]
        if all(c.state() == "done" for c in folds):
            found = asdict(cell) | pooled([json.loads(c.path.read_text()) for c in folds], cell.task)
            runs.write(RESULTS, {f"{cell.name}-pooled.json": json.dumps(found, indent=1) + "\n"})
            f, low, high = found["difference"], *found["difference_95"]
            say.info(f"{cell.name}, {len(folds)} folds, {found['rows']:,} records: float {found['float']:.4f}, int8 "
                     f"{found['int8']:.4f}, {100 * f:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")


def pooled(folds: list[dict], task: str) -> dict:
    """Mean F1 over all folds' records, their paired difference and its 95 % interval by record."""
    import numpy as np

    from compress.report import mean_f1
    from train import score
    joint = sum(np.array(f["joint"]) for f in folds)        # (truth, float, int8)
    rows, shape = int(joint.sum()), joint.shape
    drawn = np.random.default_rng(0).multinomial(rows, joint.ravel() / rows, score.DRAWS).reshape(-1, *shape)
    f1 = mean_f1(task)
    before, after = (f1(joint.sum(axis)[None])[0] for axis in (2, 1))
    gaps = f1(drawn.sum(2)) - f1(drawn.sum(3))
    return {"rows": rows, "float": float(before), "int8": float(after), "difference": float(after - before),
            "difference_95": np.percentile(gaps, [2.5, 97.5]).tolist(), "joint": joint.tolist()}


def sentence(found: dict) -> str:
    """The figures of a cell in a line."""
    forms = found["forms"]
    said = "  ".join(f"{form} {f['mean_f1']:.3f}" for form, f in forms.items())
    return f"mean F1 {said}  {found['weight_bytes'] / 1000:.1f} kB  {found['seconds']['whole'] / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
