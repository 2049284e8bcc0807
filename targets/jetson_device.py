# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: B905
"""Measures and serves a model on an NVIDIA Jetson. Standard library only, Python 3.6 or newer, nothing to install.

python3 jetson_device.py [--seconds 20]     build engines, check golden outputs, measure; one JSON object on stdout
python3 jetson_device.py --build            build engines only (int8, fp16, fp32), or take them from engines/
python3 jetson_device.py --serve int8       live inference on stdin and stdout, by JetPack's own `tensorrt` module

It stands beside the files that targets/deploy.py wrote (job.json names them) and drives JetPack's trtexec. It is longer
than other files of this project because it is copied to the device alone. Not yet run on a Jetson: written after the
public sources of trtexec 8.2 to 11 and tested against stand-ins for it.

Result, schema 1. Times in ms, power in W, energy in mJ, frequencies in Hz, temperatures in degrees Celsius.
  name, identity, date, argv      of the job, and of this program
  environment    device, soc, l4t, jetpack, tensorrt, cuda, kernel, python, trtexec, power_mode, and before and after:
                 clocks {gpu, emc, cpu, locked}, temperatures, throttle_events (counters of over-current)
  warnings       sentences; "clocks not locked: p99 not comparable" is one
  measured       form -> {p50_ms, p90_ms, p99_ms, p99_interval_ms [low, high] (95 %, bootstrap), p999_ms (from 100,000
                 samples), samples} of the device latency (copy in, compute, copy out); compute likewise; enqueue
                 {p50_ms, mean_ms, p99_ms} as trtexec sums it up; resolution_ms (it counts in float32 since its start);
                 rate_hz; warnings; argv; dropped (options that this trtexec does not know); or {failed: sentence}
  engines        form -> {file, sha256, model, model_sha256, argv, dropped, seconds, reason (why it was built) or null}
  parity         form -> {windows, labels, p99, worst (LSB of a logit), holds, by (worker or trtexec)}
  layers_int8    {ran, of, hidden, others}: convolutions and matrix products that really ran int8 in the int8 engine, of
                 those that the layer dump shows; hidden: fused blocks of which it shows no types; others: names; null
                 without a dump
  won            {form, over {form: p50 of it / p50 of the winner}, fp16_p50_ms} among those whose parity holds, or null
  cpu            {rows [{form, threads, percentiles}], onnxruntime} of the same board's processor, or {missing: reason}
  energy         {rail, rails, idle_w, idle_samples, hz, excludes, forms {form: {load_w, samples, seconds, net_mj,
                 gross_mj, day_j}}, period_s}; or null, and then energy_missing is the reason

Frames of --serve, both ways: one byte of kind, uint32 length, payload; little endian. First the server sends H, JSON
{tensorrt, inputs [{name, shape}], outputs [...]}. Then for each I, the float32 of all inputs in H's order, comes one O,
the float32 of all outputs, or one E, a sentence. After an E about the frame itself it goes on. End of input ends it.
Exit status: 0 done, 1 an input is wrong, 2 the device or a tool is missing. One sentence and the next command say why.
"""

import argparse
import array
import ctypes
import ctypes.util
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

FORMS = ("int8", "fp16", "fp32")
SOCS = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
NO_INT8 = ("5.3", "6.2")
OLDEST = (8, 2, 0)
DEPLOY = "python targets/deploy.py --run R --target jetson"
JOB = ("name", "identity", "windows", "inputs", "output", "forms", "sha256", "decision", "limits")
WORKSPACE = 512             # MiB that a tactic may take while an engine is built
FRAME = struct.Struct("<cI")
# what an engine and a timing can do without, should a trtexec not know it
OPTIONAL = ("--timingCacheFile", "--exportLayerInfo", "--profilingVerbosity", "--builderOptimizationLevel", "--noTF32",
            "--memPoolSize", "--workspace", "--useSpinWait", "--useCudaGraph", "--includeDataTransfers")


class Stop(Exception):
    """What is wrong, and what to type next. code: 1 the input, 2 the device or a tool."""

    def __init__(self, what, fix="", code=2):
        super().__init__(what)
        self.what, self.fix, self.code = what, fix, code


def say(text):
    """One line for people."""
    print(text, file=sys.stderr, flush=True)


def run(argv, seconds, cwd=None):
    """Exit status and [(second of the monotonic clock, line)] of a program; Stop when it is late or absent."""
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 cwd=cwd, start_new_session=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise Stop(f"{argv[0]} does not start: {error.strerror}", "check the path") from error
    late = threading.Event()

    def end():
        if child.poll() is None:
            late.set()
            os.killpg(child.pid, signal.SIGKILL)
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    lines = []
    try:
        for line in child.stdout:
            lines.append((time.monotonic(), line.rstrip("\n")))
        child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
    if late.is_set():
        raise Stop(f"{os.path.basename(argv[0])} did not end within {seconds:g} s", "raise --timeout")
    return child.returncode, lines


def ask(*argv):
    """First words of a program's output, None when it is absent, late or fails."""
    try:
        status, lines = run(list(argv), 20)
    except Stop:
        return None
    return "\n".join(text for _, text in lines).strip() or None if status == 0 else None


def digest(path):
    """sha256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            total.update(part)
    return total.hexdigest()


def write_json(path, value):
    """Write a file whole or not at all."""
    with open(path + ".part", "w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(path + ".part", path)


def read_json(path):
    """What write_json wrote, None when it is absent or broken."""
    try:
        with open(path) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


# ---- the board

class Board:
    """What the operating system tells of the board. root: where its files are, / but for tests."""

    def __init__(self, root):
        self.root = root.rstrip("/")

    def path(self, name):
        return self.root + name

    def read(self, name):
        """Text of a file of the system, None when it cannot be read."""
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read().replace(b"\0", b"\n").decode("utf-8", "replace").strip()
        except OSError:
            return None

    def number(self, name):
        """A file that holds one number, None when it does not."""
        try:
            return float(self.read(name))
        except (TypeError, ValueError):
            return None

    def glob(self, pattern):
        """Names of the system's files, sorted."""
        return sorted(name[len(self.root):] for name in glob.glob(self.path(pattern)))

    def soc(self):
        """tegra234 and so on, None on anything but a Tegra."""
        found = re.search(r"nvidia,(tegra\d+)", self.read("/proc/device-tree/compatible") or "")
        return found.group(1) if found else None

    def check(self):
        """Stop unless this is a Jetson."""
        if not self.soc() and not self.read("/etc/nv_tegra_release"):
            raise Stop(f"this is not a Jetson but {platform.system()} {platform.machine()}",
                       "python bench/latency.py --target jetson --run R --device user@host, or copy this folder to one")

    def facts(self):
        """What does not change while we measure."""
        cuda = re.search(r"[\d.]+", (read_json(self.path("/usr/local/cuda/version.json")) or {}).get("cuda", {}).get(
            "version", "") or self.read("/usr/local/cuda/version.txt") or "")
        mode = ask("nvpmodel", "-q")
        named = re.search(r"Power Mode: *(\S+)", mode or "")
        return {"device": self.read("/proc/device-tree/model"), "soc": self.soc(), "sm": SOCS.get(self.soc()),
                "l4t": (self.read("/etc/nv_tegra_release") or "").split(", GCID")[0].lstrip("# ") or None,
                "jetpack": ask("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"),
                "cuda": cuda.group() if cuda else None, "kernel": platform.release(),
                "python": platform.python_version(),
                "power_mode": named.group(1) if named else mode or self.read("/var/lib/nvpmodel/status")}

    def clocks(self):
        """Frequencies in Hz, and whether the lowest allowed one is the highest: locked, None when nobody can tell."""
        gpus = [name for name in self.glob("/sys/class/devfreq/*")
                if re.search(r"gpu|gv11b|gp10b|ga10b|gb10b", os.path.basename(name))]
        gpu = {kind: self.number(gpus[0] + "/" + kind + "_freq") for kind in ("min", "max", "cur")} if gpus else None
        emc = self.number("/sys/kernel/debug/bpmp/debug/clk/emc/rate")
        cpus = self.glob("/sys/devices/system/cpu/cpufreq/policy*")
        cpu = [{kind: (self.number(name + "/scaling_" + kind + "_freq") or 0) * 1000 for kind in ("min", "max", "cur")}
               for name in cpus]
        pairs = [(c["min"], c["max"]) for c in cpu + ([gpu] if gpu else [])]
        return {"gpu": gpu, "emc": emc, "cpu": cpu,
                "locked": all(low == high for low, high in pairs) if gpu and cpu else None}

    def state(self):
        """What changes while we measure."""
        zones = {}
        for zone in self.glob("/sys/class/thermal/thermal_zone*"):
            degrees = self.number(zone + "/temp")
            if degrees is not None and degrees > -200000:
                zones[self.read(zone + "/type") or os.path.basename(zone)] = degrees / 1000
        events = [self.number(name) for name in self.glob("/sys/class/hwmon/hwmon*/oc*_event_cnt")]
        return {"clocks": self.clocks(), "temperatures": zones,
                "throttle_events": sum(n for n in events if n is not None) if events else None}

    def rails(self):
        """Supply rails: name -> files, (volt and ampere in thousandths) or (milliwatt,)."""
        found = {}
        for label in self.glob("/sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in[0-9]_label"):
            name, here = self.read(label), label[:-len("_label")]
            current = here[:here.rindex("/")] + "/curr" + here[-1] + "_input"
            if name and name != "NC" and "sum" not in name.lower() and self.number(current) is not None:
                found[name] = (here + "_input", current)
        for label in self.glob("/sys/bus/i2c/drivers/ina3221*/*/iio*device*/rail_name_[0-9]"):
            name, power = self.read(label), label[:label.rindex("/")] + "/in_power" + label[-1] + "_input"
            if name and name != "NC" and self.number(power) is not None:
                found[name] = (power,)
        total = [name for name in ("VDD_IN", "POM_5V_IN") if name in found]
        return {total[0]: found[total[0]]} if total else found

    def watts(self, rails):
        """Power of all rails now."""
        total = 0.0
        for files in rails.values():
            values = [self.number(name) for name in files]
            if None in values:
                raise OSError(errno.EIO, "a supply rail cannot be read")
            total += values[0] * values[1] / 1e6 if len(values) == 2 else values[0] / 1e3
        return total


class Meter(threading.Thread):
    """Reads the supply rails 50 times a second until it is stopped: samples [(second, W)]."""

    def __init__(self, board, rails):
        super().__init__(daemon=True)
        self.board, self.rails, self.samples, self.error, self.stopped = board, rails, [], None, threading.Event()

    def run(self):
        try:
            while not self.stopped.wait(0.02):
                self.samples.append((time.monotonic(), self.board.watts(self.rails)))
        except OSError as error:
            self.error = error.strerror

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()

    def between(self, start, end):
        """[W] of a stretch of time."""
        return [watt for at, watt in self.samples if start <= at <= end]


# ---- trtexec

class Trtexec:
    """JetPack's trtexec. version: (major, minor, patch)."""

    def __init__(self, board, given, timeout):
        usual = board.path("/usr/src/tensorrt/bin/trtexec")
        self.path = given or (usual if os.access(usual, os.X_OK) else shutil.which("trtexec"))
        self.timeout = timeout
        if not self.path or not os.path.isfile(self.path):
            raise Stop("there is no trtexec on this Jetson", "sudo apt-get install nvidia-jetpack, or --trtexec PATH")
        banner = "\n".join(text for _, text in run([self.path, "--help"], 60)[1])
        self.version = version_of(banner) or packaged(board)
        if self.version is None:
            raise Stop(f"{self.path} does not say of which version it is", "--trtexec PATH of another")
        if self.version < OLDEST:
            raise Stop(f"TensorRT {dotted(self.version)} cannot read these files, {dotted(OLDEST)} can",
                       "install JetPack 4.6.1 or newer")

    def __call__(self, flags, cwd, seconds=0.0):
        """Run with version-right flags: lines, flags used, names of flags that it does not know; Stop if it fails."""
        dropped = []
        while True:
            status, lines = run([self.path, *flags], self.timeout + seconds, cwd)
            text = "\n".join(line for _, line in lines)
            unknown = [name for name in re.findall(r"Unknown option: (--\w+)", text) if name in OPTIONAL]
            unknown = [name for name in unknown if any(flag.split("=")[0] == name for flag in flags)]
            if status == 0:
                return lines, flags, dropped
            if not unknown:
                raise self.failure(text)
            dropped += unknown
            flags = [flag for flag in flags if flag.split("=")[0] not in unknown]
            say(f"trtexec {dotted(self.version)} does not know {' '.join(unknown)}: without")

    def failure(self, text):
        """The Stop for a trtexec that failed, by what it printed."""
        errors = [re.sub(r"^\[[^\]]*\] ", "", line) for line in text.split("\n") if "[E]" in line]
        why = (errors or text.strip().split("\n"))[0].replace("[E] ", "")[:200] or "no output"
        name = "TensorRT " + dotted(self.version)
        if "No space left" in text:
            return Stop("the disk is full: " + why, "df -h . ; rm -r engines")
        if "out of memory" in text.lower() or "OutOfMemory" in text:
            return Stop(f"{name} ran out of memory: {why}", "close other programs, or log out of the desktop")
        if "parse onnx" in text or "Parsing model failed" in text:
            return Stop(f"{name} cannot read the model: {why}", DEPLOY + " --jetpack VERSION", 1)
        if "find any implementation" in text:
            return Stop(f"{name} has no kernel for this GPU: {why}", "use the form fp16")
        return Stop(f"{name} failed: {why}", f"{self.path} --verbose --onnx=MODEL")

    def build_flags(self, form):
        """Options that decide what the engine is, without files."""
        precision = {"int8": ["--int8", "--fp16"], "fp16": ["--fp16"], "fp32": ["--noTF32"]}[form]
        flags = precision if self.version < (11, 0, 0) or form == "fp32" else []    # from 11 on the file decides
        flags += [f"--memPoolSize=workspace:{WORKSPACE}" if self.version >= (8, 4, 0) else f"--workspace={WORKSPACE}",
                  "--profilingVerbosity=detailed"]
        return flags + (["--builderOptimizationLevel=5"] if self.version >= (8, 6, 0) else [])

    def transfer_flags(self):
        """Copies of input and output belong to a run; until 10 they do unless refused."""
        return ["--includeDataTransfers"] if self.version >= (11, 0, 0) else []

    def timing_flags(self):
        """What 11 does by itself, for older ones: one launch a window, and no sleep while waiting."""
        return self.transfer_flags() if self.version >= (11, 0, 0) else ["--useCudaGraph", "--useSpinWait"]


def version_of(text):
    """(8, 2, 1) of `TensorRT v8201`, (10, 3, 0) of `v100300`, None of anything else."""
    found = re.search(r"TensorRT v(\d+)\.(\d+)\.(\d+)", text)
    if found:
        return tuple(int(part) for part in found.groups())
    found = re.search(r"TensorRT v(\d{4,6})\b", text)
    if not found:
        return None
    number = int(found.group(1))
    return (number // 1000, number // 100 % 10, number % 100) if number < 10000 else (
        number // 10000, number // 100 % 100, number % 100)


def packaged(board):
    """TensorRT's version after the installed library's file name."""
    names = board.glob("/usr/lib/aarch64-linux-gnu/libnvinfer.so.*.*.*")
    found = re.search(r"so\.(\d+)\.(\d+)\.(\d+)", " ".join(names))
    return tuple(int(part) for part in found.groups()) if found else None


def dotted(version):
    return ".".join(map(str, version))


# ---- the job and its engines

def read_job(folder):
    """job.json, with every file that it names checked; Stop when one is absent or another."""
    job = read_json(os.path.join(folder, "job.json"))
    if job is None or job.get("schema") != 1:
        raise Stop(f"there is no job.json of this version in {folder}", DEPLOY, 1)
    absent = [name for name in JOB if name not in job]
    if absent:
        raise Stop(f"job.json lacks {', '.join(absent)}", DEPLOY, 1)
    for name, expected in sorted(job["sha256"].items()):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise Stop(f"{name} is missing in {folder}", DEPLOY, 1)
        if digest(path) != expected:
            raise Stop(f"{name} is not the file that job.json names", DEPLOY, 1)
    return job


def engine(form, folder, job, facts, trt, free_mb):
    """The engine of a form, from the cache or built: the entry of `engines` in the result."""
    files = job["forms"].get(form, {})
    model = files.get("default")
    if trt.version >= (11, 0, 0):       # here the file alone says what runs in float16
        model = files.get("strongly_typed", None if form == "fp16" else model)
    if model is None:
        raise Stop(f"job.json has no {form} file for TensorRT {dotted(trt.version)}", DEPLOY + " --jetpack VERSION", 1)
    key = {"model": job["sha256"].get(model) or digest(os.path.join(folder, model)), "tensorrt": dotted(trt.version),
           "device": f"{facts['soc']} {facts['device']}", "power mode": facts["power_mode"],
           "flags": " ".join(trt.build_flags(form))}
    cache = os.path.join(folder, "engines")
    os.makedirs(cache, exist_ok=True)
    known = read_json(os.path.join(cache, form + ".json"))
    reason = stale(known, key, cache)
    if reason is None:
        return dict(known["engine"], reason=None)
    say(f"{form}: building the engine, {reason}")
    made = build(form, os.path.join(folder, model), cache, trt, free_mb)
    made.update(model=model, model_sha256=key["model"])
    write_json(os.path.join(cache, form + ".json"), {"key": key, "engine": made})
    return dict(made, reason=reason)


def stale(known, key, cache):
    """Why an engine cannot be taken from the cache, None when it can."""
    if known is None:
        return "there is none yet"
    for what in ("tensorrt", "device", "power mode", "model", "flags"):        # the cause before what follows from it
        old, value = known["key"].get(what), key[what]
        if old != value:
            short = "changed" if what == "model" else f"was {old}, is {value}"
            return f"{what} {short}"
    path = os.path.join(cache, os.path.basename(known["engine"]["file"]))
    if not os.path.isfile(path) or digest(path) != known["engine"]["sha256"]:
        return "the engine file is damaged or gone"
    return None


def build(form, model, cache, trt, free_mb):
    """Build an engine beside the old one and put it in its place when it is whole."""
    free = shutil.disk_usage(cache).free / 1e6
    if free < free_mb:
        raise Stop(f"the disk is full: {free:.0f} MB free, {free_mb:g} MB needed", "df -h . ; rm -r engines")
    part, layers = os.path.join(cache, form + ".part"), os.path.join(cache, form + ".layers.json")
    for path in (part, layers):
        if os.path.exists(path):
            os.remove(path)
    start = time.monotonic()
    # one window is run, since until 8.5 only then is the layer dump written
    timings = os.path.join(cache, f"timing-{dotted(trt.version)}.cache")
    _, used, dropped = trt([f"--onnx={model}", f"--saveEngine={part}", *trt.build_flags(form),
                            f"--exportLayerInfo={layers}", f"--timingCacheFile={timings}", "--warmUp=0", "--duration=0",
                            "--iterations=1"], cache)
    if not os.path.isfile(part) or not os.path.getsize(part):
        raise Stop(f"trtexec built no engine for {form} though it said it did", "df -h . ; rm -r engines")
    with open(part, "rb+") as stream:
        os.fsync(stream.fileno())
    path = os.path.join(cache, form + ".engine")
    os.replace(part, path)
    return {"file": "engines/" + os.path.basename(path), "sha256": digest(path), "argv": [trt.path, *used],
            "dropped": dropped, "seconds": round(time.monotonic() - start, 1)}


# ---- which layers ran int8

def layers_int8(path):
    """{ran, of, hidden, others} of an engine's layer dump, None when there is none or it holds names only."""
    layers = (read_json(path) or {}).get("Layers", [])
    shown = [layer for layer in layers if isinstance(layer, dict)]
    if not shown:
        return None
    weighted = [layer for layer in shown if is_product(layer)]
    others = [layer.get("Name", "?") for layer in weighted if not is_int8(layer)]
    hidden = sum(layer not in weighted and "ForeignNode" in layer.get("Name", "") for layer in shown)
    return {"ran": len(weighted) - len(others), "of": len(weighted), "hidden": hidden, "others": others}


def is_product(layer):
    """A convolution or matrix product, after its type, its parameters or its kernel; no copy and no constant."""
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
    if re.search(r"Reformat|Constant|NoOp|Shuffle|Scale|PointWise|Reduce|SoftMax", kind, re.I):
        return False
    return bool(re.search(r"conv|gemm|matrixmultiply|fullyconnected|matmul", kind, re.I)
                or re.search(r"gemm|fprop|conv", layer.get("TacticName", ""), re.I))


def is_int8(layer):
    """After the kernel's name where it tells, else weights and first input."""
    tactic = layer.get("TacticName", "").lower()
    if re.search(r"i8f?\d*_?i8i32|i8i8|imma|s8s8|_int8", tactic):
        return True
    if re.search(r"f16f16|f32f32|tf32|bf16|sgemm|hgemm|h1688|h16816|h884|fp16|fp32", tactic):
        return False
    kinds = [tensor.get("Format/Datatype") or tensor.get("DataType") or tensor.get("Datatype") or ""
             for tensor in layer.get("Inputs", [])]
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        return weights["Type"].lower() == "int8"
    return bool(kinds) and "int8" in kinds[0].lower()


# ---- golden outputs

def golden(folder, job):
    """Windows as lists of float32 arrays, one an input, and the reference's logits as lists of codes."""
    windows, sizes = job["windows"], [product(one["shape"]) for one in job["inputs"]]
    columns = []
    for one, size in zip(job["inputs"], sizes):
        codes = read_codes(folder, f"golden.{one['name']}.bin", windows * size)
        columns.append([array.array("f", [code * one["scale"] for code in codes[w * size:(w + 1) * size]])
                        for w in range(windows)])
    classes = product(job["output"]["shape"])
    codes = read_codes(folder, "golden.logits.bin", windows * classes)
    return list(zip(*columns)), [list(codes[w * classes:(w + 1) * classes]) for w in range(windows)]


def product(shape):
    size = 1
    for length in shape:
        size *= length
    return size


def read_codes(folder, name, count):
    """int8 of a golden file."""
    codes = array.array("b")
    try:
        with open(os.path.join(folder, name), "rb") as stream:
            codes.frombytes(stream.read())
    except OSError:
        raise Stop(f"{name} is missing in {folder}", DEPLOY, 1) from None
    if len(codes) != count:
        raise Stop(f"{name} holds {len(codes)} values, job.json means {count}", DEPLOY, 1)
    return codes


def outputs_by_worker(file, job, windows):
    """Real logits of each window from this very program as a server; Stop when it cannot serve."""
    child = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--serve", file], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    timer = threading.Timer(120, child.kill)
    timer.start()
    try:
        order = [one["name"] for one in json.loads(receive(child.stdout, b"H").decode())["inputs"]]
        place = [[one["name"] for one in job["inputs"]].index(name) for name in order]
        results = []
        for window in windows:
            send(child.stdin, b"I", b"".join(window[k].tobytes() for k in place))
            results.append(list(array.array("f", receive(child.stdout, b"O"))))
        return results
    except (OSError, ValueError):
        raise Stop("the worker ended") from None
    finally:
        timer.cancel()
        child.kill()
        child.wait()


def outputs_by_trtexec(file, job, windows, trt):
    """Real logits of each window, one run of trtexec each."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        names = [f"input{k}.bin" for k in range(len(job["inputs"]))]     # a name may hold neither , nor :
        loads = ",".join(f"{one['name']}:{name}" for one, name in zip(job["inputs"], names))
        for window in windows:
            for name, values in zip(names, window):
                with open(os.path.join(scratch, name), "wb") as stream:
                    values.tofile(stream)
            trt([f"--loadEngine={file}", f"--loadInputs={loads}", "--exportOutput=output.json", "--warmUp=0",
                 "--duration=0", "--iterations=1", *trt.transfer_flags()], scratch)
            found = [one for one in read_tensors(os.path.join(scratch, "output.json"))
                     if one.get("name") == job["output"]["name"]]
            if not found:
                raise Stop(f"the engine gives no output {job['output']['name']}", DEPLOY, 1)
            results.append([float(value) for value in found[0]["values"]])
    return results


def read_tensors(path):
    """The list that --exportOutput writes; C++ writes nan and inf where JSON has NaN and Infinity."""
    try:
        with open(path) as stream:
            text = stream.read()
        return json.loads(re.sub(r"\binf\b", "Infinity", re.sub(r"-?\bnan\b", "NaN", text)))
    except (OSError, ValueError):
        raise Stop("trtexec wrote no outputs that can be read", "df -h . ; then again") from None


def label(decision, codes):
    """What one window alone says: class index, or which classes are present."""
    if decision["rule"] == "argmax":
        scores = [256 * code + offset for code, offset in zip(codes, decision["offsets"])]
        return scores.index(max(scores))
    return [256 * code >= offset for code, offset in zip(codes, decision["offsets"])]


def parity(form, file, folder, job, trt):
    """The entry of `parity` in the result."""
    windows, expected = golden(folder, job)
    try:
        got, by = outputs_by_worker(file, job, windows), "worker"
    except Stop as stop:
        say(f"{form}: {stop.what.split(';')[0]}: {len(windows)} runs of trtexec check the outputs")
        got, by = outputs_by_trtexec(file, job, windows, trt), "trtexec"
    count, same, gaps = len(windows), 0, []
    for reals, codes in zip(got, expected):
        if len(reals) != len(codes) or not all(math.isfinite(value) for value in reals):
            return {"windows": count, "labels": 0.0, "p99": None, "worst": None, "holds": False, "by": by}
        found = [max(-128, min(127, math.floor(value / job["output"]["scale"] + 0.5))) for value in reals]
        same += label(job["decision"], found) == label(job["decision"], codes)
        gaps += [abs(a - b) for a, b in zip(found, codes)]
    limits, gaps = job["limits"], sorted(gaps)
    # of few windows two standard deviations more may differ
    allowed = (1 - limits["labels"]) * count
    allowed += 2 * (allowed * limits["labels"]) ** 0.5 if count < 2000 else 0
    p99, worst = percentile(gaps, 0.99), gaps[-1]
    return {"windows": count, "labels": same / count, "p99": p99, "worst": worst, "by": by,
            "holds": count - same <= allowed and p99 <= limits["p99"] and worst <= limits["worst"]}


# ---- timing

def percentile(ordered, share):
    """Linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bootstrap_interval(ordered, share):
    """95 % interval of a percentile: what endless resampling would give, in closed form.

    The k-th of n resampled values is at most the j-th measured one with the probability that a binomial (n, j / n)
    reaches k.
    """
    n = len(ordered)
    beyond = n - math.ceil(share * n)

    def reaches(j):
        q = (n - j) / n
        if q <= 0:
            return 1.0
        return sum(math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(q)
                            + (n - i) * math.log1p(-q)) for i in range(beyond + 1)) if q < 1 else 0.0
    limits = []
    for level in (0.025, 0.975):
        low, high = 0, n
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) >= level else (middle + 1, high)
        limits.append(ordered[max(low - 1, 0)])
    return limits


def statistics_of(values):
    """Percentiles of times in ms."""
    ordered = sorted(values)
    n = len(ordered)
    return {"p50_ms": percentile(ordered, 0.5), "p90_ms": percentile(ordered, 0.9), "p99_ms": percentile(ordered, 0.99),
            "p99_interval_ms": bootstrap_interval(ordered, 0.99) if n >= 100 else None,
            "p999_ms": percentile(ordered, 0.999) if n >= 100000 else None, "samples": n}


def read_times(path, warm_up):
    """The list that --exportTimes writes, without the warm-up that trtexec 8 leaves in."""
    try:
        with open(path) as stream:
            traces = [t for t in json.load(stream) if t["startComputeMs"] >= warm_up * 1000]
    except (OSError, ValueError, KeyError, TypeError):
        raise Stop("trtexec wrote no times that can be read", "df -h . ; then again") from None
    if not traces:
        raise Stop("no window was timed after the warm-up", "raise --seconds")
    return traces


def timed(file, seconds, warm_up, trt, meter):
    """The entry of `measured` in the result, and (W, seconds) of the load when there is a meter."""
    with tempfile.TemporaryDirectory() as scratch:
        lines, used, dropped = trt([f"--loadEngine={file}", f"--warmUp={warm_up * 1000:.0f}", f"--duration={seconds:g}",
                                    "--iterations=10", "--avgRuns=1000", "--exportTimes=times.json",
                                    *trt.timing_flags()], scratch, seconds)
        traces = read_times(os.path.join(scratch, "times.json"), warm_up)
    span = (traces[-1]["endComputeMs"] - traces[0]["startComputeMs"]) / 1000
    warned = [re.sub(r"^\[.*?\] \[W\] \*? ?", "", text) for _, text in lines
              if "[W]" in text and re.search("may be bound|unstable|graph capture", text)]
    entry = dict(statistics_of([t["latencyMs"] for t in traces]),
                 compute=statistics_of([t["computeMs"] for t in traces]),
                 enqueue=enqueue_of(lines), resolution_ms=2.0 ** (math.frexp(traces[-1]["endComputeMs"])[1] - 24),
                 rate_hz=(len(traces) - 1) / span if span > 0 else None, warnings=warned, argv=[trt.path, *used],
                 dropped=dropped)
    start = [at for at, text in lines if "Starting inference" in text]
    end = [at for at, text in lines if "Warmup completed" in text]
    load = None
    if meter and start and end and not meter.error:
        load = meter.between(start[0] + warm_up, end[0]), max(end[0] - start[0] - warm_up, 0.0)
    return entry, load


def enqueue_of(lines):
    """From trtexec's summary: the stamps that it exports have too few digits for this difference."""
    text = "".join(line for _, line in lines if "Enqueue Time:" in line)
    found = {name: re.search(pattern + r" = ([\d.e+-]+) ms", text) for name, pattern in (
        ("p50_ms", "median"), ("mean_ms", "mean"), ("p99_ms", r"percentile\(99%\)"))}
    return {name: float(match.group(1)) for name, match in found.items() if match} or None


def energy_of(load, idle, rate, period):
    """Energy of an inference in mJ, and of a day in J when the model runs every `period` seconds."""
    watts, seconds = load
    mean, base = sum(watts) / len(watts), sum(idle) / len(idle)
    net = (mean - base) / rate * 1000
    return {"load_w": mean, "samples": len(watts), "seconds": seconds, "net_mj": net, "gross_mj": mean / rate * 1000,
            "day_j": 86400 * (base + net / 1000 / period) if period else None}


# ---- the processor of the same board

def cpu_row(folder, seconds):
    """Runs under a Python that has onnxruntime: rows of the files without TensorRT."""
    import numpy
    import onnxruntime
    job = read_job(folder)
    rows = []
    files = {name: job["forms"].get(form, {}).get("default") for name, form in (("int8", "int8"), ("float", "fp32"))}
    for form, file in sorted((form, file) for form, file in files.items() if file):
        for threads in sorted({1, os.cpu_count() or 1}):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(os.path.join(folder, file), options,
                                                   providers=["CPUExecutionProvider"])
            window = {one["name"]: numpy.zeros(one["shape"], numpy.float32) for one in job["inputs"]}
            times, until = [], time.perf_counter() + 0.2 + seconds
            while time.perf_counter() < until or len(times) < 20:
                start = time.perf_counter()
                session.run(None, window)
                times.append((time.perf_counter() - start) * 1000)
            rows.append(dict(statistics_of(times[10:]), form=form, threads=threads))
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "rows": rows}))


def cpu(folder, command, seconds):
    """The entry of `cpu` in the result."""
    argv = [*shlex.split(command), os.path.abspath(__file__), "--folder", folder, "--cpu-row", f"--seconds={seconds}"]
    try:
        status, lines = run(argv, 120 + 8 * seconds)
        answer = [text for _, text in lines if text.startswith("{")]
        if status == 0 and answer:
            return json.loads(answer[-1])
        why = lines[-1][1] if lines else "it printed nothing"
    except Stop as stop:
        why = stop.what
    return {"missing": f"{command} does not run onnxruntime ({why}); --cpu-python COMMAND names one that does"}


# ---- live inference

def send(stream, kind, payload):
    """Write one frame."""
    stream.write(FRAME.pack(kind, len(payload)))
    stream.write(payload)
    stream.flush()


def receive(stream, wanted):
    """Payload of the next frame; Stop when it is another kind, OSError when the stream ends."""
    kind, length = FRAME.unpack(exactly(stream, FRAME.size))
    payload = exactly(stream, length)
    if kind != wanted:
        raise Stop(payload.decode("utf-8", "replace") if kind == b"E" else f"a frame of kind {kind!r}")
    return payload


def exactly(stream, count):
    """So many bytes; OSError when the stream ends before."""
    data = stream.read(count)
    if len(data) != count:
        raise OSError(errno.EPIPE, "the stream ended")
    return data


class Cuda:
    """The few calls of the CUDA runtime that we need."""

    def __init__(self, board):
        given = os.environ.get("LEADEDGE_CUDART")
        names = [given] if given else [ctypes.util.find_library("cudart")] + [
            board.path(name) for name in board.glob("/usr/local/cuda/lib64/libcudart.so*")]
        for name in filter(None, names):
            try:
                self.cudart = ctypes.CDLL(name)
                break
            except OSError:
                pass
        else:
            raise Stop("the CUDA runtime libcudart is not here", "sudo apt-get install nvidia-jetpack")
        self.cudart.cudaGetErrorString.restype = ctypes.c_char_p

    def __call__(self, name, *arguments):
        """One call; Stop when it does not return 0."""
        status = getattr(self.cudart, name)(*arguments)
        if status:
            raise Stop(f"{name} failed: {self.cudart.cudaGetErrorString(status).decode()}",
                       "is another program using the GPU? otherwise reboot")

    def pointer(self, name, size):
        """Memory from cudaMalloc or cudaMallocHost."""
        place = ctypes.c_void_p()
        self(name, ctypes.byref(place), ctypes.c_size_t(size))
        return place


class Tensor:
    """An input or output: its memory on both sides, made once."""

    def __init__(self, cuda, name, shape):
        self.name, self.shape, self.size = name, [int(n) for n in shape], 4 * product(shape)
        self.device = cuda.pointer("cudaMalloc", self.size)
        self.host = cuda.pointer("cudaMallocHost", self.size)
        self.bytes = (ctypes.c_char * self.size).from_address(self.host.value)


class Live:
    """An engine ready to run, by either generation of TensorRT's Python interface."""

    def __init__(self, path, board):
        try:
            import tensorrt
        except ImportError as error:
            raise Stop(f"this Python has no module tensorrt ({error})",
                       "start it with /usr/bin/python3, or: sudo apt-get install python3-libnvinfer") from error
        self.trt, self.cuda = tensorrt, Cuda(board)
        try:
            with open(path, "rb") as stream:
                plan = stream.read()
        except OSError as error:
            raise Stop(f"{path} cannot be read: {error.strerror}", f"python3 {sys.argv[0]} --build", 1) from error
        self.logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self.runtime = tensorrt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise Stop(f"TensorRT {tensorrt.__version__} cannot load {path}: damaged, or of another version or GPU",
                       f"python3 {sys.argv[0]} --build")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise Stop("TensorRT has no memory for this engine", "close other programs")
        self.named = hasattr(self.engine, "num_io_tensors")
        self.stream = ctypes.c_void_p()
        self.cuda("cudaStreamCreate", ctypes.byref(self.stream))
        self.inputs, self.outputs, self.bindings = [], [], []
        for index in range(self.engine.num_io_tensors if self.named else self.engine.num_bindings):
            self.bind(index)

    def bind(self, index):
        """Memory for one tensor of the engine."""
        if self.named:
            name = self.engine.get_tensor_name(index)
            is_input = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            shape, kind = self.engine.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
        else:
            name = self.engine.get_binding_name(index)
            is_input = self.engine.binding_is_input(index)
            shape, kind = self.engine.get_binding_shape(index), self.engine.get_binding_dtype(index)
        if kind != self.trt.float32 or min(shape) < 1:
            raise Stop(f"{name} is {kind} {list(shape)}, not float32 of a fixed shape", DEPLOY, 1)
        tensor = Tensor(self.cuda, name, shape)
        (self.inputs if is_input else self.outputs).append(tensor)
        self.bindings.append(tensor.device.value)
        if self.named:
            self.context.set_tensor_address(name, tensor.device.value)

    def infer(self):
        """What lies in the inputs' memory goes through the engine into the outputs' memory."""
        for one in self.inputs:
            self.cuda("cudaMemcpyAsync", one.device, one.host, ctypes.c_size_t(one.size), 1, self.stream)
        done = (self.context.execute_async_v3(stream_handle=self.stream.value) if self.named else
                self.context.execute_async_v2(bindings=self.bindings, stream_handle=self.stream.value))
        if not done:
            raise Stop("TensorRT could not start the inference", "look at the lines above")
        for one in self.outputs:
            self.cuda("cudaMemcpyAsync", one.host, one.device, ctypes.c_size_t(one.size), 2, self.stream)
        self.cuda("cudaStreamSynchronize", self.stream)


def current(form, folder):
    """The engine file of a form; Stop when there is none of the model that job.json names."""
    job, known = read_json(os.path.join(folder, "job.json")), read_json(os.path.join(folder, "engines", form + ".json"))
    fix = f"python3 {sys.argv[0]} --build"
    if job is None or known is None:
        raise Stop(f"there is no {form} engine in {folder} yet", fix)
    if job["sha256"].get(known["engine"]["model"]) != known["engine"]["model_sha256"]:
        raise Stop(f"the {form} engine in {folder} is of another model", fix)
    return os.path.join(folder, "engines", form + ".engine")


def serve(find, board):
    """Answer frames until the input ends. What TensorRT prints goes to stderr, the frames alone to stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        live = Live(find(), board)
        about = {"tensorrt": live.trt.__version__,
                 "inputs": [{"name": one.name, "shape": one.shape} for one in live.inputs],
                 "outputs": [{"name": one.name, "shape": one.shape} for one in live.outputs]}
        send(answer, b"H", json.dumps(about).encode())
        size = sum(one.size for one in live.inputs)
        while True:
            head = sys.stdin.buffer.read(FRAME.size)
            if len(head) < FRAME.size:
                return
            kind, length = FRAME.unpack(head)
            if kind != b"I" or length != size:
                if not skip(length):
                    return
                send(answer, b"E", f"a frame {kind} of {length} bytes came, I of {size} is expected".encode())
                continue
            if not all(sys.stdin.buffer.readinto(one.bytes) == one.size for one in live.inputs):
                return
            live.infer()
            answer.write(FRAME.pack(b"O", sum(one.size for one in live.outputs)))
            for one in live.outputs:
                answer.write(one.bytes)
            answer.flush()
    except Stop as stop:
        send(answer, b"E", (f"{stop.what}; {stop.fix}").encode())
        raise


def skip(length):
    """Read past a payload; False when the input ends before."""
    while length:
        part = sys.stdin.buffer.read(min(length, 1 << 16))
        if not part:
            return False
        length -= len(part)
    return True


# ---- all of it

def lock_clocks(stack):
    """jetson_clocks, given back at the end. Only ever on the user's own word."""
    state = os.path.join(tempfile.mkdtemp(), "clocks")
    for argv in (["--store", state], []):
        if run(["sudo", "-n", "jetson_clocks", *argv], 60)[0]:
            raise Stop("sudo asks for a password", "sudo jetson_clocks, then again without --lock-clocks")
    stack.append(lambda: run(["sudo", "-n", "jetson_clocks", "--restore", state], 60))


def idle_power(board, seconds):
    """(rails, [W] at rest, None) or ({}, [], why not)."""
    rails = board.rails()
    if not rails:
        return {}, [], "this board shows no INA3221 supply rails in sysfs"
    say(f"power at rest for {seconds:g} s")
    with Meter(board, rails) as meter:
        time.sleep(seconds)
    if meter.error or not meter.samples:
        return {}, [], meter.error or "the supply rails gave no sample"
    return rails, [watt for _, watt in meter.samples], None


def one_form(form, args, job, facts, trt, board, rails):
    """(engine, parity, measured, load) of a form."""
    made = engine(form, args.folder, job, facts, trt, args.free_mb)
    file = os.path.join(args.folder, made["file"])
    checked = parity(form, file, args.folder, job, trt)
    say(f"{form}: golden outputs {'hold' if checked['holds'] else 'DIFFER'}, "
        f"{checked['labels']:.2%} of {checked['windows']} labels equal")
    if rails:
        with Meter(board, rails) as meter:
            entry, load = timed(file, args.seconds, args.warm_up, trt, meter)
    else:
        entry, load = timed(file, args.seconds, args.warm_up, trt, None)
    say(f"{form}: p50 {entry['p50_ms']:.4f} ms, p90 {entry['p90_ms']:.4f} ms, p99 {entry['p99_ms']:.4f} ms "
        f"(n = {entry['samples']})")
    return made, checked, entry, load


def winner(measured, checks):
    """The fastest form whose golden outputs hold."""
    p50 = {form: entry["p50_ms"] for form, entry in measured.items() if "p50_ms" in entry}
    fit = [form for form in p50 if checks[form]["holds"]]
    if not fit:
        return None
    best = min(fit, key=p50.get)
    return {"form": best, "over": {form: p50[form] / p50[best] for form in p50 if form != best},
            "fp16_p50_ms": p50.get("fp16")}


def wanted(facts, job, result):
    """Forms that this GPU has and the job too; the others are entered as failed."""
    for form in FORMS:
        if form == "int8" and facts["sm"] in NO_INT8:
            result["measured"][form] = {"failed": f"the GPU of this board (sm {facts['sm']}) has no int8"}
        elif not job["forms"].get(form):
            result["measured"][form] = {"failed": f"no {form} file: it was made for JetPack {job.get('jetpack')}"}
        if form in result["measured"]:
            say(f"{form}: {result['measured'][form]['failed']}")
    left = [form for form in FORMS if form not in result["measured"]]
    if not left:
        raise Stop("job.json names no file that this board can run", DEPLOY, 1)
    return left


def measure(args, board, stack):
    """Everything; returns the result."""
    job, facts = read_job(args.folder), board.facts()
    trt = Trtexec(board, args.trtexec, args.timeout)
    facts.update(tensorrt=dotted(trt.version), trtexec=trt.path)
    if args.lock_clocks:
        lock_clocks(stack)
    before = board.state()
    result = {"schema": 1, "name": job["name"], "identity": job["identity"], "argv": sys.argv, "warnings": [],
              "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "measured": {}, "engines": {}, "parity": {},
              "sha256": job["sha256"]}
    if before["clocks"]["locked"] is not True:
        result["warnings"].append("clocks not locked: p99 not comparable; sudo jetson_clocks, or --lock-clocks")
    rails, idle, why_not = idle_power(board, args.idle_seconds)
    forms, stops, loads = wanted(facts, job, result), [], {}
    for form in forms:
        try:
            made, result["parity"][form], result["measured"][form], loads[form] = one_form(
                form, args, job, facts, trt, board, rails)
            result["engines"][form] = made
        except Stop as stop:
            stops.append(stop)
            result["measured"][form] = {"failed": stop.what}
            say(f"{form}: {stop.what}")
    if len(stops) == len(forms):
        raise stops[0]
    if rails and len(idle) < 20 * args.idle_seconds:
        result["warnings"].append(f"power sampled only {len(idle) / args.idle_seconds:.0f} times a second")
    result["layers_int8"] = layers_int8(os.path.join(args.folder, "engines", "int8.layers.json")) if (
        "int8" in result["engines"]) else None
    result["won"] = winner(result["measured"], result["parity"])
    result["cpu"] = cpu(args.folder, args.cpu_python, min(args.seconds, 5))
    result.update(energy_entry(job, rails, idle, args.idle_seconds, loads, result["measured"], why_not))
    short = min([entry["seconds"] for entry in (result["energy"] or {"forms": {}})["forms"].values()] or [30])
    if short < 30:
        result["warnings"].append(f"power under load was sampled for {short:.0f} s only, 30 are usual: --seconds 30")
    after = board.state()
    result["environment"] = dict(facts, before=before, after=after)
    if before["throttle_events"] != after["throttle_events"]:
        result["warnings"].append("the board throttled while it was measured: better supply or cooling")
    for form, entry in sorted(result["measured"].items()):
        result["warnings"] += [f"{form}: {text}" for text in entry.get("warnings", [])]
    return result


def energy_entry(job, rails, idle, seconds, loads, measured, why_not):
    """energy, and energy_missing, of the result."""
    forms = {form: energy_of(load, idle, measured[form]["rate_hz"], job.get("period_s"))
             for form, load in loads.items() if load and load[0] and measured[form]["rate_hz"]}
    if not forms:
        return {"energy": None, "energy_missing": why_not or "the load was too short to be sampled, raise --seconds"}
    return {"energy_missing": None, "energy": {
        "rail": " + ".join(sorted(rails)), "idle_w": sum(idle) / len(idle), "idle_samples": len(idle),
        "hz": len(idle) / seconds, "forms": forms, "period_s": job.get("period_s"),
        "day": "idle all day and an inference every period_s" if job.get("period_s") else
               "not computed: job.json has no period_s",
        "excludes": "the carrier board's other loads and the losses of the supply before "
                    + ("this rail" if len(rails) == 1 else "these rails; a sum, and one of them may feed another")}}


def build_all(args, board):
    """Engines only."""
    job, facts = read_job(args.folder), board.facts()
    trt = Trtexec(board, args.trtexec, args.timeout)
    result = {"schema": 1, "name": job["name"], "identity": job["identity"], "measured": {}, "engines": {}}
    stops = []
    for form in wanted(facts, job, result):
        try:
            result["engines"][form] = engine(form, args.folder, job, facts, trt, args.free_mb)
        except Stop as stop:
            stops.append(stop)
            result["measured"][form] = {"failed": stop.what}
            say(f"{form}: {stop.what}")
    if not result["engines"]:
        raise stops[0]
    return result


def alone(folder, stack):
    """Stop when the same is under way here: two measurements would disturb each other."""
    os.makedirs(os.path.join(folder, "engines"), exist_ok=True)
    lock = open(os.path.join(folder, "engines", "lock"), "w")
    stack.append(lock.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Stop("another run of this program is at work here", "wait for it, or: fuser engines/lock") from None


def parser():
    """The command line."""
    p = argparse.ArgumentParser(description="Measure or serve a model on this Jetson.")
    p.error = lambda message: (_ for _ in ()).throw(Stop(message, f"python3 {sys.argv[0]} --help", 1))
    root = os.environ.get("LEADEDGE_JETSON_ROOT", "/")
    p.add_argument("--folder", default=os.path.dirname(os.path.abspath(__file__)), help="where job.json is")
    p.add_argument("--build", action="store_true", help="build the engines only")
    p.add_argument("--serve", metavar="ENGINE", help="int8, fp16, fp32 or an engine file: live inference")
    p.add_argument("--seconds", type=float, default=20.0, help="of timing for each form (20)")
    p.add_argument("--idle-seconds", type=float, default=10.0, help="of measuring power at rest (10)")
    p.add_argument("--warm-up", type=float, default=1.0, help="seconds before each timing (1)")
    p.add_argument("--trtexec", metavar="PATH", help="another trtexec than JetPack's")
    p.add_argument("--timeout", type=float, default=1800.0, help="seconds for building one engine (1800)")
    p.add_argument("--free-mb", type=float, default=200.0, help="free disk that building an engine asks for (200)")
    p.add_argument("--cpu-python", default=sys.executable, metavar="COMMAND", help="a Python that has onnxruntime")
    p.add_argument("--lock-clocks", action="store_true", help="sudo jetson_clocks while measuring")
    p.add_argument("--cpu-row", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--root", default=root, help=argparse.SUPPRESS)
    return p


def act(args, stack):
    """Do what the command line asks; the result to print, or None."""
    board = Board(args.root)
    if min(args.seconds, args.idle_seconds, args.timeout) <= 0 or args.warm_up < 0:
        raise Stop("--seconds, --idle-seconds and --timeout must be above 0", f"python3 {sys.argv[0]} --help", 1)
    args.folder = os.path.abspath(args.folder)
    if args.cpu_row:
        return cpu_row(args.folder, args.seconds)
    if args.serve in FORMS:
        return serve(lambda: current(args.serve, args.folder), board)
    if args.serve:
        return serve(lambda: args.serve, board)
    board.check()
    alone(args.folder, stack)
    return build_all(args, board) if args.build else measure(args, board, stack)


def main():
    """Run; the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(2))
    stack = []
    try:
        result = act(parser().parse_args(), stack)
        if result is not None:
            print(json.dumps(result))
        return 0
    except Stop as stop:
        say(stop.what + ("\n  fix: " + stop.fix if stop.fix else ""))
        return stop.code
    except BrokenPipeError:
        return 2                # whoever listened has gone, and so has the line that it came by
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        say("the disk is full\n  fix: df -h . ; rm -r engines" if full else f"{error}\n  fix: look there")
        return 2
    finally:
        for undo in stack:
            undo()


if __name__ == "__main__":
    sys.exit(main())
