# SPDX-License-Identifier: Apache-2.0
"""Stands in for JetPack's module tensorrt: generation 8 knows bindings by number, 10 tensors by name (STANDIN_API).

An engine is the JSON that the stand-in for trtexec saves; it computes the same linear function, in memory that the
stand-in for libcudart gave. What a real one prints on the process's standard output, this one prints too.
"""

import array
import ctypes
import json
import os

OLD = os.environ.get("STANDIN_API", "10") == "8"
__version__ = "8.5.2.2" if OLD else "10.3.0"
float32, float16 = "DataType.FLOAT", "DataType.HALF"


class TensorIOMode:
    INPUT, OUTPUT = "in", "out"


class Logger:
    WARNING = 2

    def __init__(self, level):
        os.write(1, b"[TRT] [W] a line on the standard output\n")


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        try:
            return Engine(json.loads(plan.decode()))
        except ValueError:
            os.write(1, b"[TRT] [E] Serialization assertion stdVersionRead == serializationVersion failed.\n")
            return None


class Context:
    def __init__(self, engine):
        self.engine, self.places = engine, {}

    def _run(self, stream):
        if stream != 0x1234 or len(self.places) != len(self.engine.tensors):
            return False
        os.write(1, b"[TRT] [V] running\n")
        values, sizes = [], {}
        for name, shape, is_input in self.engine.tensors:
            sizes[name] = 1
            for length in shape:
                sizes[name] *= length
            if is_input:
                values += list(array.array("f", ctypes.string_at(self.places[name], 4 * sizes[name])))
        for name, _, is_input in self.engine.tensors:
            if not is_input:
                logits = array.array("f", [sum(x * ((i * 7 + k * 3) % 5 - 2) for i, x in enumerate(values))
                                           for k in range(sizes[name])])
                ctypes.memmove(self.places[name], logits.tobytes(), 4 * sizes[name])
        return True


class OldContext(Context):
    def execute_async_v2(self, bindings, stream_handle):
        self.places = {one[0]: bindings[k] for k, one in enumerate(self.engine.tensors)}
        return self._run(stream_handle)


class NewContext(Context):
    def set_tensor_address(self, name, place):
        self.places[name] = place
        return True

    def execute_async_v3(self, stream_handle):
        return self._run(stream_handle)


class OldEngine:
    def __init__(self, plan):
        self.tensors, self.kind = plan["tensors"], float16 if plan.get("half") else float32
        self.num_bindings = len(self.tensors)

    def create_execution_context(self):
        return OldContext(self)

    def get_binding_name(self, index):
        return self.tensors[index][0]

    def binding_is_input(self, index):
        return self.tensors[index][2]

    def get_binding_shape(self, index):
        return tuple(self.tensors[index][1])

    def get_binding_dtype(self, index):
        return self.kind


class NewEngine:
    def __init__(self, plan):
        self.tensors, self.kind = plan["tensors"], float16 if plan.get("half") else float32
        self.num_io_tensors = len(self.tensors)
        self.by_name = {one[0]: one for one in self.tensors}

    def create_execution_context(self):
        return NewContext(self)

    def get_tensor_name(self, index):
        return self.tensors[index][0]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self.by_name[name][2] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return tuple(self.by_name[name][1])

    def get_tensor_dtype(self, name):
        return self.kind


Engine = OldEngine if OLD else NewEngine
