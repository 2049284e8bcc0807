# SPDX-License-Identifier: Apache-2.0
"""The shape of the repository: the import arrow, what must run without torch, sizes, licence lines, scripts."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["train", "compress", "targets", "firmware_bridge", "bench"]
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
SCRIPTS = [p for p in FILES if '__name__ == "__main__"' in p.read_text()]
HEAVY = ["torch", "torchao", "scipy", "wfdb", "pandas", "onnx", "onnxruntime", "rich", "h5py", "safetensors",
         "sklearn"]
NO_TORCH = ["train.say", "train.manifest", "train.runs", "train.frontend", "train.resample", "train.rpeak",
            "train.template", "train.pwave", "train.rhythm", "train.sides", "train.synth", "train.score",
            "train.metrics", "train.challenge", "compress.graph", "compress.reference"]
ALONE = ["jetson_device.py"]        # is copied to a device by itself
NO_TORCH += [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES
             if p.parts[len(ROOT.parts)] in ("targets", "firmware_bridge") and p.name != "__init__.py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_package_imports_only_packages_to_its_left(path):
    own = PACKAGES.index(path.relative_to(ROOT).parts[0])
    assert not imports(path) & set(PACKAGES[own + 1:])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_and_its_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 450 or path.name in ALONE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_opens_with_licence_and_purpose(path):
    if path.name != "__init__.py":
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_module_hides_a_library():
    taken = set(sys.stdlib_module_names) | set(HEAVY) | {"serial", "cobs", "numpy"} | set(PACKAGES)
    assert not [name(p) for p in FILES if p.stem in taken and p.name != "__init__.py"]


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_runs_on_a_device_imports_without_torch_scipy_or_wfdb(module):
    blocked = "; ".join(f"sys.modules[{m!r}] = None" for m in ("torch", "torchao", "scipy", "wfdb", "sklearn"))
    code = f"import sys; {blocked}; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_help_answers_from_any_directory_without_loading_anything_heavy(path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-X", "importtime", str(path), "--help"], cwd=tmp_path, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]
    assert "usage:" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_an_unknown_option_exits_with_1_and_names_help(path):
    done = subprocess.run([sys.executable, str(path), "--no-such-option"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--help" in done.stderr and "Traceback" not in done.stderr


def test_every_package_is_listed_for_installation():
    listed = (ROOT / "pyproject.toml").read_text()
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in FILES}
    assert all(f'"{package}"' in listed for package in found)
