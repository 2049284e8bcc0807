# SPDX-License-Identifier: Apache-2.0
"""Export a trained network that has no integer form, such as a `paper` preset, to ONNX for a Jetson.

    <run>/jetson/model.float.onnx   real numbers in and out, one window: inputs (1, *shape) in the units of training
    <run>/jetson/model.int8.onnx    the same with Q/DQ where TensorRT wants them, see placement.py
    <run>/jetson/export.json        what was quantized, and what both cost against the network in PyTorch

Both are opset 17 without layer norms or GELU as one operator, which TensorRT from 8.4 on takes; --opset 13 is for older
ones, whose devices have no int8, and writes the float file alone.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import runs, say
from train.say import GraphError, UserError

if TYPE_CHECKING:
    import numpy as np
    import onnx

FOLDER, FLOAT, INT8, RECORD = "jetson", "model.float.onnx", "model.int8.onnx", "export.json"
DEFAULT_OPSET = 17
NEWEST = 18             # what PyTorch's exporter writes by itself
WINDOWS = 128           # to calibrate on, and as many others to compare on
JUDGED = 32             # calibration windows on which the ways to choose scales are compared
TOLERANCE = 1e-3        # of the largest logit: float ONNX against PyTorch


def floating(net, shapes: dict[str, tuple[int, ...]], opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """A network in evaluation mode as float ONNX. shapes: of each input without batch, ecg (lead, time) first."""
    import logging
    import warnings

    import torch

    from compress.onnx_portable import portable

    class Window(torch.nn.Module):
        """One window without the network's channel axis: what the integer graph's files take too."""

        def __init__(self):
            super().__init__()
            self.net = net.eval()

        def forward(self, ecg, *sides):     # (1, lead, time), (1, *shape)
            return self.net(ecg[:, None], *sides)

    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            made = torch.onnx.export(Window(), tuple(torch.zeros(1, *shape) for shape in shapes.values()), dynamo=True,
                                     opset_version=NEWEST, input_names=list(shapes), output_names=["logits"],
                                     verbose=False, external_data=False)
        finally:
            log.setLevel(level)
    return portable(made.model_proto, opset)


def quantized(model: onnx.ModelProto, windows: list[dict], grids: dict[str, float]) -> tuple[onnx.ModelProto, dict]:
    """The model with Q/DQ, and what was chosen. windows: {input: float32 (1, *shape)} of training records.

    Of the ways to choose scales the one whose logits are nearest to the float model's on those windows.
    """
    import numpy as np

    from compress import placement
    plan = placement.plan(model)
    ranges = placement.Ranges().collect(model, plan, windows)
    plan = plan.without(model, {n for n in plan.rows if ranges.lost(n) > placement.LOST}, "softmax")
    judged = windows[:JUDGED]
    want = logits(model, judged)
    made = {way: placement.insert(model, plan.layers, placement.scales(plan, ranges, grids, way))
            for way in placement.WAYS}
    errors = {way: float(np.sqrt(np.square(logits(form, judged) - want).mean())) for way, form in made.items()}
    best = min(errors, key=errors.get)
    reasons = sorted(plan.kept.values())
    return made[best], {"layers_int8": len(plan.layers), "layers_float": {r: reasons.count(r) for r in set(reasons)},
                        "ranges": best, "rms_nats": errors}


def logits(model: onnx.ModelProto, windows: list[dict]) -> np.ndarray:
    """float32 (window, class) by ONNX Runtime."""
    import numpy as np

    from compress.placement import session
    run = session(model).run
    return np.concatenate([run(None, window)[0] for window in windows])


def truth(net, windows: list[dict]) -> np.ndarray:
    """float32 (window, class) by PyTorch."""
    import numpy as np
    import torch
    with torch.inference_mode():
        return np.concatenate([net(torch.from_numpy(ecg)[:, None], *map(torch.from_numpy, sides)).numpy()
                               for ecg, *sides in (w.values() for w in windows)])


def agreement(want: np.ndarray, got: np.ndarray, multi_label: bool) -> dict:
    """How near two sets of logits are: share of windows with equal labels, differences in nats."""
    import numpy as np
    gap = np.abs(want - got)
    same = ((want >= 0) == (got >= 0)).all(1) if multi_label else want.argmax(1) == got.argmax(1)
    return {"windows": len(want), "labels": float(same.mean()), "rms_nats": float(np.sqrt(np.square(gap).mean())),
            "worst_nats": float(gap.max()), "spread_nats": float(want.std())}


def faithful(net, model: onnx.ModelProto, windows: list[dict], multi_label: bool) -> dict:
    """Agreement of the float file with the network; GraphError when it computes something else."""
    import numpy as np
    want = truth(net, windows)
    found = agreement(want, logits(model, windows), multi_label)
    most = float(np.abs(want).max())
    if not found["worst_nats"] <= TOLERANCE * max(most, 1):         # NaN is refused, too
        raise GraphError(f"the exported file differs from the network by {found['worst_nats']:.2g} of {most:.2g}",
                         f"at most {TOLERANCE:g} of the largest logit", "another version of PyTorch or ONNX Runtime")
    return found


class Export:
    """One call: a trained run, its records, the files."""

    def __init__(self, run: str, data: str | None, count: int):
        from compress import evaluate
        from train import dataset, fit, tasks
        from train.prepare import open_shards, prepare
        from train.sides import SIDES
        self.run = pathlib.Path(run)
        self.draft, self.net = fit.load(run)
        if self.draft.frozen:
            raise UserError(f"{run} has an integer graph", "a run without one, such as a paper preset",
                            f"python targets/deploy.py --run {run} --target jetson")
        self.shapes = {i.name: i.shape for i in self.draft.inputs}
        self.grids = {i.name: i.lsb / 1000 if i.kind == "waveform" else SIDES[i.name].one for i in self.draft.inputs}
        task = tasks.find(self.draft.task)
        shards = open_shards(prepare(task, data, leads=",".join(self.draft.waveform.leads)))
        source = dataset.source(shards, task, self.net.geometry, self.net.sides)
        parts = dataset.split(shards, self.draft.provenance.get("fold", 0))

        def windows(part: str) -> list[dict]:
            codes = evaluate.sample(source, list(self.shapes), parts[part], count)
            real = {name: x.astype("float32") * self.grids[name] for name, x in codes.items()}
            return [{name: x[i:i + 1].astype("float32") for name, x in real.items()} for i in range(len(codes["ecg"]))]
        self.training, self.held = windows("train"), windows("validation")

    def all(self, opset: int) -> dict:
        """Export, compare, write."""
        say.info(f"exporting {self.draft.arch} {self.draft.preset}, opset {opset}")
        model = floating(self.net, self.shapes, opset)
        multi = self.draft.multi_label
        files = {FLOAT: model.SerializeToString()}
        result = {"run": str(self.run), "opset": opset, "calibrated_on": len(self.training),
                  "float": faithful(self.net, model, self.held, multi)}
        if opset >= DEFAULT_OPSET:
            form, chosen = quantized(model, self.training, self.grids)
            files[INT8] = form.SerializeToString()
            result |= chosen | {"int8": agreement(truth(self.net, self.held), logits(form, self.held), multi)}
        else:
            say.info(f"opset {opset} is for devices without int8: the float file alone")
        result["bytes"] = {name: len(data) for name, data in files.items()}
        runs.write(self.run / FOLDER, files | {RECORD: json.dumps(result, indent=1) + "\n"})
        self._report(result)
        return result

    def _report(self, result: dict) -> None:
        """The table, and what to do next."""
        rows = [(form, f"{result[form]['labels']:.2%}", *(f"{result[form][k]:.2g}" for k in ("rms_nats", "worst_nats")),
                 f"{result['bytes'][name] / 1e6:.1f}") for form, name in (("float", FLOAT), ("int8", INT8))
                if form in result]
        say.table(rows, ("ONNX against PyTorch", "equal labels", "rms, nats", "largest, nats", "MB"))
        say.info(f"on {result['float']['windows']} windows of records that it was not trained on")
        if "int8" in result:
            kept = ", ".join(f"{n} {reason}" for reason, n in sorted(result["layers_float"].items()))
            say.info(f"{result['layers_int8']} layers in int8; in float: {kept or 'none'}")
        last = INT8 if "int8" in result else FLOAT
        more = "" if "int8" in result else " --jetpack 4.6"
        say.info(f"next: python targets/trt_lint.py {self.run / FOLDER / last}{more}")


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, metavar="R", help="run folder, written by train/fit.py")
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--opset", type=int, choices=(13, 17), default=DEFAULT_OPSET, help="17, or 13 for JetPack 4")
    p.add_argument("--windows", type=say.positive(int), default=WINDOWS, help=f"to calibrate on ({WINDOWS})")
    return p


def main(args) -> dict:
    """Export a run."""
    for package, extra in (("torch", "compress"), ("onnx", "jetson"), ("onnxscript", "compress"),
                           ("onnxruntime", "jetson")):
        say.need(package, extra)
    return Export(args.run, args.data, args.windows).all(args.opset)


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
