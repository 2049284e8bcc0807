# SPDX-License-Identifier: Apache-2.0
"""Libraries for Arduino, PlatformIO and Zephyr: exactly the packaged files are compiled, and the examples are run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import graphs as make
import numpy as np
import pytest
from test_engine import HOP, beat_model, hop_model

from compress import reference
from targets import pack, packages, target, toolchain, twin
from train import frontend, score, synth
from train.say import UserError

STUBS = Path(__file__).parent / "stubs"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
pytestmark = pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))


def needs(*programs):
    absent = [p for p in programs if not shutil.which(p)]
    return pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed")


def run_of(folder: Path, m, graph) -> Path:
    m = replace(m, name="AF wrist (I, II)", provenance={"data": "made up"})
    return make.write_run(folder, graph, golden=8, manifest=m)


def windows_model():
    graph = make.every_kind()
    return make.manifest_of(graph, "0" * 64), graph


MODELS = {"stream": lambda: hop_model(2), "beats": beat_model, "window": windows_model}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """unpacked(ecosystem, model, core) -> (folder of the package, run); each made once."""
    made = {}
    objects = twin.Objects(tmp_path_factory.mktemp("objects"), (*twin.FLAGS, "-O0"))

    def get(ecosystem, model="stream", core="host"):
        if (key := (ecosystem, model, core)) not in made:
            folder = tmp_path_factory.mktemp("package")
            run = run_of(folder / "run", *MODELS[model]())
            packed = packages.write(ecosystem, run, folder / "out", pack.CORES[core], objects=objects)
            assert packed.name == f"leadedge_af_wrist_i_ii-{ecosystem}.zip"
            zipfile.ZipFile(packed).extractall(folder)
            made[key] = folder / "leadedge_af_wrist_i_ii", run
        return made[key]
    return get


def compiled(command, files, out: Path, *flags):
    """Every file by itself; the objects."""
    out.mkdir(exist_ok=True)
    for file in files:
        done = subprocess.run([*command, *WARNINGS, *flags, "-c", file, "-o", out / f"{file.stem}.o"],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return sorted(out.glob("*.o"))


def printed_by_sketch(folder: Path, out: Path) -> list[str]:
    """Compile the packaged sources and the sketch for this computer, as Arduino would, and run them."""
    objects = compiled(["gcc"], sorted((folder / "src").glob("*.c")), out, "-std=gnu11")
    sketch = folder / "examples" / "Recorded" / "Recorded.ino"
    program = out / "sketch"
    done = subprocess.run(["g++", "-std=gnu++11", *WARNINGS, f"-I{STUBS}", f"-I{folder / 'src'}", "-include",
                           "Arduino.h", "-x", "c++", sketch, STUBS / "arduino_main.cpp", "-x", "none", *objects, "-o",
                           program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return subprocess.run([program], capture_output=True, text=True, timeout=60).stdout.splitlines()


def expected_stream(run: Path) -> list[tuple[int, int]]:
    """(sample, class) of the record in the example, by numpy alone."""
    m, graph = target.open_run(run)
    uv = synth.record("bigeminy", 1, 2 + m.window / m.fs + packages.DECISIONS * HOP / m.fs, m.fs, ("I", "II")).uv
    settle = frontend.SETTLE_S * m.fs
    codes = frontend.quantize(frontend.filter_record(m.frontend, uv, m.fs), 16)[:, settle:]
    logits = reference.stream(graph, {"ecg": codes}, HOP)
    tops = score.decide(*score.vote(logits, m.decision.vote), "argmax", m.decision.offsets)
    return [(settle + m.window - 1 + HOP * k, int(top)) for k, top in enumerate(tops)]


@needs("gcc", "g++")
def test_the_sketch_prints_the_references_decisions(unpacked, tmp_path):
    folder, run = unpacked("arduino")
    *lines, last = printed_by_sketch(folder, tmp_path / "o")
    expected = expected_stream(run)
    assert lines == [f"sample {at}: c{top}  (as expected)" for at, top in expected] and len(expected) > 3
    assert last == f"{len(expected)} decisions, 0 not as expected"


@needs("gcc", "g++")
def test_the_sketch_of_a_model_of_beats_prints_a_decision_for_each(unpacked, tmp_path):
    *lines, last = printed_by_sketch(unpacked("arduino", "beats")[0], tmp_path / "o")
    assert len(lines) > 5 and all(line.endswith("(as expected)") for line in lines)
    assert last == f"{len(lines)} decisions, 0 not as expected"


@needs("gcc", "g++")
def test_the_sketch_of_a_model_of_windows_prints_the_golden_logits(unpacked, tmp_path):
    folder, run = unpacked("arduino", "window")
    golden = target.golden(run, target.open_run(run)[1], 3)[1]
    assert printed_by_sketch(folder, tmp_path / "o") == [
        *("  ".join(f"c{k} {v}" for k, v in enumerate(row)) + "  (as expected)" for row in golden),
        "3 windows, 0 not as expected"]


@needs("gcc", "g++")
def test_a_changed_weight_is_told_by_the_sketch(unpacked, tmp_path):
    folder = shutil.copytree(unpacked("arduino", "window")[0], tmp_path / "p")
    model = folder / "src" / "model.c"
    text = model.read_text()
    first = re.search(r"static const ecg_scale \w+\[\] ECG_DATA = \{\n\s*\{(-?\d+)", text)
    model.write_text(text[:first.start(1)] + str(int(first[1]) + 200_000) + text[first.end(1):])
    assert "NOT as expected" in "\n".join(printed_by_sketch(folder, tmp_path / "o"))


@pytest.mark.parametrize("made_for, core, using", [
    ("any", "m0plus", "gcc"), ("any", "m4", "zig"), ("core", "m4", "gcc"), ("core", "m4", "zig")])
def test_every_packaged_file_compiles_by_itself(made_for, core, using, unpacked, tmp_path):
    if using not in toolchain.available(core):
        pytest.skip(toolchain.missing(core) or f"{using} is not installed")
    folder, _ = unpacked("arduino", "stream", core if made_for == "core" else "host")
    names = {p.name for p in (folder / "src").glob("*.c")}
    command = toolchain.compiler(core, using).command
    objects = compiled(command, sorted((folder / "src").glob("*.c")), tmp_path / "o", "-std=c99", "-Wconversion", "-Os")
    assert len(objects) == len(names) and {"ecg.c", "ecg_net.c", "model.c", "kernels.c"} < names
    assert ("conv_dsp.c" in names) == (made_for == "core")


@needs("arm-none-eabi-g++")
@pytest.mark.parametrize("core", ["m0plus", "m4"])
@pytest.mark.parametrize("model", MODELS)
def test_a_sketch_is_cpp_for_a_cortex(core, model, unpacked):
    folder, _ = unpacked("arduino", model)
    gcc, *flags = toolchain.compiler(core, "gcc").command
    done = subprocess.run([gcc[:-2] + "++", *flags, *WARNINGS, "-fsyntax-only", f"-I{STUBS}", f"-I{folder / 'src'}",
                           "-include", "Arduino.h", "-x", "c++", folder / "examples" / "Recorded" / "Recorded.ino"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@needs("cmake", "gcc")
@pytest.mark.parametrize("model", ["stream", "window"])
def test_the_zephyr_sample_builds_from_the_unpacked_module(model, unpacked, tmp_path):
    folder, _ = unpacked("zephyr", model)
    build = tmp_path / "build"
    for words in (["-S", folder / "samples" / "recorded", "-B", build, f"-DZephyr_DIR={STUBS}",
                   "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"], ["--build", build]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    last = subprocess.run([build / "app"], capture_output=True, text=True, timeout=60).stdout.splitlines()[-1]
    assert re.fullmatch(r"([3-9]|\d\d) (decisions|windows), 0 not as expected", last)
    regex = re.search(r'- "(.*)"', (folder / "samples" / "recorded" / "sample.yaml").read_text())[1]
    assert re.search(regex, last)


def test_zephyrs_option_is_the_one_that_the_module_and_the_sample_name(unpacked):
    folder, _ = unpacked("zephyr")
    option = re.search(r"^config (\w+)$", (folder / "zephyr" / "Kconfig").read_text(), re.MULTILINE)[1]
    assert option == "LEADEDGE_AF_WRIST_I_II"
    assert f"if(CONFIG_{option})" in (folder / "zephyr" / "CMakeLists.txt").read_text()
    assert f"CONFIG_{option}=y" in (folder / "samples" / "recorded" / "prj.conf").read_text()
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    assert yaml.safe_load((folder / "zephyr" / "module.yml").read_text()) == {
        "name": "leadedge_af_wrist_i_ii", "build": {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"},
        "samples": ["samples"]}
    assert yaml.safe_load((folder / "samples" / "recorded" / "sample.yaml").read_text())["tests"]


def test_arduinos_properties_are_those_of_a_library(unpacked):
    folder, run = unpacked("arduino")
    found = dict(line.split("=", 1) for line in (folder / "library.properties").read_text().splitlines())
    assert found["name"] == folder.name and re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", found["version"])
    assert found["version"].endswith(target.open_run(run)[0].identity.hex()[:8])
    assert (folder / "src" / found["includes"]).is_file() and all(found.values())
    api = (folder / "src" / "ecg.h").read_text() + (folder / "src" / "ecg_front.h").read_text()
    words = [line.split("\t") for line in (folder / "keywords.txt").read_text().splitlines()]
    assert all(re.search(rf"\b{word}\b", api + (folder / "src" / "model.h").read_text()) for word, _ in words)
    assert {kind for _, kind in words} == {"KEYWORD1", "KEYWORD2", "LITERAL1"}


def test_platformios_library_json_names_files_that_are_there(unpacked):
    folder, _ = unpacked("platformio")
    about = json.loads((folder / "library.json").read_text())
    assert re.fullmatch(r"[a-z0-9_]+", about["name"]) and (folder / "src" / about["headers"]).is_file()
    for example in about["examples"]:
        assert all((folder / example["base"] / name).is_file() for name in example["files"])


def test_arduino_and_platformio_get_the_same_code(unpacked):
    """So that what compiles for the one compiles for the other."""
    def code(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.suffix in (".c", ".h", ".ino")}
    assert code(unpacked("arduino")[0]) == code(unpacked("platformio")[0])


def test_a_package_says_what_it_is_and_carries_its_licence(unpacked):
    for ecosystem in packages.ECOSYSTEMS:
        folder, run = unpacked(ecosystem)
        text = (folder / "README.md").read_text()
        m, _ = target.open_run(run)
        assert m.identity.hex() in text and "made up" in text and "not a medical device" in text and "$" not in text
        assert "Apache License" in (folder / "LICENSE").read_text()
        header = (folder / "src" / "leadedge_af_wrist_i_ii.h").read_text()
        assert '#define MODEL_CLASS_NAMES {"c0", "c1", "c2"}' in header


def test_the_same_model_gives_the_same_bytes(unpacked, tmp_path):
    _, run = unpacked("arduino", "window")
    first = packages.write("arduino", run, tmp_path / "a").read_bytes()
    assert first == packages.write("arduino", run, tmp_path / "b").read_bytes()


def test_an_unknown_ecosystem_names_the_known(tmp_path):
    with pytest.raises(UserError, match="unknown ecosystem 'ardunio'") as raised:
        packages.write("ardunio", tmp_path, tmp_path)
    assert raised.value.fix == "use arduino"


def test_rows_of_an_initialiser_hold_every_number():
    values = np.arange(-30, 30).reshape(2, 30)
    text = packages._rows(values)
    assert [int(v) for v in re.findall(r"-?\d+", text)] == values.ravel().tolist()
    assert text.count("{") == text.count("}") == 2
