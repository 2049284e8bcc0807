# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ONNX file made portable: constants computed, one opset that old runtimes know, nothing about this machine.

No torch here. Whatever is left that the opset does not know is a GraphError with the node's name.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from train.say import GraphError

IR_VERSION = 8              # of opset 17, read by every runtime that knows it
OPSETS = (13, 17)
HALF = 6e4                  # no constant beyond it: the float of a hidden score must fit float16
AXES = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                  "ReduceLogSumExp", "ReduceSumSquare"})     # whose axes were an attribute before opset 18
DEFAULTS = {"BatchNormalization": {"training_mode": 0}, "Reshape": {"allowzero": 0},
            "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}}     # attributes of later opsets


def portable(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same function in `opset`, one of OPSETS; shapes must be static."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    _bare(model)
    _fold(model)
    _lower(model, _inferred(model))
    _within_half(model)
    _used_only(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "LeadEdge", ""
    return checked(model)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model; GraphError when its opset does not allow it."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the exported file is not valid: {' '.join(str(error).split())[:300]}",
                         f"operators of opset {model.opset_import[0].version}") from None
    return model


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers as arrays."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes of all values that have one."""
    graph = _inferred(model).graph
    found = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(d.dim_value for d in dims)
    return found


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _bare(model: onnx.ModelProto) -> None:
    """Without source lines, paths and names of the machine that exported it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:], model.functions[:]
    graph.name = "leadedge"


def _fold(model: onnx.ModelProto) -> None:
    """Compute once what depends on constants only, with ONNX Runtime."""
    import onnxruntime
    graph = model.graph
    known = {t.name for t in graph.initializer}
    fixed, rest = [], []
    for node in graph.node:
        if all(v in known for v in node.input if v):
            fixed.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    made = {v for n in fixed for v in n.output}
    needed = sorted(made & ({v for n in rest for v in n.input} | {o.name for o in graph.output}))
    if needed:
        held = [t for t in graph.initializer if any(t.name in n.input for n in fixed)]
        part = helper.make_model(
            helper.make_graph(fixed, "constants", [], [helper.make_empty_tensor_value_info(v) for v in needed], held),
            opset_imports=model.opset_import, ir_version=model.ir_version)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        values = onnxruntime.InferenceSession(part.SerializeToString(), options).run(needed, {})
        graph.initializer.extend(numpy_helper.from_array(a, v) for v, a in zip(needed, values, strict=True))
    del graph.node[:]
    graph.node.extend(rest)


def _lower(model: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    """Nodes as the older opsets know them."""
    held, sizes = constants(model), shapes(inferred)
    for node in model.graph.node:
        if node.op_type in AXES and len(node.input) > 1:
            node.attribute.append(helper.make_attribute("axes", held[node.input[1]].tolist()))
            del node.input[1:]
        if node.op_type == "Split" and len(node.input) < 2:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            node.input.append(_constant(model, f"{node.name}.sizes", np.array([sizes[v][axis] for v in node.output])))
            _without(node, "num_outputs")
        if node.op_type == "Reciprocal":
            node.input.insert(0, _constant(model, "one", np.float32(1)))
            node.op_type = "Div"
        if node.op_type == "Reshape" and np.all(held.get(node.input[1], 0)):
            _without(node, "allowzero")
        for a in list(node.attribute):
            if (a.name, helper.get_attribute_value(a)) in DEFAULTS.get(node.op_type, {}).items() or (
                    a.name == "noop_with_empty_axes"):
                _without(node, a.name)


def _constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    """The name of a new constant; the same name means the same constant."""
    if all(t.name != name for t in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def _without(node: onnx.NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _within_half(model: onnx.ModelProto) -> None:
    """The floor of hidden scores, the least float32, becomes one of float16: e to it is 0 all the same."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size and np.abs(array).max() > HALF:
            tensor.CopyFrom(numpy_helper.from_array(np.clip(array, -HALF, HALF).astype(np.float32), tensor.name))


def _used_only(model: onnx.ModelProto) -> None:
    """Initializers that a node reads."""
    used = {v for n in model.graph.node for v in n.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
