# SPDX-License-Identifier: Apache-2.0
"""The whole firmware on this computer: the application with its HAL of simulated time, driven over EdgeLink."""

import ctypes
import dataclasses
import functools
from pathlib import Path

import numpy as np

from compress import reference
from targets import c_model, firmware_image, twin
from targets.device import Device
from targets.firmware_image import Slot, Source
from targets.pack import CORES
from tests import graphs as make
from train import frontend
from train import manifest as manifests

HERE = Path(__file__).parent
FLAGS = ("-std=c99", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion",
         "-Wno-sign-conversion", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all")
CUT, STUCK, UP = 1, 2, 0
FS, HOP = 250, 40


def manifest_of(graph, hop: int = HOP, rule: str = "argmax"):
    """A manifest of a streaming model with a real front end."""
    made = make.manifest_of(graph, "0" * 64)
    decision = dataclasses.replace(made.decision, rule=rule, vote=1)
    return dataclasses.replace(made, streaming=True, frontend=frontend.design(FS), decision=decision,
                               trigger=manifests.Trigger("hop", hop=hop))


@functools.cache
def models() -> dict:
    """Two models of one image: prefix -> (graph, manifest). They see one lead and two, at other hops."""
    one, two = make.streaming(seed=3), make.streaming(seed=4, leads=2, window="block", size=4)
    return {"model": (one, manifest_of(one)), "other": (two, manifest_of(two, 80, "threshold"))}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a board is built: its sensor, its rate, how many of the models it holds, channels of its samples."""

    sensor: bool = False
    fs: int = FS
    count: int = 1
    channels: int = 1
    leads: tuple[int, ...] = ()

    @property
    def source(self) -> Source:
        return Source(self.fs, 1, self.channels, self.sensor)


def slots(kind: Kind) -> list[Slot]:
    """The models of a board."""
    return [Slot(name, models()[name][1], kind.leads if name == "model" else (),
                 "sealed_other" if name == "other" else "sealed") for name in list(models())[:kind.count]]


def build(kind: Kind, folder: Path, flags=FLAGS) -> Path:
    """Compile a board into a library."""
    sources = {name: c_model.generate(*pair, CORES["host"], prefix=name, fs_in=kind.fs)
               for name, pair in models().items()}
    kernels = {k for s in sources.values() for k in s.kernels}
    image = firmware_image.image_c("host", 1000, slots(kind), kind.source)
    texts = {"image.c": image.replace('#include "image.h"\n', '#include "image.h"\n#include "sealed.h"\n'),
             "sealed.h": '#include "ecg.h"\nextern ecg_model sealed, sealed_other;\n',
             "kernels.c": c_model.kernel_table(kernels)}
    for name, source in sources.items():
        texts |= {f"{name}.c": source.code, f"{name}.h": source.header}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    objects = twin.Objects(folder.parent / "objects", flags)        # shared by all kinds of boards
    engine = [objects(path) for path in (*(twin.C / name for name in twin.ENGINE), *twin.sources(kernels))]
    files = [*firmware_image.APPLICATION, firmware_image.FIRMWARE / "hal_host.c", HERE / "board.c",
             *(folder / name for name in texts if name.endswith(".c")), *engine]
    library = folder / "board.so"
    twin.cc((*flags, *firmware_image.defines(slots(kind), kind.source), f"-I{firmware_image.FIRMWARE}", f"-I{folder}"),
            *files, "-o", library)
    return library


class Frame(ctypes.Structure):
    """hal_frame of a board with `channels`."""

    @classmethod
    @functools.cache
    def of(cls, channels: int):
        return type("Frame", (ctypes.Structure,), {"_fields_": (("uv", ctypes.c_int32 * channels),
                                                                ("lead_off", ctypes.c_uint8))})


class Board:
    """A board in this computer's memory, and the line to it. Its time passes only while someone waits for it."""

    def __init__(self, library: Path, kind: Kind):
        self.kind, self.resets = kind, 0
        self._library = ctypes.CDLL(str(library))
        self._library.host_clock.restype = ctypes.c_uint64
        self._library.host_run.argtypes = (ctypes.c_uint64,)
        self._buffer = ctypes.create_string_buffer(1 << 16)
        self._begun = self._library.host_clock()
        self.boot()

    def boot(self, damage: int = -1) -> None:
        """Power on, with this byte of the first model's head damaged."""
        self._library.board_seal(damage)
        self._library.host_line(UP)
        self._library.host_step(0)
        self._library.host_wave(None, 0, 1)
        self._library.host_boot()
        self.taken()

    def taken(self) -> bytes:
        """What the board has sent since."""
        count = self._library.host_take(self._buffer)
        return self._buffer.raw[:count]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.resets += self._library.host_run(max(int(seconds * 1e6), 1))

    def line(self, state: int) -> None:
        """Cut, stuck or up."""
        self._library.host_line(state)

    def slow(self, us: int) -> None:
        """So many microseconds pass at each look at the clock."""
        self._library.host_step(us)

    def sense(self, uv: np.ndarray, off: np.ndarray | None = None, fs: float | None = None) -> None:
        """The sensor sees int (time, channel) from now on."""
        assert len(uv) <= 1 << 14, "more than hal_host.c holds"
        frame = Frame.of(self.kind.channels)
        frames = (frame * len(uv))()
        for i, row in enumerate(uv):
            frames[i].uv[:] = [int(v) for v in row]
            frames[i].lead_off = 0 if off is None else int(off[i])
        self._library.host_wave(frames, len(uv), round(1e6 / (fs or self.kind.fs)))

    # what a Line is
    def write(self, data: bytes) -> None:
        self._library.host_feed(data, len(data))

    def read(self, seconds: float) -> bytes:
        until = self.clock() + seconds
        while True:
            self.run(min(0.01, max(until - self.clock(), 0)))
            data = self.taken()
            if data or self.clock() >= until:
                return data

    def clock(self) -> float:
        return self._library.host_clock() / 1e6

    def device(self) -> Device:
        """A host at the other end of the line."""
        return Device(self)


def ecg(seconds: float, channels: int = 1, fs: float = FS, seed: int = 5) -> np.ndarray:
    """int32 microvolts (time, channel): pulses on a wandering baseline, noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * fs)) / fs
    away = (t[:, None] + rng.uniform(0, 0.02, channels)) % 0.8 - 0.4
    x = 1100 * np.exp(-(away / 0.015) ** 2) + 300 * np.sin(2 * np.pi * 0.3 * t)[:, None]
    return np.rint(x + rng.normal(0, 40, (len(t), channels))).astype(np.int32)


def expected(name: str, uv: np.ndarray, fs: float = FS) -> np.ndarray:
    """int8 (decision, class) that the reference makes of microvolts (time, lead): front end, then the network."""
    graph, manifest = models()[name]
    x = frontend.filter_record(manifest.frontend, uv.T, fs)
    codes = frontend.quantize(x, round(manifest.waveform.lsb))[:, frontend.SETTLE_S * FS:]
    return reference.stream(graph, {graph.inputs[0]: codes}, manifest.trigger.hop)


def scores(results) -> np.ndarray:
    return np.array([r.scores for r in results]) if results else np.empty((0, 3), np.int8)
