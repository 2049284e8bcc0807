# SPDX-License-Identifier: Apache-2.0
"""Write the README's tables from the committed figures: what stands between `<!-- table: NAME -->` and `<!-- end -->`.

    python bench/tables.py             write README.md
    python bench/tables.py --check     fail when README.md says something else than the figures

Tables: sweep, ablation, stream (bench/results/sweep/*.json), memory (memory.json), labels (labels/*.json), distill
(distill.json), kernels (kernels-*.json), mcu (mcu-m4.json), runtimes (runtimes.json) and parity (parity.json).
"""

from __future__ import annotations

import json
import pathlib
import re
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from bench import distill, kernels, labels, runtimes, sweep
from targets import toolchain
from train import runs, say
from train.models import ARCHS

FLOAT, INT8 = "float", "QAT int8"       # of compress.report.FORMS
MEMORY = sweep.RESULTS.parent / "memory.json"
BRIDGE = sweep.RESULTS.parent / "bridge.json"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TASKS = {"cinc2017": ("CinC 2017", "mean F1 of N, A, O"), "mitbih": ("MIT-BIH, beat-given", "mean F1 of N, S, V"),
         "ptbxl": ("PTB-XL", "macro AUROC")}
CORES = ("m0plus", "m3", "m4", "m7", "m33", "m55")
PARITY = ("host", "arm", "litert", "jetson")
COST = ("kB flash", "kB RAM", "MMAC")


def held(preset: str, task: str) -> dict[str, dict]:
    """arch -> figures of the first seed and fold, made by the current recipe; says which are of another."""
    found = {}
    for cell in sweep.cells(""):
        if (cell.preset, cell.task) == (preset, task) and cell.state() != "open":
            if cell.state() == "stale":
                say.warn(f"{cell.path.name} was made by another recipe and is left out")
            else:
                found[cell.arch] = json.loads(cell.path.read_text())
    return {arch: found[arch] for arch in ARCHS if arch in found}


def figure(cell: dict, form: str) -> dict:
    """{"value", "95", "difference", "difference_95"} of what a task is judged by."""
    f = cell["forms"][form]
    if "figures" in f:
        return f["figures"]["auroc"]
    return {"value": f["mean_f1"], "95": f["mean_f1_95"], "difference": f["difference"],
            "difference_95": f["difference_95"]}


def sweep_table() -> str:
    """A table for each preset and task: float, int8, their paired difference, cost."""
    parts = []
    for preset, task in sweep.TABLE:
        cells = held(preset, task)
        if cells:
            name, measure = TASKS[task]
            rows = [[f"`{arch}`", *_forms(c), *_beats(c), *_cost(c)] for arch, c in cells.items()]
            header = ["architecture", "float", "int8", "int8 - float, points", *_beats_header(task), *COST]
            parts.append(f"{name}, `{preset}`: {measure}, {_count(cells)}\n\n" + _table(header, rows))
    return "\n".join(parts) or "No cell has been made yet: `python bench/sweep.py --data DIR`.\n"


def ablation_table() -> str:
    """The mechanism of each architecture beside its ordinary counterpart. The two nets are trained apart: no pairs."""
    rows = []
    for plain, task in sweep.ABLATION:
        preset = plain.removesuffix("-plain")
        with_it, without = held(preset, task), held(plain, task)
        rows += [[f"`{arch}`", f"`{preset}`", *(_value(figure(c[arch], form)) for form in (FLOAT, INT8)
                                                for c in (with_it, without)), f"{with_it[arch]['rows']:,}"]
                 for arch in with_it if arch in without]
    if not rows:
        return "No cell has been made yet: `python bench/sweep.py --data DIR --cells plain`.\n"
    name, measure = TASKS[sweep.ABLATION[0][1]]
    title = f"{name}: {measure} with the mechanism and with its ordinary counterpart (`plain`)\n\n"
    return title + _table(["architecture", "preset", "float", "float, plain", "int8", "int8, plain", "records"], rows)


def memory_table() -> str:
    """What each preset needs at one lead."""
    if not MEMORY.is_file():
        return "Not computed yet: `python bench/memory.py`.\n"
    found = [f for f in json.loads(MEMORY.read_text())["networks"] if f["leads"] == 1]
    rows = [[f"`{f['arch']}`", f"`{f['preset']}`", f"{f['parameters']:,}", f"{f['macs'] / 1e6:.1f}",
             f"{f['hop_macs'] / 1e6:.2f}" if f["hop_macs"] else "-", _kilo(f["flash_bytes"]), _kilo(f["ram_bytes"]),
             _kilo(f["window_bytes"] + f["scratch_bytes"])] for f in found]
    header = ["architecture", "preset", "parameters", "MMAC a window", "MMAC a hop, streaming", "kB flash",
              "kB RAM, streaming", "kB RAM, window"]
    return _table(header, rows)


def labels_table() -> str:
    """Pre-trained against from scratch, by share of the labels."""
    found = [json.loads(path.read_text()) for path in sorted(labels.RESULTS.glob("*.json"))]
    if not found:
        return "Not measured yet: `python bench/labels.py --data DIR --init RUN`.\n"
    rows = [[f"{100 * r['share']:g} %", str(r["labels"]), r["arm"], str(r["seeds"]), _spread(r, "mean_f1"),
             _gain(r, "mean_f1"), _spread(r, "auroc"), _gain(r, "auroc")] for r in labels.table(found)]
    header = ["labels", "records", "weights", "seeds", "mean F1 of N, A, O", "gain, points", "macro AUROC",
              "gain, points"]
    return _table(header, rows)


def _spread(row: dict, key: str) -> str:
    low, high = row[key + "_range"]
    return f"{row[key]:.3f} ({low:.3f} to {high:.3f})"


def _gain(row: dict, key: str) -> str:
    if row[key + "_gain"] is None:
        return "-"
    low, high = row[key + "_gain_range"]
    return f"{100 * row[key + '_gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def distill_table() -> str:
    """A network under a teacher and alone, the teacher at half its work."""
    if not distill.RESULT.is_file():
        return "Not measured yet: `python bench/distill.py --data DIR --teacher RUN`.\n"
    found = json.loads(distill.RESULT.read_text())
    rows = []
    for base, other in distill.COMPARED:
        for arm in (base, other):
            a, d = found["arms"].get(arm), found["differences"].get(f"{arm} - {base}")
            if a:
                low, high = a["mean_f1_95"]
                rows.append([arm, str(a["seeds"]), f"{a['cost']['parameters']:,}", f"{a['cost']['macs'] / 1e6:.2f}",
                             f"{a['mean_f1']:.3f} [{low:.3f}, {high:.3f}]", f"{a['auroc']:.3f}",
                             _difference(d) if d else "-"])
    return _table(["network", "seeds", "parameters", "MMAC", "mean F1 of N, A, O", "macro AUROC",
                   "against the one above, points"], rows)


def stream_table() -> str:
    """A preset made for streaming beside the one it comes from."""
    rows = []
    for arch, preset, task in sweep.STREAM:
        for name in (preset.split("-")[0], preset):
            cell = held(name, task).get(arch)
            if cell:
                rows.append([f"`{arch}` `{name}`", *_forms(cell), *_cost(cell)])
    if len(rows) < 2:
        return "No cell has been made yet: `python bench/sweep.py --data DIR --cells stream`.\n"
    return _table(["network", "float", "int8", "int8 - float, points", *COST], rows)


def kernels_table() -> str:
    """Single layers on six cores."""
    found = {}
    for core in CORES:
        for bits in (8, 16):
            rows = {r["shape"]: r for r in (_results(f"kernels-{core}") or {"rows": []})["rows"]
                    if r["weight_bits"] == bits}
            if rows:
                found[toolchain.core_name(core) + (", 16-bit weights" if bits == 16 else "")] = rows
    if not found:
        return "Not counted yet: `python bench/kernels.py --core m4 --write`.\n"
    shown = {core: rows for core, rows in found.items() if "16" not in core or core.startswith("M4")}
    rows = [[name.split(maxsplit=1)[1] if name[1] == " " and name[0] != " " else name.strip(),
             *(f"{rows[key]['each']:.2f} ({rows[key]['cmsis_nn']:g})" if key in rows else "-"
               for rows in shown.values())] for key, name in kernels.SHAPES.items()]
    return _table(["layer", *shown], rows)


def mcu_table() -> str:
    """Whole models on a Cortex-M4."""
    found = _results("mcu-m4")
    if not found:
        return "Not counted yet: `python bench/mcu.py --write`.\n"
    rows = [[r["name"], f"{r['macs'] / 1e6:.2f}", f"{r['window'] / 1e6:.2f}", f"{r['per_mac']:.2f}",
             f"{r['tflm']['instructions'] / 1e6:.1f}, {r['tflm']['ratio']:.1f}x" if "tflm" in r else "-",
             *([f"{r['hop'] / 1e6:.2f}", f"1/{1 / r['hop_share']:.1f}"] if r["hop"] else ["-", "-"]),
             _kilo(r["kernel_bytes"]), _kilo(r["model_bytes"]), _kilo(r["ram"]["ram_bytes"])]
            for r in found["networks"]]
    return _table(["network", "MMAC", "M instructions a window", "for each MAC", "TensorFlow Lite Micro, M", "M a hop",
                   "of a window", "kB kernels", "kB model", "kB RAM"], rows)


def runtimes_table() -> str:
    """Float and integer forms of ONNX Runtime and LiteRT on one computer, and the generated C."""
    found = _results("runtimes")
    if not found:
        return "Not measured yet: `python bench/runtimes.py --runs RUN ... --write`.\n"
    cells: dict[tuple, dict] = {}
    for r in found["rows"]:
        key = (f"`{r['arch']}` `{r['preset']}`, {TASKS.get(r['task'], (r['task'],))[0]}", str(r["threads"]))
        cells.setdefault(key, {})[r["target"], r["form"]] = r
    rows = []
    for key, forms in cells.items():
        shipped = next((r for r in forms.values() if r["target"] == "arm" and r["shipped"]), None)
        rows.append([*key, _p50(forms.get(("arm", "float"))), _p50(forms.get(("arm", "int8"))),
                     f"{shipped['form']}, {runtimes.gain(shipped)}" if shipped else "-",
                     *(_p50(forms.get(("litert", form))) for form in ("float", "int8")),
                     runtimes.gain(forms["litert", "int8"]) if ("litert", "int8") in forms else "-",
                     _p50(forms.get(("host", "int8")))])
    machine, versions = found["machine"], found["machine"]["versions"]
    title = (f"{machine['cpu']}, {machine['cores']} cores, ONNX Runtime {versions.get('onnxruntime', '-')}, LiteRT "
             f"{versions.get('ai-edge-litert', '-')}: p50 of one window in ms; gain over its own float: middle "
             "and range of rounds in which all forms took turns\n\n")
    return title + _table(["network", "threads", "ONNX Runtime float", "int8", "shipped form, its gain", "LiteRT float",
                           "int8", "gain of int8", "generated C"], rows)


def parity_table() -> str:
    """Every runtime against the reference on records' windows."""
    found = _results("parity")
    if not found:
        return "Not compared yet: `python bench/parity.py --run RUN ... --target arm litert --data DIR --write`.\n"
    cells: dict[str, dict] = {}
    for r in found["rows"]:
        cells.setdefault(r["run"], {})[r["target"]] = r
    rows = [[f"`{run}`", *(_agreement(cells[run].get(t)) for t in PARITY)]
            for run in sorted(cells, key=lambda name: (name.split("-")[-1], name.split("-")[-2], name))]
    return _table(["run", "`host` (generated C)", "`arm` (ONNX Runtime)", "`litert`", "`jetson`, run by ONNX Runtime"],
                  rows)


def _agreement(row: dict | None) -> str:
    if row is None:
        return "-"
    a = row["agreement"]
    text = f"{100 * a['labels']:.2f} %, {a['p99']:g}, {a['worst']}"
    return text if row["agrees"] else f"**{text}**"


def bridge_table() -> str:
    """A long session with every moment accounted for, the cost at real time, damaged bytes."""
    if not BRIDGE.is_file():
        return "Not measured yet: `python bench/bridge.py --write`.\n"
    found = json.loads(BRIDGE.read_text())
    writers = {"endurance": _endurance, "endurance_classified": _endurance, "live": _live, "live_classified": _live,
               "fuzz": _fuzz}
    return "\n".join(write(found[name]) for name, write in writers.items() if name in found)


def _where(part: dict) -> str:
    return f"{part['machine']['cpu']}, {part['machine']['cores']} cores, Python {part['machine']['python']}"


def _endurance(r: dict) -> str:
    memory = r["rss_mb_by_hour"]
    rows = [["signal", f"{r['hours']:g} h, {r['channels']} channels at {r['fs']:g} Hz, `{r['protocol']}`, "
             f"{len(r['leads'])} leads{', `' + r['model'] + '`' if r['model'] else ', no model'}"],
            ["times real time", f"{r['times_real_time']:.0f}x, {r['times_real_time_cpu']:.0f}x by processor time"],
            ["moments unaccounted for", f"{r['unaccounted']:,} of {r['sent']:,}"],
            ["touched by faults on the line", f"{r['touched']:,}; missing {r['lost_touched']:,}, with another value "
             f"{r['wrong']:,}"],
            ["came whole, missing or misplaced", f"{r['lost_untouched']:,}, {r['wrong_untouched']:,}"]]
    if memory:
        rows.append(["memory after each hour", f"{memory[0]:.1f} MB after the first, at most {max(memory):.1f}, "
                     f"{memory[-1]:.1f} after the last"])
    return f"As fast as it goes ({_where(r)}):\n\n" + _table(["what", "found"], rows)


def _live(r: dict) -> str:
    names = {"bridge": "the bridge's own", "from_the_last_moment": "from the taking of the last moment it needs",
             "from_any_moment": "from the taking of any moment, the wait for the hop included"}
    rows = [[names[k], str(v["count"]), *(f"{v[f'p{p}_ms']:.1f}" for p in (50, 95, 99))]
            for k, v in r["latency"].items() if v["count"]]
    title = (f"At real time on a pseudo terminal ({_where(r)}): {100 * r['share_of_a_core']:.1f} % of a core, "
             f"{r['channels']} channels, {len(r['leads'])} leads"
             f"{', `' + r['model'] + '`' if r['model'] else ', no model'}\n")
    return title + ("\n" + _table(["delay of a decision, ms", "n", "p50", "p95", "p99"], rows) if rows else "")


def _fuzz(r: dict) -> str:
    rows = [[f"`{f['profile']}`", f["check"], f"{f['bytes']:,}", f"{f['touched']:,}", f"{f['moments_sent']:,}",
             f"{f['moments']:,}", f"{f['wrong']:,}", f"{f['held_bytes'] / 1000:.1f}"] for f in r["profiles"]]
    return f"Damaged bytes ({_where(r)}), no exception:\n\n" + _table(
        ["front-end", "check", "bytes", "frames touched", "moments sent", "came out", "wrong", "kB held"], rows)


def _p50(row: dict | None) -> str:
    return f"{row['p50_ms']:.3f}" if row else "-"


def _results(name: str) -> dict | None:
    path = sweep.RESULTS.parent / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


TABLES = {"sweep": sweep_table, "ablation": ablation_table, "stream": stream_table, "memory": memory_table,
          "labels": labels_table, "distill": distill_table, "kernels": kernels_table, "mcu": mcu_table,
          "runtimes": runtimes_table, "parity": parity_table,
          "bridge": bridge_table}


def rendered(text: str) -> str:
    """A text with every marked table written anew."""
    def table(found: re.Match) -> str:
        start, name, _, end = found.groups()
        return f"{start}\n{TABLES[say.choose(name, TABLES, 'table')]()}\n{end}"
    opened, closed = text.count("<!-- table: "), len(MARKED.findall(text))
    if opened != closed:
        say.fail(f"{opened} tables are opened and {closed} are closed", "<!-- table: NAME --> ... <!-- end -->")
    return MARKED.sub(table, text)


def _forms(cell: dict) -> list[str]:
    return [_value(figure(cell, FLOAT)), f"**{_value(figure(cell, INT8))}**", _difference(figure(cell, INT8))]


def _beats_header(task: str) -> list[str]:
    return ["V Se / +P", "S Se / +P", "called S of the others"] if task == "mitbih" else []


def _beats(cell: dict) -> list[str]:
    """int8 figures of the classes that beats are judged by."""
    if cell["task"] != "mitbih":
        return []
    def pair(name):
        c = cell["classes"][name][INT8]
        return f"{c['se']:.3f} / {c['ppv']:.3f}"
    return [pair("V"), pair("S"), f"{100 * cell['forms'][INT8]['false_s']:.2f} %"]


def _cost(cell: dict) -> list[str]:
    return [_kilo(cell["weight_bytes"]), _kilo(cell["ram"]["ram_bytes"]), f"{cell['macs'] / 1e6:.1f}"]


def _count(cells: dict[str, dict]) -> str:
    """How much was judged: the same rows for all."""
    first = next(iter(cells.values()))
    if first["units"] == first["rows"]:
        return f"{first['rows']:,} records"
    return f"{first['rows']:,} beats of {first['units']} records"


def _value(f: dict) -> str:
    low, high = f["95"]
    return f"{f['value']:.3f} [{low:.3f}, {high:.3f}]"


def _difference(f: dict) -> str:
    low, high = f["difference_95"]
    return f"{100 * f['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _kilo(size: int) -> str:
    return f"{size / 1000:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--readme", type=pathlib.Path, default=sweep.ROOT / "README.md", help="the file with the markers")
    p.add_argument("--check", action="store_true", help="write nothing; fail when a table is out of date")
    return p


def main(args) -> dict:
    """Write or check."""
    text = args.readme.read_text()
    new = rendered(text)
    names = [name for _, name, _, _ in MARKED.findall(text)]
    if args.check and new != text:
        say.fail(f"the tables of {args.readme.name} are out of date", "what the figures say", "python bench/tables.py")
    if new != text:
        runs.write(args.readme.parent, {args.readme.name: new})
    say.info(f"{args.readme.name}: {', '.join(names) or 'no table'} {'written' if new != text else 'up to date'}")
    return {"tables": names, "changed": new != text}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
