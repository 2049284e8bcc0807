# SPDX-License-Identifier: Apache-2.0
"""Build a quantized run for a device: runs/R/<target>/ and an entry in runs/R/builds.json.

python targets/deploy.py --run runs/af --target arm
python targets/deploy.py --run runs/af --target mcu --board nrf52840dk --flash
python targets/deploy.py --run runs/af --target jetson --jetpack 6.2 --device user@orin
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import say

DEVICE_SECONDS = 3.0        # of timing each engine; bench/latency.py measures longer


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Build a quantized run for a device.")
    p.add_argument("--run", required=True, metavar="R", help="run folder, quantized by compress/qat.py")
    p.add_argument("--target", required=True, metavar="T", help=f"one of: {', '.join(targets.TARGETS)}")
    p.add_argument("--board", metavar="B", help="a board of targets/boards.toml")
    p.add_argument("--flash", action="store_true", help="put the build on the device, or say how")
    p.add_argument("--port", help="serial port, UF2 volume or probe of the device to flash")
    p.add_argument("--emulate", action="store_true", help="run the image in the emulator, UART on a pseudo terminal")
    p.add_argument("--package", choices=("arduino", "platformio", "zephyr"),
                   help="a library of model and kernels for another build system; plain C unless a board says the core")
    p.add_argument("--weights", type=int, default=8, choices=(8, 16),
                   help="bits of a weight on a microcontroller: 16 are a tenth faster and take twice the flash (8)")
    p.add_argument("--sensor", metavar="CHIP", help="ads1292r or max30003 on the board's SPI; without, the host sends")
    p.add_argument("--rate", type=float, metavar="HZ", help="samples per second of the front-end (the model's rate)")
    p.add_argument("--jetpack", metavar="V", help="JetPack of the Jetson, such as 6.2 (default: 5.0 and later)")
    p.add_argument("--device", metavar="USER@HOST", help="build and check the engines on this Jetson, over ssh")
    return p


def main(args) -> dict:
    """Lower, build, note, flash."""
    chosen = targets.load(args.target)
    from targets import target
    if args.emulate and args.target != "mcu":
        say.fail(f"--emulate with --target {args.target}", "--target mcu, whose boards have an emulator")
    if args.target != "jetson" and (args.jetpack or args.device):
        say.fail(f"--{'jetpack' if args.jetpack else 'device'} with --target {args.target}", "--target jetson",
                 f"on the device itself: python targets/deploy.py --run {args.run} --target {args.target}")
    absent = chosen.missing()
    if absent:
        raise say.MissingError(f"target {args.target} cannot be built here: {absent}")
    run = pathlib.Path(args.run)
    manifest, graph = target.open_run(run)
    board = target.read_board(args.board, args.target) if args.board else None
    out = run / args.target
    if args.package:
        return _package(args, board, out)
    chosen.lower(graph, manifest, out, board, target.Options(args.weights, args.rate, args.sensor, args.jetpack))
    built = chosen.build(out, board)
    target.record_build(run, args.target, built, manifest.identity)
    say.info(f"built {built.path} ({built.flash / 1000:.0f} kB) for model {manifest.identity.hex()[:16]}")
    measured = _measured(args, out) if args.target == "jetson" else None
    if args.flash:
        chosen.flash(built, args.port)
    done = {"run": str(run), "target": args.target, "path": str(built.path), "flash": built.flash, "ram": built.ram,
            "identity": manifest.identity.hex(), "notes": built.notes} | ({"measured": measured} if measured else {})
    if args.emulate:
        from targets import live_emulation
        return done | {"emulated": live_emulation.serve(built.path, board, run)}
    say.info(f"next: python bench/parity.py --run {run} --target {args.target}")
    return done


def _measured(args, out: pathlib.Path) -> dict | None:
    """Engines built, checked and timed on the Jetson at hand or at --device; None without one."""
    from targets import jetson_ssh
    if args.device:
        return jetson_ssh.measure(args.device, out, DEVICE_SECONDS)
    return jetson_ssh.local(out, DEVICE_SECONDS) if jetson_ssh.on_jetson() else None


def _package(args, board: dict | None, out: pathlib.Path) -> dict:
    """A library instead of firmware."""
    from targets import mcu, packages, target
    if args.target != "mcu":
        say.fail(f"--package {args.package} with --target {args.target}", "--target mcu")
    core = mcu.core_of(board, target.Options(args.weights)) if board else None
    path = packages.write(args.package, args.run, out, core, args.rate)
    say.info(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB); its README says how to use it")
    return {"run": args.run, "target": args.target, "package": args.package, "path": str(path)}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
