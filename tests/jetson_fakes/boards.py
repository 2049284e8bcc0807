# SPDX-License-Identifier: Apache-2.0
"""Trees of system files as Jetsons have them, and job folders.

Paths and names of rails are those that public scripts read; the values are invented.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
DEVICE = HERE.parents[1] / "targets" / "jetson_device.py"
HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "sys/class/devfreq/17000000.gpu/min_freq": "1020000000", "sys/class/devfreq/17000000.gpu/max_freq": "1020000000",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1728000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1728000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": "48250",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal", "sys/class/thermal/thermal_zone1/temp": "-256000",
    "sys/class/hwmon/hwmon4/oc1_event_cnt": "0", "sys/class/hwmon/hwmon4/oc3_event_cnt": "0",
    HWMON + "in1_label": "VDD_IN", HWMON + "in1_input": "5000", HWMON + "curr1_input": "1200",
    HWMON + "in2_label": "VDD_CPU_GPU_CV", HWMON + "in2_input": "5000", HWMON + "curr2_input": "300",
    HWMON + "in3_label": "NC", HWMON + "in3_input": "5000", HWMON + "curr3_input": "0",
    HWMON + "in7_label": "sum of shunt voltages", HWMON + "in7_input": "3"}
NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: x\n",
    "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
    "sys/class/devfreq/57000000.gpu/min_freq": "76800000", "sys/class/devfreq/57000000.gpu/max_freq": "921600000",
    "sys/class/devfreq/57000000.gpu/cur_freq": "76800000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "102000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1479000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "102000",
    "sys/class/thermal/thermal_zone0/type": "AO-therm", "sys/class/thermal/thermal_zone0/temp": "41000",
    IIO + "rail_name_0": "POM_5V_IN", IIO + "in_power0_input": "2400",
    IIO + "rail_name_1": "POM_5V_GPU", IIO + "in_power1_input": "40",
    IIO + "rail_name_2": "POM_5V_CPU", IIO + "in_power2_input": "500"}
AGX = {**ORIN, "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
       HWMON + "in1_label": "VDD_GPU_SOC", HWMON + "in2_label": "VDD_CPU_CV", HWMON + "in3_label": "VIN_SYS_5V0",
       HWMON + "in3_input": "5000", HWMON + "curr3_input": "400"}
# which TensorRT each comes with
KINDS = {"nano": (NANO, 8201), "orin": (ORIN, 100300), "agx": (AGX, 110000)}


def tree(root: Path, files: dict) -> Path:
    """Write the files of a system below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def script(path: Path, source: Path) -> Path:
    """An executable that runs one of our stand-ins with this Python, without its site packages: quick to start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -SE\n{source.read_text()}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def job(folder: Path, windows: int = 4, classes: int = 4, device: bool = True, **more) -> dict:
    """A folder as targets/deploy.py writes it, of the linear function that the stand-in computes; returns job.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    inputs = [{"name": "window", "shape": [1, 2, 8], "scale": 0.0625}, {"name": "age", "shape": [1, 1], "scale": 0.5}]
    codes = [rng.integers(-90, 90, (windows, *one["shape"][1:]), dtype=np.int8) for one in inputs]
    reals = np.concatenate([(np.float32(one["scale"]) * c).reshape(windows, -1)
                            for one, c in zip(inputs, codes, strict=True)], 1)
    logits = reals @ np.array([[(i * 7 + k * 3) % 5 - 2 for k in range(classes)] for i in range(reals.shape[1])])
    scale = 0.75
    for one, c in zip(inputs, codes, strict=True):
        (folder / f"golden.{one['name']}.bin").write_bytes(c.tobytes())
    (folder / "golden.logits.bin").write_bytes(
        np.clip(np.floor(logits / scale + 0.5), -128, 127).astype(np.int8).tobytes())
    for name in ("model.int8.onnx", "model.float.onnx", "model.fp16.onnx"):
        (folder / name).write_bytes(b"model " + name.encode())
    if device:
        shutil.copy(DEVICE, folder)
    about = {"schema": 1, "name": "stand-in", "identity": "ab" * 32, "classes": list("NAO~"), "windows": windows,
             "inputs": inputs, "output": {"name": "logits", "shape": [1, classes], "scale": scale},
             "forms": {"int8": {"default": "model.int8.onnx", "strongly_typed": "model.int8.onnx"},
                       "fp16": {"default": "model.float.onnx", "strongly_typed": "model.fp16.onnx"},
                       "fp32": {"default": "model.float.onnx"}},
             "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                        for path in sorted(folder.iterdir()) if path.suffix in (".onnx", ".bin")},
             "decision": {"rule": "argmax", "offsets": [0] * classes, "nats_per_lsb_q16": 1, "vote": 1},
             "limits": {"labels": 0.995, "p99": 4, "worst": 12}, "jetpack": "6.2", "opset": 17, **more}
    (folder / "job.json").write_text(json.dumps(about))
    return about


def cudart(folder: Path) -> str:
    """Compile a library with the calls of libcudart that are used."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: sudo apt-get install gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcudart.so", HERE / "cudart.c"], check=True)
    return str(folder / "libcudart.so")


def golden(jetson: Jetson):
    """({name: int8 (window, ...)}, int8 logits (window, class)) of the job."""
    folder, job = jetson.folder, jetson.job
    inputs = {one["name"]: np.fromfile(folder / f"golden.{one['name']}.bin", np.int8).reshape(-1, *one["shape"][1:])
              for one in job["inputs"]}
    return inputs, np.fromfile(folder / "golden.logits.bin", np.int8).reshape(job["windows"], -1)


class Jetson:
    """A board that is not there: a tree, tools on PATH, the stand-in's settings, and a job."""

    def __init__(self, base: Path, kind: str = "orin", windows: int = 1, **settings):
        files, version = KINDS[kind]
        self.root, self.folder, self.base = tree(base / "root", files), base / "job", base
        self.tools, self.settings = base / "bin", base / "standin.json"
        self.job = job(self.folder, windows)
        tensors = [[one["name"], one["shape"], one in self.job["inputs"]]
                   for one in [*self.job["inputs"], self.job["output"]]]
        self.set(version=version, scale=self.job["output"]["scale"], classes=4, calls=str(base / "calls"),
                 tensors=tensors, **settings)
        script(self.root / "usr/src/tensorrt/bin/trtexec", HERE / "trtexec.py")
        self.tool("nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
        self.tool("dpkg-query", "printf 6.2+b77")
        self.environment = {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}", "STANDIN": str(self.settings),
                            "LEADEDGE_JETSON_ROOT": str(self.root), "LC_ALL": "C"}

    def set(self, **settings) -> None:
        """Change how the stand-in behaves."""
        old = json.loads(self.settings.read_text()) if self.settings.exists() else {}
        self.settings.write_text(json.dumps(old | settings))

    def tool(self, name: str, body: str) -> None:
        """A program on PATH."""
        self.tools.mkdir(exist_ok=True)
        (self.tools / name).write_text("#!/bin/sh\n" + body + "\n")
        (self.tools / name).chmod(0o755)

    def calls(self) -> list[list[str]]:
        """What trtexec was called with, --help left out."""
        log = self.base / "calls"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [argv for argv in found if argv != ["--help"]]

    def engine(self, folder: Path, form: str = "int8") -> Path:
        """Put an engine into a folder as a build leaves it; returns its file."""
        (folder / "engines").mkdir(exist_ok=True)
        path, model = folder / f"engines/{form}.engine", self.job["forms"][form]["default"]
        path.write_text(json.dumps({"form": form, "tensors": json.loads(self.settings.read_text())["tensors"]}))
        about = {"file": f"engines/{path.name}", "model": model, "model_sha256": self.job["sha256"][model]}
        (folder / f"engines/{form}.json").write_text(json.dumps({"key": {}, "engine": about}))
        return path

    def forget(self) -> None:
        """Empty the log of calls."""
        (self.base / "calls").unlink(missing_ok=True)
