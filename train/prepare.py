# SPDX-License-Identifier: Apache-2.0
"""[run] Turn a data folder into memory-mapped shards once: every record read, its leads picked, through the front end.

    python train/prepare.py --task cinc2017 --data DIR          the first time: all cores, restartable after a kill
    python train/prepare.py --task cinc2017 --data DIR          from then on: found in the cache at once

The cache folder is named after the task and a hash of all that the samples depend on: the data folder's listing
(names, sizes, times), the leads, the task, the code of readers, front end and synthetic patient. `train/shards.py`
reads it.
Gaps are not marked in the shards: a sample that is missing holds the last valid value before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np

from train import frontend, records, runs, say, synth, tasks, template
from train.leads import parse_map
from train.records import Entry, Record
from train.say import MissingError, RecordError, UserError
from train.shards import VERSION, Shards, beat_dtype, open_shards

ROOT = Path(__file__).resolve().parents[1]
# Modules whose code decides what a shard holds: of any task, of made records, of records from files, of beats.
SOURCES = {"any": ("prepare", "shards", "tasks", "frontend", "resample", "leads", "records"),
           "made": ("synth", "heart", "rhythms", "noise"), "files": ("headers", "samples"),
           "beats": ("rpeak", "template")}
SHARD_RECORDS = 256             # as many rows in lockstep as the front end takes at once
SHARD_BYTES = 24 << 20          # of the data set's files: about 100 MB of working memory per process

__all__ = ["open_shards", "prepare"]


def prepare(task: str | tasks.Task, folder: str | Path | None = None, cache: str | Path | None = None,
            leads: Sequence[str] | str | None = None, jobs: int | None = None, skip_broken: bool = False) -> Path:
    """Prepare the records of `folder` for `task` and return the cache folder; instant when that was done before.

    `leads` is a map as in leads.parse_map (default: the task's leads), `cache` the parent of all cache folders
    (default: $LEADEDGE_CACHE, else cache/ beside train/), `jobs` the number of processes (default: one per core). The
    synthetic task takes no folder. RecordError for the first broken record, unless skip_broken leaves them out and
    counts them.
    UserError when the disk is full; finished shards are kept.
    """
    task = tasks.find(task)
    names, sources = parse_map(leads or task.leads)
    listing = _listing(task, folder)
    target = _cache_root(cache) / f"{task.name}-{_key(task, names, sources, listing)}"
    if not (target / "index.json").is_file():
        _make(task, folder, target, names, sources, listing, jobs or _cores(), skip_broken)
    _refuse_skipped(open_shards(target), skip_broken)
    return target


def _refuse_skipped(shards: Shards, skip_broken: bool) -> None:
    """What one run left out on request, another must not take for complete."""
    if shards.skipped and not skip_broken:
        raise RecordError(f"{len(shards.skipped)} records were left out of {shards.path}; the first: "
                          f"{shards.skipped[0]['why']}", "a data folder without broken records",
                          f"repair the folder, or use the other {len(shards)} with --skip-broken")


def _cache_root(cache: str | Path | None) -> Path:
    return Path(cache or os.environ.get("LEADEDGE_CACHE") or ROOT / "cache")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- what the samples depend on

def _listing(task: tasks.Task, folder: str | Path | None) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of every file under the data folder, in order."""
    if task.dataset == "synthetic":
        if folder is not None:
            raise UserError("the synthetic task takes no data folder", "records are made on the spot",
                            "leave out --data")
        return []
    if folder is None:
        kind = records.DATASETS[task.dataset]
        raise UserError(f"task {task.name} needs a data folder", kind.expected,
                        f"pass --data DIR; to get the records: {kind.source}")
    return sorted(_files(str(folder), ""))


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            else:
                state = entry.stat()
                yield prefix + entry.name, state.st_size, state.st_mtime_ns


def _key(task: tasks.Task, names: Sequence[str], sources: Sequence[str], listing: list) -> str:
    """12 hexadecimal digits."""
    facts = [VERSION, task.name, [(c.name, c.code) for c in task.classes], task.fs, names, sources, listing]
    digest = hashlib.sha256(json.dumps(facts).encode())
    kinds = ["any", "made" if task.dataset == "synthetic" else "files"]
    kinds += ["beats"] if task.trigger == "r-peak" else []
    modules = [ROOT / "train" / f"{name}.py" for kind in kinds for name in SOURCES[kind]]
    digest.update(runs.sha256(*modules).encode())
    return digest.hexdigest()[:12]


# ---- one shard

@dataclass(frozen=True)
class Job:
    """What a process needs to make one shard."""

    number: int
    task: tasks.Task
    entries: tuple[Entry, ...]
    sources: tuple[str, ...]
    frontend: dict
    target: Path
    skip_broken: bool


def make_shard(job: Job) -> int:
    """Read, pick, filter and write the records of one shard; returns how many were given. The .json comes last."""
    good: list[tuple[Entry, Record, np.ndarray]] = []
    skipped = []
    for entry in job.entries:
        try:
            good.append((entry, *_read(job, entry)))
        except MissingError:
            raise
        except UserError as error:
            if not job.skip_broken:
                raise
            skipped.append({"name": entry.name, "why": error.what})
    described, signals, beats, at, first = [], [], [], 0, 0
    for (entry, record, _), signal in zip(good, _filtered(job.frontend, good), strict=True):
        facts = _describe(job.task, entry, record, signal) | {"shard": job.number, "start": at}
        if job.task.trigger == "r-peak":
            table, facts["flutter"] = _beats(job.task, job.frontend, record, signal)
            facts["beats"] = [first, first + len(table)]
            beats.append(table)
            first += len(table)
        described.append(facts)
        signals.append(signal.astype("<i2", copy=False).tobytes())
        at += signal.size
    _write_shard(job, {"records": described, "skipped": skipped, "bytes": 2 * at}, b"".join(signals), beats)
    return len(job.entries)


def _read(job: Job, entry: Entry) -> tuple[Record, np.ndarray]:
    """The record and its picked leads, int32 (lead, time); every reason to refuse the record shows here."""
    if job.task.dataset == "synthetic":
        split, _, k = entry.name.partition("-")
        record = synth.member(int(k), tasks.SYNTHETIC_SEED, split, fs=job.task.fs,
                              leads=[source.lstrip("-") for source in job.sources])
    else:
        record = records.read(job.task.dataset, entry)
    uv = record.pick(job.sources)
    if not uv.shape[1]:
        raise RecordError(f"{entry.path}: no samples", "at least one", "leave the record out with --skip-broken")
    frontend.delay(job.frontend, record.fs)         # refuses a rate that cannot be resampled
    job.task.labels(record.labels)
    return record, uv


def _filtered(spec: dict, good: list[tuple[Entry, Record, np.ndarray]]) -> list[np.ndarray]:
    """int16 (lead, length) per record, records of one rate side by side."""
    result: list = [None] * len(good)
    for fs in {record.fs for _, record, _ in good}:
        group = [n for n, (_, record, _) in enumerate(good) if record.fs == fs]
        for n, signal in zip(group, frontend.filter_records(spec, [good[n][2] for n in group], fs), strict=True):
            result[n] = signal
    return result


def _describe(task: tasks.Task, entry: Entry, record: Record, signal: np.ndarray) -> dict:
    return {"name": entry.name, "patient": record.patient, "fold": entry.fold, "split": task.split(entry),
            "labels": list(task.labels(record.labels)), "length": signal.shape[1],
            "duration_s": round(record.uv.shape[1] / record.fs, 3), "age": record.age, "sex": record.sex}


def _beats(task: tasks.Task, spec: dict, record: Record, signal: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """(annotated beats, stretches of ventricular flutter), both in samples of the signal.

    A beat in the last few hundredths of a second, whose R leaves the front end after the record's end, is not listed.
    """
    marks = record.annotations["atr"]
    length = signal.shape[1]
    at = frontend.to_output(spec, marks.sample, record.fs)
    symbol = np.array(marks.symbol, "U1")
    kept = np.isin(symbol, list(task.codes)) & (at >= 0) & (at < length)
    features = template.beat_features(signal[0], at[kept], task.fs)
    table = np.empty(int(kept.sum()), beat_dtype(features.shape[1]))
    table["sample"], table["symbol"], table["rr"] = at[kept], symbol[kept], features
    table["label"] = [task.label(s) for s in symbol[kept]]
    begins, ends = at[symbol == "["].tolist(), at[symbol == "]"].tolist()
    return table, [[begin, min([e for e in ends if e > begin], default=length)] for begin in begins]


def _write_shard(job: Job, facts: dict, signal: bytes, beats: list[np.ndarray]) -> None:
    files: dict[str, bytes | str] = {f"{job.number:05d}.i16": signal}
    if job.task.trigger == "r-peak":
        out = io.BytesIO()
        np.save(out, np.concatenate(beats) if beats else np.empty(0, beat_dtype(len(template.BEAT_NAMES))))
        files[f"{job.number:05d}.npy"] = out.getvalue()
    _write(job.target, files | {f"{job.number:05d}.json": json.dumps(facts)})


def _write(target: Path, files: dict[str, bytes | str]) -> None:
    try:
        runs.write(target, files)
    except UserError as error:
        raise UserError(error.what, "room for the prepared records; finished shards are kept and used again",
                        "free some space, or set LEADEDGE_CACHE to a folder on another disk, then repeat the command"
                        ) from error


# ---- all shards

def _make(task, folder, target: Path, names, sources, listing, jobs: int, skip_broken: bool) -> None:
    """Make the shards that are not there yet, then the index."""
    skipped: list[dict] = []
    if task.dataset == "synthetic":
        entries = _synthetic_entries()
    else:
        entries = records.catalog(task.dataset, folder, skipped if skip_broken else None)
    excluded = [entry.name for entry in entries if task.split(entry) == "excluded"]
    entries = [entry for entry in entries if entry.name not in excluded]
    spec = frontend.design(task.fs)
    plan = [Job(n, task, tuple(part), sources, spec, target, skip_broken)
            for n, part in enumerate(_parts(entries, folder, listing))]
    missing = [job for job in plan if not _finished(job)]
    with say.progress(f"preparing {task.name}", sum(len(job.entries) for job in missing)) as advance:
        for done in _run(missing, jobs):
            advance(done)
    made = [json.loads((target / f"{job.number:05d}.json").read_text()) for job in plan]
    skipped += [s for facts in made for s in facts["skipped"]]
    described = [r for facts in made for r in facts["records"]]
    if not described:
        why = skipped[0]["why"] if skipped else f"{', '.join(excluded)}: excluded by the rule of the task"
        raise RecordError(f"no record of {folder} can be used; the first: {why}",
                          f"at least one record of task {task.name} with the leads {','.join(names)}",
                          "repair the folder, or pass other --leads")
    _write(target, {"index.json": json.dumps({
        "version": VERSION, "task": task.name, "classes": [c.name for c in task.classes], "fs": task.fs, "leads": names,
        "sources": sources, "frontend": spec, "excluded": excluded,
        "skipped": skipped, "records": described})})
    for part in target.glob(".*.part"):             # left behind by a process that was killed while it wrote
        if not _alive(int(part.name.split(".")[-2])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """True when a process with that number may exist; elsewhere than on POSIX nobody can tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _synthetic_entries() -> list[Entry]:
    return [Entry(f"{split}-{k:05d}", Path(), fold=records.sha1_fold(f"{split}-{k:05d}"))
            for split, count in tasks.SYNTHETIC_RECORDS.items() for k in range(count)]


def _parts(entries: list[Entry], folder, listing: list) -> Iterator[list[Entry]]:
    """Cut the catalog into shards by number of records and by size of their files."""
    sizes: Counter[str] = Counter()
    for name, nbytes, _ in listing:
        sizes[str(Path(folder, name).with_suffix(""))] += nbytes
    sharing = Counter(str(entry.path) for entry in entries)         # all exams of an HDF5 part share its bytes
    part, nbytes = [], 0.0
    for entry in entries:
        size = sizes[str(entry.path.with_suffix(""))] / sharing[str(entry.path)] if listing else 0
        if part and (len(part) == SHARD_RECORDS or nbytes + size > SHARD_BYTES):
            yield part
            part, nbytes = [], 0.0
        part.append(entry)
        nbytes += size
    if part:
        yield part


def _finished(job: Job) -> bool:
    """True when the shard was written whole: its .json is there, names the job's records, and the sizes agree."""
    stem = job.target / f"{job.number:05d}"
    try:
        facts = json.loads(stem.with_suffix(".json").read_text())
        names = Counter(r["name"] for r in facts["records"] + facts["skipped"])
        whole = stem.with_suffix(".i16").stat().st_size == facts["bytes"]
        return whole and names == Counter(entry.name for entry in job.entries) and (
            job.task.trigger != "r-peak" or stem.with_suffix(".npy").is_file())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _run(missing: list[Job], jobs: int) -> Iterator[int]:
    """Run the jobs, in this process when one is enough, and yield how many records each has done."""
    if min(jobs, len(missing)) <= 1:
        yield from map(make_shard, missing)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    with ProcessPoolExecutor(min(jobs, len(missing)), multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(make_shard, job) for job in missing]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError("a process died while it prepared records", "enough memory for every process",
                            f"repeat the command with --jobs {max(1, jobs // 2)}; finished shards are kept") from None
        finally:
            pool.shutdown(cancel_futures=True)


# ---- command line

def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Prepare the records of a data folder for training: once, on all cores, restartable.")
    p.add_argument("--task", required=True, help=", ".join(tasks.TASKS))
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--leads", help="for example I,II or ch1=I,ch2=-II (default: the task's)")
    p.add_argument("--skip-broken", action="store_true", help="leave broken records out and count them")
    p.add_argument("--jobs", type=int, help="processes (default: one per core)")
    return p


def main(args) -> dict:
    """Prepare, and say what is there."""
    start = time.monotonic()
    path = prepare(args.task, args.data, None, args.leads, args.jobs, args.skip_broken)
    seconds, shards = time.monotonic() - start, open_shards(path)
    splits = Counter(r["split"] for r in shards.records)
    hours = sum(r["duration_s"] for r in shards.records) / 3600
    say.info(f"{shards.task}: {len(shards)} records, {hours:.1f} h, leads {','.join(shards.leads)} at {shards.fs} Hz, "
             f"{', '.join(f'{n} {split}' for split, n in sorted(splits.items()))}: {path} ({seconds:.1f} s)")
    if shards.excluded:
        say.info(f"excluded by the rule of the task: {', '.join(shards.excluded)}")
    for left_out in shards.skipped[:5]:
        say.warn(f"left out {left_out['name']}: {left_out['why']}")
    if shards.skipped:
        say.warn(f"{len(shards.skipped)} records left out in all")
    return {"cache": str(path), "task": shards.task, "records": len(shards), "hours": round(hours, 3),
            "splits": dict(splits), "excluded": shards.excluded, "skipped": shards.skipped,
            "seconds": round(seconds, 3)}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
