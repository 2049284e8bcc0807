# SPDX-License-Identifier: Apache-2.0
"""Evaluates builds in a Python that is not the tests' own: another processor's, or one with another runtime.

    python worker.py JOB OUT [WINDOWS]

needs this project's packages on the path, numpy and the runtimes. JOB is a JSON file, [[run folder, target, file],
...], where the target "micro" is TFLite Micro's interpreter, which takes the files of litert/. OUT.npz keeps for each
"<run's name>/<file>" the logits of the golden windows, the first WINDOWS of them, and for "<run's name>/<file>/live"
those of the target's runner for live use. Many models share one process, because starting it may take seconds.
"""

import json
import sys
from pathlib import Path

import numpy as np

import targets
from targets import target
from targets.target import Built
from tests import micro

LIVE = 2        # windows through the runner
HEAVY = {"torch", "onnx", "scipy", "wfdb"}


def main(job, out, windows=None):
    """Evaluate all and keep it."""
    found = {}
    for run, name, file in json.loads(Path(job).read_text()):
        path, graph = Path(run) / ("litert" if name == "micro" else name) / file, target.open_run(run)[1]
        inputs = target.golden(run, graph, windows and int(windows))[0]
        module = micro if name == "micro" else targets.load(name)
        built, key = Built(path, 0, None), f"{Path(run).name}/{file}"
        found[key] = module.run(built, inputs)
        live = module.runner(built, graph)
        ones = [{name: x[i] for name, x in inputs.items()} for i in range(LIVE)]
        found[f"{key}/live"] = np.stack([live(one).copy() for one in ones])
    assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
