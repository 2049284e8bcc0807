# SPDX-License-Identifier: Apache-2.0
"""A day of signal through the generated C, an hour through firmware on an emulated board: equal decisions, none lost.

    python bench/endurance.py --run runs/af                              24 hours, C twin against the numpy reference
    python bench/endurance.py --run runs/af --board stm32f405 --hours 1  firmware in the emulator against the C twin

The signal is the synthetic patient's, another rhythm every minute, at the model's rate. The reference filters it with
train/frontend.py and decides by compress/reference.py, hour by hour; the twin and the firmware take it from the first
sample to the last without a reset.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import runs, say

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
MINUTE = 60             # seconds of a rhythm
AT_ONCE = 3600          # frames between looks at what came back


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Push a long signal through the generated C and count decisions that differ.")
    p.add_argument("--run", required=True, metavar="R", help="run folder of a streaming model")
    p.add_argument("--hours", type=say.positive(float), help="of signal (default: 24, with --board 1)")
    p.add_argument("--board", metavar="B", help="a board of targets/boards.toml that the emulator has")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    return p


def minutes(manifest, count: int):
    """int32 microvolts (lead, samples of a minute), minute after minute."""
    import numpy as np

    from train import synth
    leads = manifest.waveform.leads
    rhythms = [r for r in synth.RHYTHMS if r != "paced"]
    for k in range(count):
        made = synth.record(rhythms[k % len(rhythms)], k, MINUTE, manifest.fs,
                            tuple("I" if lead == "ECG" else lead for lead in leads))
        yield np.ascontiguousarray(made.uv, np.int32)


class Reference:
    """Decisions of an endless signal by numpy: front end, then the streaming graph on an hour at a time."""

    def __init__(self, manifest, graph):
        from train import frontend
        self.manifest, self.graph = manifest, graph
        self.front = frontend.FrontEnd(manifest.frontend, manifest.fs, manifest.waveform.shape[0])
        self.settle = frontend.SETTLE_S * manifest.fs
        self.codes = None

    def push(self, uv):
        """int8 logits (decision, class) of the hops that these microvolts complete."""
        import numpy as np

        from compress import reference
        from train import frontend
        codes = frontend.quantize(self.front.push(uv), round(self.manifest.waveform.lsb))
        skip = min(self.settle, codes.shape[1])
        self.settle -= skip
        codes = codes[:, skip:]
        self.codes = codes if self.codes is None else np.concatenate([self.codes, codes], 1)
        window, hop = self.manifest.window, self.manifest.trigger.hop
        count = (self.codes.shape[1] - window) // hop + 1
        if count <= 0:
            return np.zeros((0, len(self.manifest.classes)), np.int8)
        # a window by itself gives the bits of the stream, so a stretch may begin anywhere
        found = reference.stream(self.graph, {self.graph.inputs[0]: self.codes[:, :window + (count - 1) * hop]}, hop)
        self.codes = self.codes[:, count * hop:]
        return found


def twin_of(manifest, graph, folder: pathlib.Path):
    """The model compiled for this computer."""
    from targets import host, twin
    library = twin.build(graph, manifest, folder, objects=twin.Objects(folder / "objects", host.FLAGS))
    return twin.Twin(library, graph)


def against_reference(manifest, graph, hours: float, folder: pathlib.Path) -> dict:
    """The C twin beside the reference."""
    import numpy as np

    from train import score
    c, numpy_ = twin_of(manifest, graph, folder), Reference(manifest, graph)
    total, counts = np.zeros(len(manifest.classes), np.int64), 0
    found = {"decisions": 0, "different_logits": 0, "different_classes": 0, "seconds_c": 0.0}
    hour, many = [], round(hours * 60)
    with say.progress("minutes", many) as advance:
        for k, uv in enumerate(minutes(manifest, many)):
            hour.append(uv)
            advance(1)
            if len(hour) < 60 and k + 1 < many:
                continue
            signal, hour = np.concatenate(hour, 1), []
            started = time.perf_counter()
            got = c.decide(signal)
            found["seconds_c"] += time.perf_counter() - started
            logits = numpy_.push(signal)
            sums, n = score.vote(logits, 0)     # of all windows since the start, as the firmware adds them up
            rule = manifest.decision
            if rule.vote:
                raise say.UserError(f"{manifest.name} votes over {rule.vote} windows", "a model that votes over all")
            classes = score.decide(sums + total, n + counts, rule.rule, rule.offsets)
            if len(logits):
                total, counts = sums[-1] + total, int(n[-1]) + counts
            length = max(len(got), len(logits))
            same = min(len(got), len(logits))
            found["decisions"] += length
            found["different_logits"] += length - int((got["logits"][:same] == logits[:same]).all(1).sum())
            called = got["top"][:same] if rule.rule == "argmax" else _bits(got["present"][:same], len(total))
            equal = called == classes[:same]
            found["different_classes"] += length - int(equal.reshape(same, -1).all(1).sum())
    return found | {"hours": hours, "times_real_time": hours * 3600 / found["seconds_c"]}


def _bits(present, classes: int):
    import numpy as np
    return (present[:, None] >> np.arange(classes) & 1).astype(bool)


def on_board(manifest, graph, run: str, key: str, hours: float, folder: pathlib.Path) -> dict:
    """Firmware in the emulator beside the C twin."""
    from targets import device, live_emulation, mcu, target
    board = target.read_board(key, "mcu")
    out = pathlib.Path(run) / "mcu"
    mcu.lower(graph, manifest, out, board)
    built = mcu.build(out, board)
    c = twin_of(manifest, graph, folder)
    found = {"decisions": 0, "different_logits": 0, "different_classes": 0}
    started = time.perf_counter()
    with live_emulation.started(built.path, board) as (_, port, _):
        d = device.Device(device.SerialLine(port))
        d.expect(manifest.identity)
        d.start()
        done, many = 0, round(hours * 60)
        with say.progress("minutes", many) as advance:
            for uv in minutes(manifest, many):
                got, expected = d.inject(uv.T, 3, done), c.decide(uv)
                done += uv.shape[1]
                same = [(r.top, bytes(r.scores)) == (int(e["top"]), e["logits"].tobytes())
                        for r, e in zip(got, expected, strict=False)]
                found["decisions"] += max(len(got), len(expected))
                found["different_logits"] += max(len(got), len(expected)) - sum(same)
                advance(1)
        d.poll(2.0)
        status = d.statuses()[-1] if d.statuses() else None
    found["different_classes"] = found["different_logits"]
    counters = {k: v for k, v in vars(status).items() if isinstance(v, int)} if status else {}
    return found | {"hours": hours, "board": key, "skipped": d.skipped, "status": counters,
                    "times_real_time": hours * 3600 / (time.perf_counter() - started)}


def main(args) -> dict:
    """Run, print, keep."""
    from targets import target
    manifest, graph = target.open_run(args.run)
    if not manifest.streaming or len(graph.inputs) > 1:
        say.fail(f"{args.run} does not stream from the waveform alone", "a streaming model without side inputs")
    hours = args.hours or (1 if args.board else 24)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        found = on_board(manifest, graph, args.run, args.board, hours, work) if args.board else \
            against_reference(manifest, graph, hours, work)
    where = f"firmware on an emulated {args.board} against the C twin" if args.board else "C twin against the reference"
    say.info(f"{manifest.arch} {manifest.preset}, {hours:g} hours, {where}: {found['decisions']:,} decisions, "
             f"{found['different_logits']} with other logits, {found['different_classes']} with another class, "
             f"{found['times_real_time']:.0f}x real time")
    if args.board:
        say.info(f"results that the device let go: {found['skipped']}; its counters: {found['status']}")
    if found["different_logits"] or found["different_classes"] or found.get("skipped"):
        raise say.UserError("decisions differ", "identical decisions", "python bench/parity.py names the layer")
    result = found | {"arch": manifest.arch, "preset": manifest.preset, "machine": say.machine()}
    if args.write:
        name = f"endurance-{args.board or 'host'}.json"
        runs.write(RESULTS, {name: json.dumps(result, indent=1) + "\n"})
    return result


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
