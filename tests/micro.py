# SPDX-License-Identifier: Apache-2.0
"""TFLite Micro's interpreter, as its own Python package has it, behind the verbs of a target that worker.py uses."""

import numpy as np

from targets import target

ARENA = 1 << 20     # bytes


def runner(built, graph):
    """int8 logits (class,) of one window. The interpreter knows every operator of TFLite Micro and no other."""
    from tflite_micro import runtime
    interpreter = runtime.Interpreter.from_file(str(built.path), arena_size=ARENA)

    def evaluate(inputs):
        for i, x in enumerate(target.checked(graph, inputs).values()):
            interpreter.set_input(x[None], i)           # refuses another shape or type than the file's
        interpreter.invoke()
        return interpreter.get_output(0)[0]
    return evaluate


def run(built, inputs):
    """int8 logits (window, class)."""
    evaluate = runner(built, target.open_run(built.path.parent.parent)[1])
    windows = len(next(iter(inputs.values())))
    return np.stack([evaluate({name: x[i] for name, x in inputs.items()}).copy() for i in range(windows)])
