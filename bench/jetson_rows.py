# SPDX-License-Identifier: Apache-2.0
"""What targets/jetson_device.py measured on a Jetson, as rows and sentences of bench/latency.py."""

from __future__ import annotations

from train import say

BASE = {"GPU": "fp32", "CPU": "float"}      # what a form is compared with


def rows(found: dict) -> list[dict]:
    """A row for each form that was measured, on the GPU and on the CPU of the same board."""
    gpu = [{"form": form, "on": "GPU", "threads": None, **entry} for form, entry in found["measured"].items()
           if "failed" not in entry]
    cpu = [{"on": "CPU", **row} for row in (found.get("cpu") or {}).get("rows", ())]
    base = {(r["on"], r["threads"]): r["p50_ms"] for r in gpu + cpu if r["form"] == BASE[r["on"]]}
    return [r | {"float_over_this": base[key] / r["p50_ms"] if (key := (r["on"], r["threads"])) in base else None}
            for r in gpu + cpu]


def failed(found: dict) -> dict[str, str]:
    """form -> why there is no figure of it."""
    return {form: entry["failed"] for form, entry in found["measured"].items() if "failed" in entry}


def show(found: dict) -> None:
    """The table, and under what conditions it was measured."""
    here = found["environment"]
    clocks = {True: "locked", False: "not locked"}.get(here["before"]["clocks"]["locked"], "unknown")
    say.info(f"one window, measured on {here['device']}, JetPack {here['jetpack']}, L4T {here['l4t']}, TensorRT "
             f"{here['tensorrt']}, CUDA {here['cuda']}; power mode {here['power_mode']}, clocks "
             f"{clocks}; times of the GPU are copy in, compute, copy out")
    say.table([(r["form"], f"CPU, {r['threads']}" if r["threads"] else r["on"], r["p50_ms"], r["p90_ms"], r["p99_ms"],
                r["samples"], r["float_over_this"] and f"{r['float_over_this']:.2f}x") for r in rows(found)],
              ("form", "threads", "p50 ms", "p90 ms", "p99 ms", "samples", "against float"))
    for sentence in sentences(found):
        say.info(sentence)


def sentences(found: dict) -> list[str]:
    """What the table does not say: which form won and whether it may be trusted, precision, energy, warnings."""
    said = [f"{form}: not measured, {why}" for form, why in failed(found).items()]
    said += [f"{form}: golden outputs {'hold' if p['holds'] else 'DIFFER'}: {p['labels']:.2%} equal labels of "
             f"{p['windows']} windows, p99 {p['p99']:g} LSB, largest {p['worst']} LSB"
             for form, p in found["parity"].items()]
    won = found["won"]
    if won:
        over = ", ".join(f"{form} takes {ratio:.2f}x" for form, ratio in won["over"].items())
        said.append(f"fastest with outputs that hold: {won['form']}" + (f" ({over} its time)" if over else ""))
    else:
        said.append("no form's outputs hold: nothing on this Jetson is to be used")
    if found["layers_int8"]:
        said.append(f"{found['layers_int8']['ran']} of {found['layers_int8']['of']} convolutions and matrix products "
                    "really ran int8 in the int8 engine")
    if "missing" in (found.get("cpu") or {}):
        said.append(f"CPU of the board not measured: {found['cpu']['missing']}")
    return said + _energy(found) + [f"warning: {text}" for text in found["warnings"]]


def _energy(found: dict) -> list[str]:
    energy = found["energy"]
    if not energy:
        return [f"energy not measured: {found['energy_missing']}"]
    forms = "; ".join(f"{form} {e['net_mj']:.3f} mJ above idle, {e['gross_mj']:.3f} mJ with it"
                      for form, e in energy["forms"].items())
    return [f"energy of a window: {forms} (rails {energy['rail']}, {energy['idle_w']:.2f} W idle; without "
            f"{energy['excludes']})"]
