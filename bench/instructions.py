# SPDX-License-Identifier: Apache-2.0
"""What a model costs on a microcontroller: instructions counted in the emulator, time and battery life estimated.

Used by bench/latency.py --target mcu. Instructions are measured. Milliseconds and days are estimates and say so: no
emulator knows wait states, caches or the board's other consumers.
"""

from __future__ import annotations

from dataclasses import asdict

from train import say

# Assumed cycles per instruction, nothing measured. M4: a static model of its pipeline gave 1.3 to 1.55 for loops like
# these at zero wait states; the upper figure leaves room for a slow flash. The other cores are judgement.
CYCLES = {"m0plus": (1.4, 2.1), "m3": (1.4, 2.1), "m4": (1.35, 2.0), "m33": (1.2, 1.8), "m7": (0.65, 1.0),
          "m55": (1.0, 2.0)}
BATTERY_MAH = 220       # a CR2032 coin cell
SLEEP_MA = 0.005        # core stopped between batches, clock running; the front-end's own current comes on top


def measured(run, board: dict, weights: int) -> dict:
    """Counted instructions of a quantized run on a board's core, and the estimate for the board."""
    from compress import graph as graphs
    from targets import layers, mcu, target
    manifest, graph = target.open_run(run)
    core = mcu.core_of(board, target.Options(weights))
    found = layers.measure(core, graph, manifest)
    macs = graphs.macs(graph)
    say.info(f"{board['name']} ({board['core']}), weights of {weights} bits: instructions, counted in the emulator")
    say.table(layers.report(found), ("layer of a window", "kernel", "instructions", "share", "each"))
    say.info(f"window: {found.window_total:,} instructions, {found.window_total / macs:.2f} for each of {macs:,} "
             f"multiply-accumulates")
    if found.hop:
        say.info(f"hop of {manifest.trigger.hop / manifest.fs:.2f} s: {found.hop_total:,} instructions, "
                 f"1/{found.window_total / found.hop_total:.1f} of a window")
    say.info(f"flash: {found.code['kernels']:,} bytes of kernels, {found.code['engine']:,} of engine, model data "
             f"{found.model:,}; stack at the deepest {found.stack:,} bytes; RAM: what deploy.py plans and links")
    a_second = found.hop_total / (manifest.trigger.hop / manifest.fs) if found.hop else None
    guess = estimate(board, found.hop_total or found.window_total, a_second)
    _say(board, guess, bool(found.hop))
    return {"run": str(run), "target": "mcu", "board": board["key"], "core": board["core"], "weights": weights,
            "macs": macs, "measured": {"window": found.window_total, "hop": found.hop_total or None,
                                       "layers": [asdict(r) for r in found.window], "code": found.code,
                                       "model_bytes": found.model, "stack_bytes": found.stack},
            "estimate": guess, "machine": say.machine()}


def estimate(board: dict, instructions: int, a_second: float | None) -> dict:
    """Ranges from stated assumptions: milliseconds of an evaluation and, of a stream, days on a coin cell."""
    low, high = CYCLES[board["core"]]
    guess = {"status": "ESTIMATE (from counted instructions), not measured",
             "assumed": {"cycles_per_instruction": [low, high], "mhz": board.get("mhz"),
                         "ma_per_mhz": board.get("ma_per_mhz"), "sleep_ma": SLEEP_MA, "battery_mah": BATTERY_MAH}}
    if "mhz" in board:
        guess["ms"] = [instructions * c / board["mhz"] / 1e3 for c in (low, high)]
    if "ma_per_mhz" in board and a_second:
        # work costs mA per MHz times millions of cycles per second, at whatever clock
        guess["days"] = [BATTERY_MAH / 24 / (SLEEP_MA + board["ma_per_mhz"] * a_second * c / 1e6) for c in (high, low)]
    return guess


def _say(board: dict, guess: dict, streams: bool) -> None:
    low, high = guess["assumed"]["cycles_per_instruction"]
    if "ms" in guess:
        say.info(f"estimate, not measured: {guess['ms'][0]:.1f} to {guess['ms'][1]:.1f} ms a "
                 f"{'hop' if streams else 'window'} at {board['mhz']} MHz, if an instruction takes {low} to {high} "
                 "cycles")
    if "days" in guess:
        say.info(f"estimate, not measured: {guess['days'][0]:.0f} to {guess['days'][1]:.0f} days of inference on "
                 f"{BATTERY_MAH} mAh, if the core takes {board['ma_per_mhz']} mA/MHz while it computes and {SLEEP_MA} "
                 "mA asleep; without front-end, radio and display")
    if not {"ms", "days"} & set(guess):
        say.info(f"no clock or current of {board['name']} is known: no estimate")


def boards_core(name: str | None) -> dict:
    """The board asked for, or an M4 without a name: instructions do not depend on the board."""
    from targets import target
    if name:
        return target.read_board(name, "mcu")
    return {"key": None, "name": "any Cortex-M4", "core": "m4"}
