# SPDX-License-Identifier: Apache-2.0
"""Folders with other versions of packages than this environment holds, made by pip in the user's cache."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from targets import toolchain


def site(*requirements):
    """A folder for PYTHONPATH that holds these packages and what they need; skips where they cannot be had."""
    key = hashlib.sha256(repr((sys.version_info[:2], requirements)).encode()).hexdigest()[:12]
    folder = toolchain.cache() / f"site-{key}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            half = folder.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--target",
                                   half, *requirements], capture_output=True, text=True, errors="replace")
            if done.returncode:
                words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                pytest.skip(f"{requirements[0]} cannot be had: {(words or ['pip failed'])[-1]}")
            half.rename(folder)
    return folder


def python(folder, *arguments, paths=()):
    """Run this Python with the packages of `site` in place of its own; `paths` come first on sys.path."""
    path = os.pathsep.join(map(os.fspath, (*paths, folder)))
    return subprocess.run([sys.executable, "-S", *map(os.fspath, arguments)], capture_output=True, text=True,
                          errors="replace", env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
