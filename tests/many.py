# SPDX-License-Identifier: Apache-2.0
"""Many graphs compiled into one shared library of this computer, packed for any core: quick to build and to call.

    library = many.build(graphs, pack.CORES["m4"], folder, objects)
    logits = library.run(3, inputs)         # of graphs[3]
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import c_model, twin
from targets.pack import Core

HERE = Path(__file__).parent


class Many:
    """A library of models without manifests, by number."""

    def __init__(self, library: Path, graphs: list[Graph]):
        self.graphs = graphs
        self._library = ctypes.CDLL(str(library.resolve()))

    def run(self, which: int, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 (window, class) of a batch of windows."""
        graph = self.graphs[which]
        arrays = [np.ascontiguousarray(inputs[name], np.int8) for name in graph.inputs]
        logits = np.empty((len(arrays[0]), *graph.tensors[graph.output].shape), np.int8)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        sizes = (ctypes.c_int32 * len(arrays))(*(a[0].size for a in arrays))
        error = self._library.many_windows(which, len(logits), pointers, sizes, ctypes.c_void_p(logits.ctypes.data))
        assert error == 0, f"error {error} of ecg.h"
        return logits


def build(graphs: list[Graph], core: Core, folder: Path, objects: twin.Objects) -> Many:
    """Generate and compile all graphs, without a manifest, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [c_model.generate(g, None, core, ("window",), f"m{i}") for i, g in enumerate(graphs)]
    for i, source in enumerate(sources):
        (folder / f"m{i}.h").write_text(source.header)
    kernels = sorted({k for s in sources for k in s.kernels})
    rows = ", ".join(f"&m{i}" for i in range(len(graphs)))
    text = "".join(s.code for s in sources) + f"\nconst ecg_model *const many_models[] = {{{rows}}};\n"
    (folder / "models.c").write_text(text + c_model.kernel_table(kernels))
    made = [objects(p) for p in [*twin.sources(kernels), *(twin.C / name for name in twin.ENGINE), HERE / "many.c"]]
    library = folder / "many.so"
    quick = ["-O0" if flag.startswith("-O") else flag for flag in objects.flags]        # the models are data only
    twin.cc(quick, f"-I{folder}", folder / "models.c", *made, "-o", library)
    return Many(library, graphs)
