# SPDX-License-Identifier: Apache-2.0
"""The int8 .tflite file for an Arm Ethos-U: Vela turns what the NPU can run into commands for it.

    python targets/litert_npu.py --run R [--npu ethos-u55-128]

takes R/litert/model.int8.tflite and writes model.int8.<npu>.tflite beside it, for TFLite Micro with Arm's driver. It
says how many operators the NPU runs, which are left to the processor, and what memory Vela laid out. Vela's time is
what its model of the chip says, an estimate: nothing was run.
"""

from __future__ import annotations

import collections
import csv
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from train import runs, say
from train.say import MissingError, UserError, choose, need

# NPU -> system and memory of Vela's own configuration file
U55, U65, U85 = (("Ethos_U55_High_End_Embedded", "Shared_Sram"), ("Ethos_U65_High_End", "Dedicated_Sram"),
                 ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram"))
NPUS = {**{f"ethos-u55-{macs}": U55 for macs in (32, 64, 128, 256)},
        **{f"ethos-u65-{macs}": U65 for macs in (256, 512)},
        **{f"ethos-u85-{macs}": U85 for macs in (128, 256, 512, 1024, 2048)}}
DEFAULT = "ethos-u55-128"
MEMORIES = (("SRAM", "sram"), ("DRAM", "dram"), ("flash", "on_chip_flash"), ("outer flash", "off_chip_flash"))
COMMANDS = "ethos-u"        # name of the operator that holds an NPU's commands


def missing() -> str | None:
    """What is not installed, with the command that installs it."""
    return None if find_spec("ethosu") else "Arm's compiler Vela is not installed: pip install ethos-u-vela"


def compile(path: Path, out: Path, npu: str = DEFAULT) -> dict:
    """Compile a .tflite file for an NPU into `out`/<its name>.<npu>.tflite and say what became of it.

    {"npu", "system", "memory" (Vela's names), "file", "bytes", "operators", "on_cpu": {operator: count}, "share" of the
    operators on the NPU, "memory_used": {memory: bytes}, "estimate": {"ms", "source"}}
    """
    if missing():
        raise MissingError(missing())
    need("ai_edge_litert", "litert")
    system, memory = NPUS[choose(npu, NPUS, "NPU")]
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [sys.executable, "-m", "ethosu.vela", os.fspath(path.resolve()), "--accelerator-config", npu, "--config",
             "Arm/vela.ini", "--system-config", system, "--memory-mode", memory, "--output-dir", work],
            capture_output=True, text=True, errors="replace", cwd=work)
        made = Path(work) / f"{path.stem}_vela.tflite"
        if done.returncode or not made.is_file():
            words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-5:]
            raise UserError("\n".join([f"Vela could not compile {path}", *words]), "an int8 file of --target litert")
        compiled = made.read_bytes()
        with open(next(Path(work).glob("*_summary_*.csv"))) as file:
            summary = next(csv.DictReader(file))
    before, after = operators(path.read_bytes()), operators(compiled)
    on_cpu = {name: count for name, count in after.items() if name != COMMANDS}
    name = f"{path.stem}.{npu}.tflite"
    runs.write(out, {name: compiled})
    total = sum(before.values())
    return {"npu": npu, "system": system, "memory": memory, "file": name, "bytes": len(compiled), "operators": total,
            "on_cpu": on_cpu, "share": 1 - sum(on_cpu.values()) / total,
            "memory_used": {place: round(1024 * float(summary[f"{column}_memory_used"])) for place, column in MEMORIES},
            "estimate": {"ms": 1e3 * float(summary["inference_time"]), "source": f"Vela's model of {system}"}}


def operators(file: bytes) -> dict[str, int]:
    """Operator -> how often a .tflite file has it; those of others by their own names."""
    from ai_edge_litert import schema_py_generated as schema
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))

    def name(code) -> str:
        if code.customCode:
            return code.customCode.decode()
        return names[max(code.builtinCode, code.deprecatedBuiltinCode)]
    codes = [name(code) for code in model.operatorCodes]
    return dict(collections.Counter(codes[o.opcodeIndex] for part in model.subgraphs for o in part.operators))


def describe(found: dict) -> str:
    """What `compile` found, in one line."""
    left = ", ".join(f"{count} {name}" for name, count in found["on_cpu"].items())
    taken = [f"a file of {found['bytes'] / 1024:.0f} KiB"]
    taken += [f"{size / 1024:.0f} KiB of {memory}" for memory, size in found["memory_used"].items() if size]
    return (f"{found['npu']}: {found['share']:.0%} of {found['operators']} operators on the NPU"
            + (f", left to the processor: {left}" if left else "")
            + f"; {', '.join(taken)}; "
            f"an estimate by {found['estimate']['source']}, not measured: {found['estimate']['ms']:.2f} ms")


def parser() -> say.Parser:
    """Options of the script."""
    made = say.Parser(description=__doc__)
    made.add_argument("--run", type=Path, required=True, metavar="R", help="run folder that is built for litert")
    made.add_argument("--npu", default=DEFAULT, help=f"{', '.join(NPUS)}; by default {DEFAULT}")
    return made


def main(args) -> dict:
    """Compile a run's build and say what is on the NPU."""
    from targets import target
    built = target.open_build(args.run, "litert", target.open_run(args.run)[0])
    found = compile(built.path, built.path.parent, args.npu)
    say.info(describe(found))
    return found


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
