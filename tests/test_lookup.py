# SPDX-License-Identifier: Apache-2.0
"""The lookup: float module, custom op, and what it is in a frozen graph."""

import numpy as np
import pytest
import torch
from torch import library, nn

from compress import agree, graph, lookup, reference
from compress.program import Program, tensors
from targets import onnx_qdq
from train.models.lookup import Lookup
from train.say import GraphError

torch.set_num_threads(1)


class Net(nn.Module):
    """A waveform's mean and the row of an age."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, (1, 3), padding=(0, 1))
        self.age = Lookup(6, 4, low=-1)
        self.logits = nn.Linear(8, 3)

    def forward(self, ecg, age):
        return self.logits(torch.cat([self.first(ecg).mean((2, 3)), self.age(age)], 1))


SCALES = {"ecg": 0.016, "age": 1.0}
SHAPES = {"ecg": (1, 20), "age": (1,)}


def inputs():
    """Every code of the table, and what lies beyond both of its ends."""
    rng = np.random.default_rng(0)
    age = np.array([-128, -2, -1, 0, 1, 2, 3, 4, 5, 127], np.int8)[:, None]
    return {"ecg": rng.integers(-128, 128, (len(age), 1, 20)).astype(np.int8), "age": age}


@pytest.fixture(scope="module")
def frozen():
    """(program, converted program, graph)."""
    torch.manual_seed(3)
    program = Program(Net(), SHAPES, SCALES, False)
    program.calibrate([tensors(inputs(), SCALES)])
    return program, *program.convert()


def test_a_lookup_is_one_node_whose_rows_are_codes(frozen):
    n, = (n for n in frozen[2].nodes if n.kind == "lookup")
    assert n.name == "net.age" and n.attrs == {"low": -1}
    assert n.params["table"].shape == (6, 4) and n.params["table"].dtype == np.int8


def test_what_lies_beyond_the_table_reads_its_ends(frozen):
    rows = reference.run(frozen[2], inputs(), trace=True)["age"]        # the input; its row is the lookup's tensor
    n = next(n for n in frozen[2].nodes if n.kind == "lookup")
    got = reference.run(frozen[2], inputs(), trace=True)[n.output]
    index = np.clip(rows[:, 0].astype(int) + 1, 0, 5)
    np.testing.assert_array_equal(got, n.params["table"][index])
    assert index.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 5, 5]


def test_the_reference_equals_the_converted_program_but_for_single_lsb_ties(frozen):
    assert agree.summary(agree.compare(*frozen[1:], inputs()))["worst"] <= 1


def test_the_rows_that_are_read_are_trained(frozen):
    program = frozen[0]
    program(*tensors(inputs(), SCALES)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in program.parameters())
    table, = (p for p in program.parameters() if p.shape == (6, 4))
    assert (table.grad.abs().sum(1) > 0).all()
    for p in program.parameters():
        p.grad = None


def test_a_graph_with_a_lookup_survives_its_files(frozen):
    g = frozen[2]
    again = graph.loads(*graph.dumps(g))
    assert graph.dumps(again) == graph.dumps(g)
    np.testing.assert_array_equal(reference.run(again, inputs()), reference.run(g, inputs()))


def test_the_lookup_op_passes_opcheck():
    x = torch.tensor([[-3.0], [0.0], [2.0], [9.0]])
    library.opcheck(torch.ops.leadedge.lookup.default, (x, torch.randn(4, 3, requires_grad=True), 0))


def test_the_op_has_value_and_gradient_of_the_float_module():
    torch.manual_seed(0)
    layer, x, pull = Lookup(5, 3, low=2), torch.tensor([[1.0], [2.0], [4.0], [4.0], [60.0]]), torch.randn(5, 3)
    expected = layer(x)
    gradient, = torch.autograd.grad((expected * pull).sum(), layer.table)
    layer.lookup_fn = lookup.lookup
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.autograd.grad((layer(x) * pull).sum(), layer.table)[0], gradient)


def test_a_lookup_of_an_input_that_does_not_count_ones_is_refused_by_layer():
    program = Program(Net(), SHAPES, SCALES | {"age": 0.5}, False)
    program.calibrate([tensors(inputs(), SCALES)])
    with pytest.raises(GraphError, match="age"):
        program.convert()


def test_a_target_that_does_not_know_a_kind_names_the_node(frozen):
    pytest.importorskip("onnx")
    known = frozen[2]
    strange = graph.Graph(known.inputs, known.output, known.tensors,
                          [graph.Node("age", "no_such_kind", n.inputs, n.output) if n.kind == "lookup" else n
                           for n in known.nodes])
    with pytest.raises(GraphError, match="age: no_such_kind"):
        onnx_qdq.lower(strange, "int8")
