# SPDX-License-Identifier: Apache-2.0
"""Stands in for trtexec: takes the options of a version, refuses others, and writes what that version writes.

Options and formats are those of samples/common (sampleOptions.cpp, sampleReporting.cpp, trtexec.cpp) in the repository
NVIDIA/TensorRT, banners and failures those of logs in its issues; the layer dumps follow the example in its developer
guide (8), issue 4020 (10) and the keys that dumps of 11 have. Nothing in them was measured.

Set in a JSON file named by STANDIN: version (8201, 100300, 110000), unknown (options it shall not know), fail (form ->
lines), offset (form -> LSB added to an output), tensors ([name, shape, is input]),
hang (s), count (windows timed), names_only, nan, calls (log of argv).
"""

import array
import json
import os
import sys
import time

BOTH = ("onnx saveEngine loadEngine noTF32 profilingVerbosity exportLayerInfo timingCacheFile warmUp duration "
        "iterations avgRuns exportTimes exportOutput loadInputs verbose help").split()
ONLY = {8201: "fp16 int8 workspace useCudaGraph useSpinWait buildOnly noDataTransfers".split(),
        100300: "fp16 int8 memPoolSize useCudaGraph useSpinWait skipInference stronglyTyped noDataTransfers "
                "builderOptimizationLevel".split(),
        110000: "memPoolSize includeDataTransfers noCudaGraph noSpinWait skipInference "
                "builderOptimizationLevel".split()}
LATENCY = {"int8": 0.21, "fp16": 0.25, "fp32": 0.4}
SETTINGS = json.load(open(os.environ["STANDIN"]))
VERSION = SETTINGS.get("version", 100300)


def main():
    command = f"TensorRT.trtexec [TensorRT v{VERSION}]" + (" [b114]" if VERSION > 110000 - 1 else "")
    print(f"&&&& RUNNING {command} # {' '.join(sys.argv)}", flush=True)
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    if "calls" in SETTINGS:
        with open(SETTINGS["calls"], "a") as log:
            log.write(json.dumps(sys.argv[1:]) + "\n")
    if "help" in options:
        print("=== Model Options ===")
        return 0
    time.sleep(SETTINGS.get("hang", 0))
    unknown = [name for name in options if name not in BOTH + ONLY[VERSION] or name in SETTINGS.get("unknown", [])]
    for name in unknown:
        print(f"[11/20/2026-10:00:00] [E] Unknown option: --{name} {options[name]}")
    if unknown or not work(options):
        print(f"&&&& FAILED {command} # {' '.join(sys.argv)}")
        return 1
    print(f"&&&& PASSED {command} # {' '.join(sys.argv)}")
    return 0


def work(options):
    """Build or load, run, and write what is asked for."""
    engine = build(options) if "onnx" in options else load(options["loadEngine"])
    if engine is None:
        return False
    if "saveEngine" in options:
        with open(options["saveEngine"], "w") as stream:
            json.dump(engine, stream)
    if "exportLayerInfo" in options:
        with open(options["exportLayerInfo"], "w") as stream:
            json.dump(dump(engine["form"]), stream)
    if "timingCacheFile" in options:
        open(options["timingCacheFile"], "a").close()
    print("[11/20/2026-10:00:01] [I] Starting inference", flush=True)
    if "exportTimes" in options:
        times(engine["form"], options)
    print(f"[11/20/2026-10:00:02] [I] Warmup completed 12 queries over {options.get('warmUp', 200)} ms", flush=True)
    print("[11/20/2026-10:00:02] [I] === Performance summary ===")
    print("[11/20/2026-10:00:02] [I] Enqueue Time: min = 0.0114746 ms, max = 0.0491943 ms, mean = 0.0136421 ms, "
          "median = 0.0130615 ms, " + ("" if VERSION < 10000 else "percentile(90%) = 0.0142822 ms, "
                                       "percentile(95%) = 0.0157471 ms, ") + "percentile(99%) = 0.0249023 ms")
    print("[11/20/2026-10:00:02] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may "
          "be under-utilized.")
    if "exportOutput" in options:
        outputs(engine["form"], options)
    return True


def build(options):
    """The engine of a model: which form it is shows in the file's name and in the flags."""
    name = os.path.basename(options["onnx"])
    if VERSION >= 110000:
        form = {"model.int8.onnx": "int8", "model.fp16.onnx": "fp16", "model.float.onnx": "fp32"}[name]
    else:
        form = "int8" if "int8" in options else "fp16" if "fp16" in options else "fp32"
        assert name == ("model.int8.onnx" if form == "int8" else "model.float.onnx"), name
    for line in SETTINGS.get("fail", {}).get(form, []):
        print(f"[11/20/2026-10:00:00] [E] {line}")
    return None if form in SETTINGS.get("fail", {}) else {"form": form, "tensors": SETTINGS["tensors"]}


def load(path):
    try:
        with open(path) as stream:
            return json.load(stream)
    except ValueError:
        print("[11/20/2026-10:00:00] [E] Engine deserialization failed")
        return None


def times(form, options):
    """Every field with the six digits of a C++ stream; version 8 leaves the warm-up in."""
    warm_up, latency = float(options["warmUp"]), LATENCY[form]
    time.sleep(warm_up / 1000 + float(options["duration"]))
    warming = 50 if VERSION < 10000 else 0
    rows, at = [], warm_up
    for k in range(-warming, SETTINGS.get("count", 400)):
        compute = latency + 0.001 * (k * 37 % 11) + (0.3 if k % 100 == 99 else 0) + (9 if k < 0 else 0)
        begin = warm_up * (k + warming) / warming if k < 0 else at
        stamps = [begin, begin + 0.02, begin + 0.02, begin + 0.03, begin + 0.03, begin + 0.03 + compute,
                  begin + 0.03 + compute, begin + 0.04 + compute]
        keys = "startEnqMs endEnqMs startH2dMs endH2dMs startComputeMs endComputeMs startD2hMs endD2hMs".split()
        fields = [*zip(keys, stamps, strict=True), ("h2dMs", 0.01), ("computeMs", compute), ("d2hMs", 0.01),
                  ("latencyMs", 0.02 + compute)]
        fields += [("endToEndMs", 0.04 + compute)] if VERSION < 10000 else []
        rows.append("{ " + ", ".join(f'"{key}" : {value:.6g}' for key, value in fields) + " }")
        at += (0.05 + compute) * (k >= 0)
    with open(options["exportTimes"], "w") as stream:
        stream.write("[\n  " + "\n, ".join(rows) + "\n]\n")


def outputs(form, options):
    """The linear function of tests/jetson_fakes/job.py, with six digits."""
    values = []
    for part in options["loadInputs"].split(","):
        name, _, path = part.rpartition(":")
        assert name, part
        column = array.array("f")
        with open(path, "rb") as stream:
            column.frombytes(stream.read())
        values += list(column)
    logits = [sum(x * ((i * 7 + k * 3) % 5 - 2) for i, x in enumerate(values)) + SETTINGS.get("offset", {}).get(form, 0)
              * SETTINGS["scale"] for k in range(SETTINGS["classes"])]
    text = ", ".join("nan" if SETTINGS.get("nan") else f"{value:.6g}" for value in logits)
    with open(options["exportOutput"], "w") as stream:
        stream.write(f'[\n  {{ "name" : "logits"\n  , "dimensions" : "1x{len(logits)}"\n'
                     f'  , "values" : [ {text} ]\n  }}\n]\n')


def tensor(name, kind):
    """One tensor of a layer, in the words of the version."""
    here = {"Name": name, "Location": "Device", "Dimensions": [1, 16, 1, 100]}
    if VERSION >= 110000:
        return {**here, "Format": "LINEAR", "DataType": {"Int8": "INT8", "FP16": "FP16", "FP32": "FP32"}[kind]}
    if VERSION >= 100000:
        words = {"Int8": "Thirty-two wide channel vectorized row major Int8 format", "FP32": "Row major linear FP32",
                 "FP16": "Channel major FP16 format where channel % 8 == 0"}
    else:
        words = {"Int8": "Thirty-two wide channel vectorized row major Int8 format.", "FP32": "Row major linear FP32",
                 "FP16": "Two wide channel vectorized row major FP16 format"}
    return {**here, "Format/Datatype": words[kind]}


def layer(name, kind, came, went, **more):
    return {"Name": name, "LayerType": kind, "Inputs": [tensor("in of " + name, came)],
            "Outputs": [tensor("out of " + name, went)], **more}


def conv(name, kind, came, went, weights, tactic):
    return layer(name, kind, came, went, ParameterType="Convolution", Kernel=[1, 9], OutMaps=16, Groups=1,
                 Weights={"Type": weights, "Count": 2304}, Bias={"Type": "Float", "Count": 16}, TacticName=tactic)


def dump(form):
    """What --exportLayerInfo writes."""
    if form != "int8":
        layers = [conv("stem", "CaskConvolution", "FP16", "FP16", "Half", "sm87_xmma_fprop_implicit_gemm_f16f16_f16")]
    else:
        layers = [layer("input_QuantizeLinear", "Reformat", "FP32", "Int8", ParameterType="Reformat", Origin="QDQ"),
                  conv("stem", "CaskConvolution", "Int8", "Int8", "Int8",
                       "sm72_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32"),
                  layer("PWN(gelu)", "PointWiseV2", "FP16", "FP16", ParameterType="PointWise")]
        layers += {8201: eight, 100300: ten, 110000: eleven}[VERSION]()
    if SETTINGS.get("names_only"):
        layers = [one["Name"] for one in layers]
    tensors = ["window", "logits"]
    if VERSION >= 110000:
        return {"Layers": layers, "I/O Tensors": [{"Name": name, "IOMode": "INPUT" if name == "window" else "OUTPUT",
                                                   "DataType": "FP32", "Dimensions": [1, 4]} for name in tensors]}
    return {"Layers": layers, "Bindings": tensors}


def eight():
    """An int8 convolution that leaves in float32, a matrix product that fell back, and a block that shows nothing."""
    return [conv("block", "CaskConvolution", "Int8", "FP32", "Int8",
                 "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32kcrs"),
            conv("head", "CublasConvolution", "FP16", "FP16", "Half", ""),
            layer("{ForeignNode[attention]}", "Myelin", "FP16", "FP16")]


def ten():
    """Matrix products by Myelin, which name no weights."""
    return [layer("__myl_Fc_myl0_3", "gemm", "Int8", "FP16", TacticName="sm80_xmma_gemm_i8i8_i8i32_f32_tn_n",
                  StreamId=0, Metadata="[ONNX Layer: qkv]"),
            layer("__myl_FcAdd_myl0_5", "fusion", "Int8", "FP16", TacticName="", Weights={"Type": "Int8", "Count": 256},
                  ParameterType="MatrixMultiply"),
            layer("__myl_MulSum_myl0_9", "kgen", "FP16", "FP16", TacticName="__myl_MulSum_0x1234"),
            layer("head", "gemm", "FP16", "FP16", TacticName="sm80_xmma_gemm_f16f16_f16f16_f16_nn_n", StreamId=0)]


def eleven():
    """Int8 in, but a float kernel: it did not run int8."""
    return [conv("block", "CaskConvolution", "Int8", "FP16", "Half", "sm87_xmma_fprop_implicit_gemm_f16f16_f16f32_f32"),
            layer("qkv", "gemm", "Int8", "FP16", TacticName="")]


if __name__ == "__main__":
    sys.exit(main())
