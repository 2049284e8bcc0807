# SPDX-License-Identifier: Apache-2.0
"""What is too expensive to be made by every worker of a test run."""

import fcntl
import os


def once(factory, name, make):
    """The folder `name` of this test run, filled by make(folder) in whichever worker asks first; the others wait."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():           # absent, too, when the first one failed
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
