# SPDX-License-Identifier: Apache-2.0
"""The run folder: files that are replaced together or not at all, so a full disk or a kill leaves the old run whole.

Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from train.say import UserError


def write(run: str | Path, files: dict[str, bytes | str]) -> None:
    """Write `files` (name -> content) into the folder `run`, all or nothing.

    Everything is written beside its place and synced first; only then are the names moved over, in the given order, so
    put the file that vouches for the others (model.json with its hashes) last.
    """
    folder = Path(run)
    staged: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = folder / f".{name}.{os.getpid()}.part"
            staged.append((part, folder / name))
            with open(part, "wb") as f:
                f.write(content.encode() if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
    except OSError as error:
        for part, _ in staged:
            with contextlib.suppress(OSError):
                part.unlink()
        raise UserError(f"could not write {error.filename or folder}: {error.strerror}",
                        "room for the run; what was there before is unchanged",
                        "free some space or pass another --run, then repeat the command") from error
    for part, final in staged:
        os.replace(part, final)


def sha256(*paths: str | Path) -> str:
    """Hexadecimal SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
