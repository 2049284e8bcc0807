# SPDX-License-Identifier: Apache-2.0
"""Live leads from a serial front-end into the classifier, on this computer or on a board.

python firmware_bridge/live.py --run runs/demo --port sim
python firmware_bridge/live.py --run runs/af --port auto --leads ch1=I --target arm --record recordings
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say

RATE_S = 4.0            # of lines that say no rate: measured before the session begins


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Stream a front-end's leads into a classifier, and what it says to people and files.")
    p.add_argument("--run", metavar="R", help="run folder, built by targets/deploy.py; none: only watch")
    p.add_argument("--port", required=True, help="serial port, tcp://host:port, file:PATH, auto, or sim (no hardware)")
    p.add_argument("--protocol", default="auto", metavar="P", help="protocol or front-end (auto)")
    p.add_argument("--baud", type=int, help="of the port (the front-end's usual one)")
    p.add_argument("--leads", metavar="MAP", help="which channel is which lead: ch1=I,ch2=-II")
    p.add_argument("--nv-per-count", type=say.positive(float), metavar="NV", help="scale, where the device tells none")
    p.add_argument("--rate", type=say.positive(float), metavar="HZ", help="moments a second, if not the profile's")
    p.add_argument("--target", default="host", metavar="T",
                   help="what classifies: host, arm, litert, jetson, or mcu, our firmware on a board (host)")
    p.add_argument("--board-port", metavar="PORT", help="with --target mcu: the board's port, or emulate for QEMU")
    p.add_argument("--shadow", action="store_true", help="with --target mcu: decide here as well and compare")
    p.add_argument("--threads", type=int, default=1, help="of the runtime (1)")
    p.add_argument("--age", type=int, default=-1, help="of the patient in years, for models that ask")
    p.add_argument("--sex", choices=("M", "F"), help="of the patient, for models that ask")
    p.add_argument("--allow-rate", type=say.share, default=0.05, metavar="SHARE",
                   help="how far the measured rate may lie beside the profile's (0.05)")
    p.add_argument("--fault", default="", help="with --port sim: faults of simulate.py, such as drop=1e-3,unplug=20/5")
    p.add_argument("--record", metavar="DIR", help="keep the session as a WFDB record in this folder")
    p.add_argument("--jsonl", metavar="FILE", help="what happens as lines of JSON; - for standard output")
    p.add_argument("--jsonl-samples", action="store_true", help="the leads' samples among them")
    p.add_argument("--lsl", nargs="?", const="computer", choices=("computer", "network"),
                   help="the leads as an LSL outlet, announced on this computer or on the network too")
    p.add_argument("--mqtt", metavar="URL", help="decisions, beats and events to a broker: mqtts://host")
    p.add_argument("--mqtt-config", metavar="FILE", help="its username, password and certificates (sinks/mqtt.py)")
    p.add_argument("--tee", metavar="FILE", help="keep the raw bytes too, to be heard again with --port file:FILE")
    p.add_argument("--page", nargs="?", type=int, const=8300, metavar="PORT", help="live page for a browser (8300)")
    p.add_argument("--listen", metavar="ADDR", help="serve the page on this address, with a token (this computer only)")
    p.add_argument("--seconds", type=say.positive(float), help="end after so long")
    return p


def opened_model(args):
    """(manifest, graph) of the run, or (None, None)."""
    if args.run is None:
        return None, None
    from targets import target
    return target.open_run(args.run)


def connected(args, manifest):
    """(plug, line, talk, profile as the device says it is, bytes read too far)."""
    from firmware_bridge import ports, profiles
    simulated = args.port.partition(":")[0] == "sim"
    if args.port == "auto" or (args.protocol == "auto" and not simulated):
        from firmware_bridge import detect
        found = detect.detect(args.port, args.protocol, args.baud)
        say.info(found.why)
        port, profile, baud = found.port, found.profile, found.baud
    else:
        port, baud = args.port, args.baud
        profile = profiles.find("cyton" if args.protocol == "auto" else args.protocol)
    baud = baud or (profile.bauds or (115200,))[0]
    plug = ports.Plug(port, baud, profile.dtr, profile, tee=args.tee, faults=args.fault,
                      speed=1.0 if args.target == "mcu" else 0.0,       # of captures: a board computes in real time
                      leads=measured_leads(args, manifest, profile) if simulated else None)
    line = plug.open()
    talk = profiles.module(profile.protocol).Talk(profile)
    if profile.protocol == "edgelink":
        talk.settings = patient(args)
    if args.port.startswith("file:") and profile.check != "text":     # a recording does not answer
        return plug, line, talk, *(talk.replayed(line) if hasattr(talk, "replayed") else (profile, b""))
    try:
        profile, rest = talk.begin(line)
    except Exception:
        plug.close()
        raise
    return plug, line, talk, profile, rest


def measured_leads(args, manifest, profile) -> str | None:
    """What a simulated front-end measures: what was asked for, or what the model wants, on its first channels."""
    if args.leads or manifest is None:
        return args.leads
    names = [profile.channels[i].name for i in profile.ecg]
    return ",".join(f"{name}={lead}" for name, lead in zip(names, manifest.waveform.leads, strict=False))


def measured_rate(line, decoder, seconds: float = RATE_S) -> tuple[float, bytes]:
    """Moments a second of a device that does not say, as a whole number, and the bytes that it took."""
    from firmware_bridge.clock import Clock
    from firmware_bridge.wire import Block
    clock, count, data, until = Clock(250.0), 0, b"", line.clock() + 2 * seconds
    while line.clock() < until and clock.span * 250.0 / max(clock.fs, 1) < seconds:
        part = line.read(0.05)
        data += part
        for block in decoder.feed(part, line.clock()):
            if isinstance(block, Block):
                count += len(block.counts)
                clock.arrived(count, line.clock())
    if clock.span < 1:
        raise say.MissingError("the rate cannot be measured: too little comes in", "lines of numbers", "--rate 250")
    return float(round(clock.fs)), data


def patient(args) -> dict[str, int]:
    """Age and sex as a board takes them, if they were given."""
    from train.sides import sex_code
    known = {"age": args.age, "sex": sex_code(args.sex)}
    return {key: value for key, value in known.items() if value != {"age": -1, "sex": 0}[key]}


def classifiers(args, manifest, graph, profile, fs: float):
    """(what classifies, its shadow), each may be None."""
    if manifest is None:
        return None, None
    from firmware_bridge import board, classify, results
    from train.sides import sex_code
    if args.target == "mcu" and profile.protocol == "edgelink":
        if args.shadow:
            raise say.UserError("a board with a sensor has no shadow: it began before its first sample came here",
                                "--shadow with a board that is sent its samples")
        return results.OnSensor(profile.heard, manifest, fs), None
    if args.target != "mcu":
        if args.board_port or args.shadow:
            raise say.UserError(f"--{'board-port' if args.board_port else 'shadow'} with --target {args.target}",
                                "--target mcu", "python bench/parity.py compares the others with the reference")
        local = classify.local(args.run, args.target, manifest, graph, fs, args.threads)
        local.decider.patient(args.age, sex_code(args.sex))
        return local, None
    if not args.board_port:
        raise say.UserError("--target mcu needs the board's line beside the front-end's", "--board-port PORT",
                            "without a board: --board-port emulate; a board with a sensor: --protocol edgelink")
    twin = shadow(args, manifest, graph, fs) if args.shadow else None
    known = patient(args)
    there = board.opened(args.run, args.board_port, manifest, fs, age=known.get("age", -1), sex=known.get("sex", 0))
    return there, board.Mirror(there, twin) if twin else None


def shadow(args, manifest, graph, fs: float):
    """The host's build as a classifier, with the bits of a board; compiled now where there is none."""
    import tempfile

    from firmware_bridge.classify import Local
    from targets import host, target, twin
    from train.sides import sex_code
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = pathlib.Path(folder)
        library = target.open_build(args.run, "host", manifest).path if "host" in target.read_builds(args.run) else \
            twin.build(graph, manifest, work, objects=twin.Objects(work / "objects", host.FLAGS))
        local = Local(manifest, twin.Twin(library, graph, fs, manifest.fs), fs)
    local.decider.patient(args.age, sex_code(args.sex))
    return local


def others(args) -> list:
    """Sinks that keep the session or pass it on, as asked for."""
    sinks = []
    if args.record:
        from firmware_bridge.sinks.recorder import Recorder
        sinks.append(Recorder(args.record))
    if args.jsonl:
        from firmware_bridge.sinks.jsonl import JsonLines
        if args.jsonl == "-" and args.json:
            raise say.UserError("--json and --jsonl - both want standard output", "one of them", "--jsonl FILE")
        sinks.append(JsonLines(args.jsonl, args.jsonl_samples))
    if args.lsl:
        from firmware_bridge.sinks.lsl import LslOutlet
        sinks.append(LslOutlet(args.lsl))
    if args.mqtt:
        from firmware_bridge.sinks.mqtt import MqttClient
        sinks.append(MqttClient(args.mqtt, args.mqtt_config))
    return sinks


def made_bridge(args, manifest, graph, profile, fs: float):
    """The bridge with everything that hangs on it."""
    import time
    from dataclasses import replace

    from firmware_bridge import leads, profiles
    from firmware_bridge.bridge import Bridge
    from firmware_bridge.session import Session
    from firmware_bridge.sinks import page
    from firmware_bridge.sinks.terminal import Terminal
    from firmware_bridge.watch import Watch
    wanted = manifest.waveform.leads if manifest else None
    wiring = leads.wire(profile, wanted, args.leads, args.nv_per_count)
    if manifest is None:
        from train.frontend import design
        spec = design(250)
    else:
        spec = manifest.frontend
    session = Session(replace(profile, fs=fs), fs, wiring.leads, manifest, time.time(),
                      {"leads": args.leads or "", "nv_per_count": args.nv_per_count, "target": args.target,
                       "port": args.port})
    decoder = profiles.module(profile.protocol).Decoder(profile)
    sinks = [Terminal(), *page.asked(args.page, args.listen), *others(args)]
    classifier, twin = classifiers(args, manifest, graph, profile, fs)
    bridge = Bridge(session, decoder, wiring, Watch(spec, fs, wiring.leads), sinks, classifier, twin, args.allow_rate)
    if hasattr(classifier, "timeline"):
        classifier.timeline = bridge.timeline
    return bridge


def main(args) -> dict:
    """One session, until Ctrl-C, --seconds or the end of a recording."""
    import signal
    import time

    from firmware_bridge import profiles
    from firmware_bridge.loop import Loop
    manifest, graph = opened_model(args)
    plug, line, talk, profile, rest = connected(args, manifest)
    try:
        fs = args.rate or profile.fs
        if not fs:
            fs, more = measured_rate(line, profiles.module(profile.protocol).Decoder(profile))
            rest += more
            say.info(f"measured: {fs:g} moments a second")
        bridge = made_bridge(args, manifest, graph, profile, fs)
        if args.board_port and not args.port.startswith("file:"):
            rest = b""                      # the board took its time: the session begins now, without a hole
            while line.read(0.0):
                pass
        ended = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.append(True))
        until = time.monotonic() + args.seconds if args.seconds else float("inf")
        loop = Loop(bridge, plug, talk)
        loop.run(line, rest, lambda: bool(ended) or time.monotonic() >= until)
    finally:
        plug.close()
    return summary(bridge, loop)


def summary(bridge, loop) -> dict:
    """What became of every byte and every moment."""
    from dataclasses import asdict
    return {"session": bridge.session.id, "profile": bridge.session.profile.name, "fs": bridge.session.fs,
            "measured_fs": bridge.timeline.clock.fs, "leads": list(bridge.session.leads),
            "model": bridge.session.manifest.identity.hex() if bridge.session.manifest else None,
            "wire": asdict(bridge.decoder.stats), "moments": asdict(bridge.timeline.tally), "unplugged": loop.lost,
            "agreement": asdict(bridge.agreement) if bridge.shadow else None,
            "board": bridge.classifier.counts() if hasattr(bridge.classifier, "counts") else None}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
