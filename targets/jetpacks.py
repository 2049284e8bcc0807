# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's JetPack releases bring to a Jetson, as far as an ONNX file depends on it. Standard library only.

The opset is the highest that the documentation of the release's ONNX importer names.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.say import choose


@dataclass(frozen=True)
class JetPack:
    """tensorrt: (major, minor); opset: the highest of an ONNX file; int8: False where no device of it has int8."""

    name: str
    tensorrt: tuple[int, int]
    opset: int
    int8: bool = True


JETPACKS = {j.name: j for j in (
    JetPack("4.6", (8, 0), 13, int8=False),     # the last of Nano and TX2
    JetPack("5.0", (8, 4), 17), JetPack("5.1", (8, 5), 17), JetPack("6.0", (8, 6), 17), JetPack("6.1", (10, 3), 20),
    JetPack("6.2", (10, 3), 20), JetPack("7.0", (10, 13), 24), JetPack("7.1", (10, 13), 24),
    JetPack("7.2", (10, 16), 24))}
PORTABLE = JETPACKS["5.0"]      # what runs there runs on every later one


def find(version: str | None) -> JetPack:
    """The release of a version such as 6.2 or 6.2.1; PORTABLE for None. UserError for an unknown one."""
    if version is None:
        return PORTABLE
    return JETPACKS[choose(".".join(version.split(".")[:2]), JETPACKS, "JetPack")]
