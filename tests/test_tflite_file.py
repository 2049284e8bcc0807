# SPDX-License-Identifier: Apache-2.0
"""The .tflite writer: what lies in the file, and that a runtime reads it."""

from __future__ import annotations

import numpy as np
import pytest

from targets import litert, tflite_file
from targets.tflite_file import ALIGNMENT, TfliteFile

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason=str(litert.missing()))


def scaled(values: int = 3) -> tuple[TfliteFile, int, int]:
    """x times per-channel weights plus a bias, as a convolution of one column; (file, input, output)."""
    file = TfliteFile()
    file.layer = "net.dense"
    x = file.tensor((1, 1, 1, values), None, 0.5, name="x")
    grid = np.array([0.25, 0.5])
    weight = file.constant(np.arange(1, 2 * values + 1, dtype=np.int8).reshape(2, 1, 1, values), grid)
    bias = file.constant(np.array([8, -4], np.int32), 0.5 * grid)
    return file, x, file.op("CONV_2D", [x, weight, bias], (1, 1, 1, 2), 1.0, padding=1, strideW=1, strideH=1)


def read(file: bytes):
    """The file's root and its one graph."""
    model = schema.Model.GetRootAs(file, 0)
    return model, model.Subgraphs(0)


def test_a_runtime_computes_what_the_file_says():
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    file, x, y = scaled()
    runtime = interpreter(model_content=file.pack([x], [y]))
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], np.array([[[[4, -2, 6]]]], np.int8))
    runtime.invoke()
    got = runtime.get_tensor(runtime.get_output_details()[0]["index"])
    # real: 0.5 * (4, -2, 6) times 0.25 * (1, 2, 3) and 0.5 * (4, 5, 6), plus 1 and -1
    assert got.ravel().tolist() == [3, 10]


def test_equal_files_have_equal_bytes():
    packed = [file.pack([x], [y]) for file, x, y in (scaled(), scaled())]
    assert packed[0] == packed[1] and packed[0][4:8] == b"TFL3"


def test_constants_begin_where_kernels_want_them():
    file, x, y = scaled(values=37)
    packed = np.frombuffer(file.pack([x], [y]), np.uint8)
    model, _ = read(packed)
    found = [model.Buffers(i).DataAsNumpy() for i in range(1, model.BuffersLength())]
    assert len(found) == 2 and all((a.ctypes.data - packed.ctypes.data) % ALIGNMENT == 0 for a in found)
    assert found[0].tobytes() == np.arange(1, 75, dtype=np.int8).tobytes()
    assert model.Buffers(0).DataLength() == 0           # stands for "no data"


def test_equal_constants_share_a_value_and_others_do_not():
    file = TfliteFile()
    a = file.constant(np.ones(3, np.int8), 0.5)
    assert file.constant(np.ones(3, np.int8), 0.5) == a
    others = [file.constant(np.ones(3, np.int8), 0.25), file.constant(np.ones(3, np.int8)),
              file.constant(np.ones((1, 3), np.int8), 0.5), file.constant(np.ones(3, np.int16), 0.5)]
    assert len({a, *others}) == 5


def test_weights_carry_a_scale_for_each_channel_and_codes_one():
    file, x, y = scaled()
    _, graph = read(file.pack([x], [y]))
    tensors = {graph.Tensors(i).Name().decode(): graph.Tensors(i) for i in range(graph.TensorsLength())}
    weight, bias, out = (tensors[name] for name in ("net.dense/constant", "net.dense/constant2", "net.dense/CONV_2D"))
    assert weight.Quantization().ScaleAsNumpy().tolist() == [0.25, 0.5]
    assert bias.Quantization().ScaleAsNumpy().tolist() == [0.125, 0.25]
    assert weight.Quantization().ZeroPointAsNumpy().tolist() == [0, 0] and bias.Type() == schema.TensorType.INT32
    assert out.Quantization().ScaleAsNumpy().tolist() == [1.0] and out.Type() == schema.TensorType.INT8


def test_the_axis_of_the_scales_is_kept():
    file = TfliteFile()
    weight = file.constant(np.ones((1, 1, 5, 2), np.int8), [0.5, 0.25], axis=3)
    x = file.tensor((1, 1, 9, 2), None, 0.5, name="x")
    bias = file.constant(np.zeros(2, np.int32), [0.25, 0.125])
    y = file.op("DEPTHWISE_CONV_2D", [x, weight, bias], (1, 1, 9, 2), 1.0, padding=0, strideW=1, strideH=1,
                depthMultiplier=1)
    _, graph = read(file.pack([x], [y]))
    found = [graph.Tensors(i).Quantization() for i in range(graph.TensorsLength())]
    assert [q.QuantizedDimension() for q in found if q.ScaleLength() == 2] == [3, 0]


@pytest.mark.parametrize("dtype, version", [("float32", 1), ("int8", 2), ("int16", 3)])
def test_an_operator_asks_for_the_version_that_its_type_needs(dtype, version):
    file = TfliteFile()
    file.dtype = dtype
    x = file.tensor((1, 4), None, 0.5, name="x")
    model, _ = read(file.pack([x], [file.op("ADD", [x, x], (1, 4), 1.0)]))
    code = model.OperatorCodes(0)
    assert code.BuiltinCode() == code.DeprecatedBuiltinCode() == schema.BuiltinOperator.ADD
    assert code.Version() == version


def test_a_convolution_in_groups_asks_for_a_newer_version():
    versions = []
    for depth in (4, 2):
        file = TfliteFile()
        x = file.tensor((1, 1, 8, 4), None, 0.5, name="x")
        weight = file.constant(np.ones((4, 1, 1, depth), np.int8), np.full(4, 0.5))
        y = file.op("CONV_2D", [x, weight, file.constant(np.zeros(4, np.int32), np.full(4, 0.25))], (1, 1, 8, 4), 1.0,
                    padding=1, strideW=1, strideH=1)
        versions.append(read(file.pack([x], [y]))[0].OperatorCodes(0).Version())
    assert versions == [3, 6]


def test_a_code_that_old_readers_have_no_room_for_is_marked():
    code = tflite_file._code(schema, "GELU", 1)
    assert code.builtinCode == schema.BuiltinOperator.GELU > 127 and code.deprecatedBuiltinCode == 127


def test_float_values_carry_no_scale():
    file = TfliteFile()
    file.dtype = "float32"
    x = file.tensor((1, 4), None, 0.5, name="x")
    _, graph = read(file.pack([x], [file.op("ADD", [x, x], (1, 4), 0.5)]))
    assert all(not (q := graph.Tensors(i).Quantization()) or q.ScaleLength() == 0 for i in range(graph.TensorsLength()))


def test_what_nothing_reads_is_left_out():
    file, x, y = scaled()
    file.op("RESHAPE", [y, file.ints(2, 1)], (2, 1), 1.0)
    _, graph = read(file.pack([x], [y]))
    assert graph.OperatorsLength() == 1 and graph.TensorsLength() == 4


def test_an_unknown_option_is_an_error():
    file, x, y = scaled()
    file.op("RESHAPE", [y, file.ints(2, 1)], (2, 1), 1.0, stride=2)
    with pytest.raises(AttributeError, match="RESHAPE has no option stride"):
        file.pack([x], [len(file.values) - 1])


def test_names_of_a_layer_s_values_are_its_own():
    file = TfliteFile()
    file.layer = "net.a"
    names = [file.values[file.tensor((1,))].name for _ in range(3)]
    assert names == ["net.a/value", "net.a/value2", "net.a/value3"]
