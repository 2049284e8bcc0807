# SPDX-License-Identifier: Apache-2.0
"""A quantized model as a library for other people's build systems: Arduino, PlatformIO, Zephyr.

One zip, one folder in it: src/ with the engine, the kernels that the model needs and the model itself, an example that
feeds a recorded signal and compares the decisions with those computed here, and what the ecosystem wants beside them.
By default the kernels are plain C, which any 32-bit core compiles; for a core's own kernels name a board.
"""

from __future__ import annotations

import json
import re
import string
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import c_model, host, target, toolchain, twin
from targets.c_model import Source
from targets.pack import CORES, Core
from train import sides
from train.manifest import Manifest
from train.say import MissingError, choose

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).parent / "ecosystems"
VERSION = "0.1.0"
WINDOWS = 3                             # golden windows in the example of a model that does not stream
DECISIONS = 4                           # hops in the example of one that does
BEATS_S = 8                             # seconds behind the first window of one that looks at beats
STAMP = (1980, 1, 1, 0, 0, 0)           # of every file in a zip, so that equal contents are equal bytes

PUBLIC = ("ecg_t", "ecg_model", "ecg_result", "ecg_rate"), ("ecg_memory", "ecg_init", "ecg_reset", "ecg_patient",
                                                            "ecg_bad", "ecg_push", "ecg_push_codes", "ecg_window")


@dataclass(frozen=True)
class Library:
    """A model's sources and what the templates say about it. `files`: path in the package -> text."""

    manifest: Manifest
    source: Source
    core: Core
    files: dict[str, str]
    words: dict[str, str]

    @property
    def identifier(self) -> str:
        """The model's name as part of a C identifier and of a file name."""
        return self.words["identifier"]


def write(ecosystem: str, run: str | Path, out: Path, core: Core | None = None, fs_in: float | None = None,
          objects: twin.Objects | None = None) -> Path:
    """The package of a run as <out>/<name>-<ecosystem>.zip.

    fs_in: Hz of the samples that the program pushes, None: the model's. objects: how to compile for this computer.
    """
    choose(ecosystem, ECOSYSTEMS, "ecosystem")
    manifest, graph = target.open_run(run)
    library = _library(manifest, graph, core or CORES["host"], fs_in)
    objects = objects or twin.Objects(Path(run) / "host" / "objects", host.FLAGS)
    recorded = _signal(manifest, graph, fs_in, objects) if _pushes(manifest) else _windows(graph, run)
    files = library.files | ECOSYSTEMS[ecosystem](library, _recorded(recorded))
    name = f"leadedge_{library.identifier}"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{ecosystem}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file, text in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(f"{name}/{file}", STAMP), text, zipfile.ZIP_DEFLATED)
    return path


def _library(m: Manifest, graph: Graph, core: Core, fs_in: float | None) -> Library:
    """The sources of a model for a core, with the licence."""
    source = c_model.generate(graph, m, core, ("stream",) if m.streaming else ("window",), fs_in=fs_in)
    identifier = re.sub(r"\W+", "_", m.name).strip("_").lower() or "model"
    header = f"leadedge_{identifier}.h"
    files = {f"src/{p.name}": p.read_text() for p in engine(source.kernels)}
    files |= {"src/model.c": source.code, "src/model.h": source.header, f"src/{header}": _header(m, identifier),
              "src/kernels.c": c_model.kernel_table(source.kernels)}
    files |= {name: (ROOT / name).read_text() for name in ("LICENSE", "NOTICE") if (ROOT / name).is_file()}
    words = _words(m, source, core, fs_in) | {"identifier": identifier, "header": header,
                                              "config": f"LEADEDGE_{identifier.upper()}",
                                              "module": f"leadedge_{identifier}", "flash": str(graph.weight_bytes)}
    return Library(m, source, core, files, words)


def engine(kernels: Iterable[str]) -> list[Path]:
    """The files of targets/c/ that a model with these kernels compiles with, headers included."""
    found: set[Path] = set()
    wanted = {*twin.sources(kernels), *(twin.C / name for name in twin.ENGINE)}
    while wanted:
        found |= wanted
        named = {twin.C / name for path in wanted for name in re.findall(r'^#include "([^"]+)"', path.read_text(),
                                                                         re.MULTILINE)}
        wanted = named - found
    return sorted(found)


def _header(m: Manifest, identifier: str) -> str:
    """What a program includes."""
    guard = f"LEADEDGE_{identifier.upper()}_H"
    names = ", ".join(json.dumps(c.name) for c in m.classes)
    return (f"/* Generated by LeadEdge: the ECG classifier {identifier}. */\n#ifndef {guard}\n#define {guard}\n\n"
            "#ifdef __AVR__\n#error \"an ECG classifier of LeadEdge needs a 32-bit microcontroller\"\n#endif\n\n"
            f'#include "ecg.h"\n#include "model.h"\n\n#define MODEL_CLASS_NAMES {{{names}}}\n\n#endif\n')


def _words(m: Manifest, source: Source, core: Core, fs_in: float | None) -> dict[str, str]:
    """What the templates say."""
    trigger = (f"around each beat, {m.trigger.beats_after} beats later" if m.trigger.kind == "r-peak" else
               f"every {m.trigger.hop / m.fs:g} s" if m.streaming else "one for each window that is handed over")
    return {"name": m.name, "title": f"LeadEdge {m.name}", "arch": m.arch, "preset": m.preset, "fs": str(m.fs),
            "fs_in": f"{fs_in or m.fs:g}", "leads": ", ".join(m.waveform.leads), "decision": trigger,
            "core": "any 32-bit core" if core.plain else f"the {toolchain.core_name(core.name)} core",
            "classes": ", ".join(c.name for c in m.classes), "ram": str(source.ram), "identity": m.identity.hex(),
            "data": str(m.provenance.get("data", "not stated")), "version": f"{VERSION}+{m.identity.hex()[:8]}",
            "sentence": f"ECG classifier {m.name}: {', '.join(c.name for c in m.classes)}, from leads "
                        f"{', '.join(m.waveform.leads)} at {fs_in or m.fs:g} Hz."}


def _template(library: Library, name: str, **more: str) -> str:
    return string.Template((TEMPLATES / name).read_text()).substitute(library.words | more)


def _readme(library: Library, install: str) -> str:
    record = "a signal of the synthetic patient" if _pushes(library.manifest) else "the model's golden windows"
    return _template(library, "README.md", record=record, install=install)


def _pushes(m: Manifest) -> bool:
    """Samples are pushed, the engine decides when; else the program hands over windows."""
    return m.streaming or m.trigger.kind == "r-peak"


# ---- the recorded signal of the example


def _recorded(body: str) -> str:
    """recorded.h."""
    return ("/* Generated by LeadEdge: a recorded signal and what the model says about it. */\n#ifndef RECORDED_H\n"
            f"#define RECORDED_H\n\n#include <stdint.h>\n\n{body}\n#endif\n")


def _signal(m: Manifest, graph: Graph, fs_in: float | None, objects: twin.Objects) -> str:
    """The synthetic patient in microvolts, and the decisions of the same C on this computer."""
    from train import synth
    hops = DECISIONS * m.trigger.hop / m.fs if m.streaming else BEATS_S
    fs = fs_in or m.fs
    record = synth.record("bigeminy", 1, 2 + m.window / m.fs + hops, fs, m.waveform.leads)
    sex, age = sides.sex_code(record.sex), round(record.age)
    rows = [f"{{{d['sample']}u, {d['present']}u, {d['top']}, {d['unreliable']}}}"
            for d in _decisions(m, graph, record.uv, fs_in, (age, sex), objects)]
    return (f"/* the synthetic patient (computed, nobody's ECG), {fs:g} samples per second, microvolts */\n"
            f"#define RECORDED_FRAMES {record.uv.shape[1]}u\n#define RECORDED_AGE {age}\n#define RECORDED_SEX {sex}\n"
            f"static const int16_t recorded[RECORDED_FRAMES][{record.uv.shape[0]}] = {{\n{_rows(record.uv.T)}}};\n\n"
            "typedef struct {\n    uint32_t sample, present;\n    int16_t top;\n    uint8_t unreliable;\n"
            f"}} recorded_decision;\n#define RECORDED_DECISIONS {len(rows)}u\n"
            f"static const recorded_decision expected[] = {{{', '.join(rows) or '{0, 0, 0, 0}'}}};\n")


def _decisions(m: Manifest, graph: Graph, uv: np.ndarray, fs_in: float | None, patient: tuple[int, int],
               objects: twin.Objects) -> np.ndarray:
    """What the model decides about a record: its C, compiled here."""
    if toolchain.missing("host"):
        raise MissingError("the example cannot say which decisions to expect", "a C compiler",
                           toolchain.missing("host").split(": ")[-1])
    with tempfile.TemporaryDirectory() as folder:
        compiled = twin.Twin(twin.build(graph, m, Path(folder), objects=objects, fs_in=fs_in), graph, fs_in, m.fs)
        compiled.patient(*patient)
        return compiled.decide(uv)


def _windows(graph: Graph, run: str | Path) -> str:
    """Golden windows with the reference's logits."""
    inputs, logits = target.golden(run, graph, WINDOWS)
    arrays = [f"static const int8_t recorded_{i}[{len(x)}][{x[0].size}] = {{\n{_rows(x.reshape(len(x), -1))}}};\n"
              for i, x in enumerate(inputs.values())]
    pointers = ", ".join(f"recorded_{i}[w]" for i in range(len(arrays)))
    return (f"/* int8 codes of {', '.join(inputs)} */\n#define RECORDED_WINDOWS {len(logits)}u\n{''.join(arrays)}"
            f"#define RECORDED_INPUTS(w) {{{pointers}}}\n\n"
            f"static const int8_t expected[][{logits.shape[1]}] = {{\n{_rows(logits)}}};\n")


def _rows(values: np.ndarray) -> str:
    """A C initialiser: a row per entry of the first axis, lines of at most 24 numbers."""
    lines = [[", ".join(map(str, row[at:at + 24])) for at in range(0, len(row), 24)] for row in values.tolist()]
    return "".join("    {" + ",\n     ".join(row) + "},\n" for row in lines)


# ---- ecosystems: library and recorded.h -> path in the package -> text


def _arduino(library: Library, recorded: str) -> dict[str, str]:
    """The folder of an Arduino library, as `Sketch > Include Library > Add .ZIP Library` takes it."""
    properties = {"name": library.words["module"], "version": library.words["version"],
                  "author": "The LeadEdge authors", "maintainer": "The LeadEdge authors",
                  "sentence": library.words["sentence"], "category": "Data Processing",
                  "paragraph": "Int8 network, front end and beat detector in C99 without a heap. A research prototype, "
                               "not a medical device.",
                  "architectures": "*", "includes": library.words["header"]}
    types, functions = PUBLIC
    keywords = "".join([*(f"{t}\tKEYWORD1\n" for t in types), *(f"{f}\tKEYWORD2\n" for f in functions),
                        *(f"{c}\tLITERAL1\n" for c in ("MODEL_RAM", "MODEL_LEADS", "MODEL_CLASSES"))])
    return {"library.properties": "".join(f"{k}={v}\n" for k, v in properties.items()), "keywords.txt": keywords,
            "README.md": _readme(library, "Arduino IDE: Sketch > Include Library > Add .ZIP Library, then "
                                          "File > Examples."),
            **_sketch(library, recorded)}


def _sketch(library: Library, recorded: str) -> dict[str, str]:
    sketch = "Stream.ino" if _pushes(library.manifest) else "Window.ino"
    return {"examples/Recorded/Recorded.ino": _template(library, sketch), "examples/Recorded/recorded.h": recorded}


def _platformio(library: Library, recorded: str) -> dict[str, str]:
    """What `lib_deps = file://...zip` takes; the example is an Arduino sketch."""
    about = {"name": library.words["module"], "version": library.words["version"],
             "description": library.words["sentence"], "keywords": ["ecg", "classifier", "wearable", "int8"],
             "license": "Apache-2.0", "authors": [{"name": "The LeadEdge authors"}],
             "headers": library.words["header"], "frameworks": "*", "platforms": "*",
             # the kernels' inner loops are written for -O2
             "build": {"srcDir": "src", "includeDir": "src", "flags": ["-O2"]},
             "examples": [{"name": "Recorded", "base": "examples/Recorded", "files": ["Recorded.ino", "recorded.h"]}]}
    return {"library.json": json.dumps(about, indent=2) + "\n",
            "README.md": _readme(library, "platformio.ini: `lib_deps = file://path/to/this.zip`"),
            **_sketch(library, recorded)}


def _zephyr(library: Library, recorded: str) -> dict[str, str]:
    """A Zephyr module with a sample that builds from the unpacked folder."""
    config, module = library.words["config"], library.words["module"]
    sources = "\n    ".join(f"${{CMAKE_CURRENT_SOURCE_DIR}}/../{path}" for path in sorted(library.files)
                            if path.endswith(".c"))
    sample = "samples/recorded/"
    main = "stream.c" if _pushes(library.manifest) else "window.c"
    return {
        "zephyr/module.yml": f"name: {module}\nbuild:\n  cmake: zephyr\n  kconfig: zephyr/Kconfig\nsamples:\n"
                             "  - samples\n",
        "zephyr/CMakeLists.txt": _template(library, "CMakeLists.txt", sources=sources),
        "zephyr/Kconfig": _template(library, "Kconfig"),
        sample + "CMakeLists.txt": "# SPDX-License-Identifier: Apache-2.0\ncmake_minimum_required(VERSION 3.20.0)\n"
                                   "list(APPEND EXTRA_ZEPHYR_MODULES ${CMAKE_CURRENT_SOURCE_DIR}/../..)\n"
                                   "find_package(Zephyr REQUIRED HINTS $ENV{ZEPHYR_BASE})\nproject(recorded C)\n"
                                   "target_sources(app PRIVATE src/main.c)\n",
        sample + "prj.conf": f"CONFIG_{config}=y\nCONFIG_MAIN_STACK_SIZE=4096\n",
        sample + "sample.yaml": f"sample:\n  name: {module}\ntests:\n  sample.{module}:\n    harness: console\n"
                                "    harness_config:\n      type: one_line\n      regex:\n"
                                "        - \", 0 not as expected\"\n",
        sample + "src/main.c": _template(library, main), sample + "src/recorded.h": recorded,
        "README.md": _readme(library, "Name the unpacked folder in `EXTRA_ZEPHYR_MODULES` and set "
                                      f"`CONFIG_{config}=y`, or try it: `west build -b nrf52840dk/nrf52840 {sample}`")}


ECOSYSTEMS = {"arduino": _arduino, "platformio": _platformio, "zephyr": _zephyr}
