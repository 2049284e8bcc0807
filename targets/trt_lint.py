# SPDX-License-Identifier: Apache-2.0
"""Would TensorRT take an ONNX file? Rules of explicit quantization, and what a JetPack's TensorRT lacks.

python targets/trt_lint.py runs/af/jetson/model.int8.onnx --jetpack 6.2 --importer

An error is what TensorRT refuses or computes differently from ONNX; a warning is what it takes and runs slower than
it could. Each has a rule, a node and what was expected.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from targets import jetpacks
from train import say

if TYPE_CHECKING:
    from targets.trt_rules import Finding


def lint(model: bytes | Path, jetpack: str | None = None) -> list[Finding]:
    """What TensorRT would say against a model, errors first; None: every JetPack from 5.0 on must take it.

    UserError when it is no ONNX file at all.
    """
    from targets.trt_model import Model
    from targets.trt_rules import Rules
    rules = Rules(Model(model), jetpacks.find(jetpack))
    rules.check()
    return sorted(rules.found, key=lambda f: f.level)


def errors(found: list[Finding]) -> list[Finding]:
    """Those that TensorRT would refuse."""
    return [f for f in found if f.level == "error"]


def demand(model: bytes | Path, jetpack: str | None = None) -> list[Finding]:
    """The warnings of a model; UserError with rule and node when there is an error."""
    found = lint(model, jetpack)
    bad = errors(found)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise say.UserError(f"{bad[0].rule} at {bad[0].node}: {bad[0].message}{more}",
                            f"a file for TensorRT {'.'.join(map(str, jetpacks.find(jetpack).tensorrt))}")
    return found


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("file", metavar="FILE", type=pathlib.Path, help="an ONNX file")
    p.add_argument("--jetpack", metavar="V", help="JetPack of the Jetson, such as 6.2 (default: all from 5.0 on)")
    p.add_argument("--importer", action="store_true", help="ask NVIDIA's own importer and builder as well")
    return p


def main(args) -> dict:
    """Print the findings, then what NVIDIA's importer says."""
    found = lint(args.file, args.jetpack)
    for finding in found:
        say.info(finding)
    bad = errors(found)
    say.info(f"{args.file}: {len(bad)} errors, {len(found) - len(bad)} warnings, "
             f"for {'JetPack ' + args.jetpack if args.jetpack else 'every JetPack from 5.0 on'}")
    result = {"file": str(args.file), "jetpack": args.jetpack, "accepted": not bad,
              "findings": [asdict(f) for f in found], "importer": None}
    if args.importer:
        from targets import trt_import
        verdict = trt_import.check([args.file])[0]
        for message in verdict.messages:
            say.info(f"importer: {message}")
        say.info(f"NVIDIA's importer {'takes it' if verdict.accepted else 'refuses it, stage ' + verdict.stage} "
                 f"({sum(verdict.layers.values())} layers, {verdict.seconds:.1f} s)")
        result |= {"importer": asdict(verdict), "accepted": not bad and verdict.accepted}
    return result


def script(argv: list[str] | None = None) -> int:
    """Exit code 1 when the file is refused, although it was looked at without a mistake."""
    results: list[dict] = []

    def kept(args) -> dict:
        results.append(main(args))
        return results[0]
    return say.run(kept, parser(), argv) or int(not results[0]["accepted"])


if __name__ == "__main__":
    sys.exit(script())
