# SPDX-License-Identifier: Apache-2.0
"""A .tflite file under construction: tensors, operators named after the layer they come from, shared constants.

A value is the index of a tensor in the file. Quantized tensors carry one scale, weights one scale per output channel.
The flatbuffer is written with the schema's object API that comes with ai-edge-litert; equal graphs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ALIGNMENT = 16              # of constants in the file, what its format promises to kernels
SCHEMA = 3                  # version of the file format
TYPES = {"float32": "FLOAT32", "int32": "INT32", "int16": "INT16", "int8": "INT8", "int64": "INT64", "bool": "BOOL"}

# operator -> (its options, version in float, version with int8, version with int16); a runtime refuses a file that
# asks for a newer version than it has
OPERATORS = {
    "ABS": ("Abs", 1, 2, 3), "ADD": ("Add", 1, 2, 3), "AVERAGE_POOL_2D": ("Pool2D", 1, 2, 3),
    "BATCH_MATMUL": ("BatchMatMul", 1, 2, 3), "CAST": ("Cast", 1, 1, 4), "CONCATENATION": ("Concatenation", 1, 2, 3),
    "CONV_2D": ("Conv2D", 1, 3, 4), "DEPTHWISE_CONV_2D": ("DepthwiseConv2D", 1, 3, 5),
    "DEQUANTIZE": ("Dequantize", 2, 2, 3), "EXP": ("Exp", 1, 2, 2), "FULLY_CONNECTED": ("FullyConnected", 1, 4, 7),
    "GATHER": ("Gather", 1, 2, 4), "L2_NORMALIZATION": ("L2Norm", 1, 2, 2),
    "LOGISTIC": (None, 1, 2, 3), "MAXIMUM": ("MaximumMinimum", 1, 2, 3),
    "MAX_POOL_2D": ("Pool2D", 1, 2, 3), "MEAN": ("Reducer", 1, 2, 3), "MINIMUM": ("MaximumMinimum", 1, 2, 3),
    "MUL": ("Mul", 1, 2, 4), "PACK": ("Pack", 1, 2, 3), "PAD": ("Pad", 1, 2, 3), "PADV2": ("PadV2", 1, 2, 3),
    "QUANTIZE": ("Quantize", 1, 2, 3), "REDUCE_MAX": ("Reducer", 1, 2, 3), "RELU": (None, 1, 2, 3),
    "RESHAPE": ("Reshape", 1, 1, 1), "RSQRT": (None, 1, 2, 3), "SELECT_V2": ("SelectV2", 1, 1, 1),
    "SLICE": ("Slice", 1, 2, 4), "SOFTMAX": ("Softmax", 1, 2, 3), "SPLIT": ("Split", 1, 2, 4),
    "SPLIT_V": ("SplitV", 1, 2, 2), "SQRT": (None, 1, 1, 1), "SQUARED_DIFFERENCE": ("SquaredDifference", 1, 2, 2),
    "SQUEEZE": ("Squeeze", 1, 1, 1), "STRIDED_SLICE": ("StridedSlice", 1, 2, 4), "SUB": ("Sub", 1, 2, 5),
    "SUM": ("Reducer", 1, 2, 2), "TANH": (None, 1, 2, 3), "TRANSPOSE": ("Transpose", 1, 2, 4),
    "UNPACK": ("Unpack", 1, 2, 2), "DIV": ("Div", 1, 2, 2), "SQUARE": ("Square", 1, 1, 1), "EXPAND_DIMS":
    ("ExpandDims", 1, 1, 1),
}
# version of a convolution whose weights see a part of the channels only
GROUPED = {"CONV_2D": 6}


@dataclass
class _Value:
    """A tensor of the file. data: of a constant, else None. axis: along which `scale` has one entry per slice."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...] = ()
    zero: int = 0
    axis: int = 0
    data: bytes | None = None


@dataclass
class _Operator:
    """kind: a name of the schema's BuiltinOperator; options: fields of its options object."""

    kind: str
    inputs: list[int]
    outputs: list[int]
    options: dict
    version: int


class TfliteFile:
    """Collects values and operators; `layer` prefixes the names of those that a layer needs inside.

    `dtype` is what `op` writes unless told: int8 or float32. A scale given for a float value is left out.
    """

    dtype = "int8"

    def __init__(self):
        self.values: list[_Value] = []
        self.operators: list[_Operator] = []
        self.constants: dict[tuple, int] = {}
        self.taken: set[str] = set()
        self.layer = ""
        self.place: dict[int, int] = {}     # value -> tensor of the packed file

    # ---- values

    def tensor(self, shape, dtype: str | None = None, scale: float | None = None, zero: int = 0,
               name: str | None = None) -> int:
        """A value that an operator will write, or an input."""
        dtype = dtype or self.dtype
        scales = (float(scale),) if scale is not None and dtype != "float32" else ()
        shape = tuple(int(s) for s in shape)
        self.values.append(_Value(name or self.unique("value"), shape, dtype, scales, zero))
        return len(self.values) - 1

    def constant(self, array, scale=None, zero: int = 0, axis: int = 0) -> int:
        """Data of the file; equal ones share a value. scale: one number, or one per slice along `axis`."""
        array = np.ascontiguousarray(array)
        scales = () if scale is None else tuple(np.atleast_1d(np.asarray(scale, float)).tolist())
        value = _Value("", array.shape, array.dtype.name, scales, zero, axis if len(scales) > 1 else 0, array.tobytes())
        key = (value.shape, value.dtype, value.scale, value.zero, value.axis, value.data)
        if key not in self.constants:
            value.name = self.unique("constant")
            self.values.append(value)
            self.constants[key] = len(self.values) - 1
        return self.constants[key]

    def ints(self, *numbers: int) -> int:
        """An int32 vector: a shape, axes, begins and sizes."""
        return self.constant(np.array(numbers, np.int32))

    def unique(self, word: str) -> str:
        """layer/word, with a number when that is taken."""
        name, i = f"{self.layer}/{word}", 1
        while name in self.taken:
            i += 1
            name = f"{self.layer}/{word}{i}"
        self.taken.add(name)
        return name

    def extent(self, value: int) -> tuple[int, ...]:
        """Shape of a value with the batch axis, as it lies in the file."""
        return self.values[value].shape

    def grid(self, value: int) -> float | None:
        """The one scale of a value, None without."""
        scale = self.values[value].scale
        return scale[0] if len(scale) == 1 else None

    def data(self, value: int) -> np.ndarray | None:
        """The array of a constant, None of what an operator writes."""
        held = self.values[value]
        return None if held.data is None else np.frombuffer(held.data, held.dtype).reshape(held.shape)

    # ---- operators

    def op(self, kind: str, inputs: list[int], shape, scale: float | None = None, zero: int = 0,
           dtype: str | None = None, **options) -> int:
        """Append an operator with one output; returns the output. options: fields of the schema's options object."""
        return self.ops(kind, inputs, [self.tensor(shape, dtype, scale, zero, self.unique(kind))], **options)[0]

    def ops(self, kind: str, inputs: list[int], outputs: list[int], **options) -> list[int]:
        """Append an operator that writes the values `outputs`."""
        dtypes = {self.values[v].dtype for v in (*inputs[:3], outputs[0]) if v >= 0}
        _, real, int8, int16 = OPERATORS[kind]
        version = int16 if "int16" in dtypes else int8 if "int8" in dtypes else real
        if kind in GROUPED and self.extent(inputs[1])[3] != self.extent(inputs[0])[3]:
            version = GROUPED[kind]
        self.operators.append(_Operator(kind, list(inputs), list(outputs), options, version))
        return outputs

    # ---- the file

    def pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The bytes of the file; operators whose outputs nothing reads and values without an operator are left out."""
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
        needed, operators = {*inputs, *outputs}, []
        for operator in reversed(self.operators):
            if needed.intersection(operator.outputs):
                needed.update(v for v in (*operator.inputs, *operator.outputs) if v >= 0)
                operators.insert(0, operator)
        used = sorted(needed)
        self.place = place = {v: i for i, v in enumerate(used)} | {-1: -1}
        codes = sorted({(o.kind, o.version) for o in operators})
        model = schema.ModelT()
        model.version = SCHEMA
        model.operatorCodes = [_code(schema, *code) for code in codes]
        model.buffers = [schema.BufferT()]
        graph = schema.SubGraphT()
        graph.name = "leadedge"
        graph.tensors = [_tensor(schema, self.values[v], model.buffers) for v in used]
        graph.inputs, graph.outputs = [place[v] for v in inputs], [place[v] for v in outputs]
        graph.operators = [_operator(schema, o, codes.index((o.kind, o.version)), place) for o in operators]
        model.subgraphs = [graph]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _code(schema, kind: str, version: int):
    """An operator's entry in the file's list; codes above 126 do not fit the field that old readers know."""
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    code.version = version
    return code


def _tensor(schema, value: _Value, buffers: list):
    """A tensor, its data appended to the buffers; the first buffer is the empty one."""
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.hasRank = value.name, np.array(value.shape, np.int32), True
    tensor.type = getattr(schema.TensorType, TYPES[value.dtype])
    if value.scale:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array(value.scale, np.float32)
        tensor.quantization.zeroPoint = np.full(len(value.scale), value.zero, np.int64)
        tensor.quantization.quantizedDimension = value.axis
    if value.data is not None:
        tensor.buffer = len(buffers)
        buffers.append(_aligned(schema, value.data))
    return tensor


def _aligned(schema, data: bytes):
    """A buffer whose bytes begin at a multiple of ALIGNMENT, which the generated code does not see to."""
    class Buffer(schema.BufferT):
        def Pack(self, builder):
            builder.StartVector(1, len(data), ALIGNMENT)
            start = builder.Head() - len(data)
            builder.Bytes[start:builder.Head()] = data
            builder.head = start
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)
    return Buffer()


def _operator(schema, operator: _Operator, code: int, place: dict[int, int]):
    """An operator with its options; an unknown option is an AttributeError."""
    found = schema.OperatorT()
    found.opcodeIndex = code
    found.inputs, found.outputs = ([place[v] for v in values] for values in (operator.inputs, operator.outputs))
    name = OPERATORS[operator.kind][0]
    if name:
        found.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name}Options")
        found.builtinOptions = getattr(schema, f"{name}OptionsT")()
        for field, option in operator.options.items():
            if not hasattr(found.builtinOptions, field):
                raise AttributeError(f"{operator.kind} has no option {field}")
            setattr(found.builtinOptions, field, option)
    return found
