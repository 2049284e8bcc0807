# SPDX-License-Identifier: Apache-2.0
"""How the tool talks: errors that finish the sentence, tables, progress, and one JSON object with --json.

Standard library at import; rich is loaded on first use and replaced by plain text when it is missing or in a pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import json
import os
import platform
import sys
import time

DONE, WRONG_INPUT, MISSING = 0, 1, 2


class UserError(Exception):
    """The user's input is wrong: what is wrong, what was expected, what to type next. Exit code 1."""

    code = WRONG_INPUT

    def __init__(self, what: str, expected: str = "", fix: str = ""):
        super().__init__(what)
        self.what, self.expected, self.fix = what, expected, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self):
        return type(self), (self.what, self.expected, self.fix)


class MissingError(UserError):
    """A device, tool or package is missing. Exit code 2."""

    code = MISSING


class ManifestError(UserError):
    """The manifest promises something this version cannot hold."""


class RecordError(UserError):
    """A recording is broken or does not hold what was asked of it."""


class GraphError(UserError):
    """A layer has no integer form, or a graph file does not hold what it says."""


def fail(what: str, expected: str = "", fix: str = ""):
    """Raise UserError(what, expected, fix)."""
    raise UserError(what, expected, fix)


def choose(value: str, allowed, what: str) -> str:
    """Return `value` if it is one of `allowed`, else fail with the nearest spelling."""
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), [str(n) for n in names], 1)
    raise UserError(f"unknown {what} {value!r}", ", ".join(map(str, names)), f"use {near[0]}" if near else "")


def need(module: str, extra: str) -> None:
    """Fail with the command that installs `module` when it is absent."""
    if importlib.util.find_spec(module) is None:
        raise MissingError(f"the Python package {module} is not installed", f"{module}, part of the '{extra}' extra",
                           f'pip install -e ".[{extra}]"')


class Parser(argparse.ArgumentParser):
    """argparse with exit code 1 for wrong input and a suggestion for a misspelt option."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)
        self.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
        self.add_argument("--trace", action="store_true", help="show the traceback of an error")

    def error(self, message: str):
        options = [s for a in self._actions for s in a.option_strings]
        near = [m for word in message.split() for m in difflib.get_close_matches(word.split("=")[0], options, 1, 0.7)]
        hint = f"did you mean {near[0]}? " if near and "unrecognized" in message else ""
        raise UserError(message, "", f"{hint}python {sys.argv[0]} --help")


def info(*words) -> None:
    """One line for people; goes to stderr when stdout belongs to --json."""
    print(*words, file=sys.stderr if _json else sys.stdout, flush=True)


def positive(kind):
    """The type of an option that must be above 0."""
    def parse(text: str):
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value
    return parse


def share(text: str) -> float:
    """The type of an option above 0 and up to 1."""
    value = positive(float)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return value


def warn(text: str) -> None:
    """One warning line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def table(rows, header) -> None:
    """Print aligned columns: the first left, the others right."""
    cells = [list(map(str, header))] + [[_cell(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    for n, row in enumerate(cells):
        first, *rest = row
        info("  ".join([first.ljust(widths[0])] + [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]).rstrip())
        if n == 0:
            info("  ".join("-" * w for w in widths))


def _cell(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


@contextlib.contextmanager
def progress(label: str, total: int):
    """Yield advance(n=1, note=""); a bar with time left on a terminal, a line every ten seconds in a pipe."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}")]
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            job = bar.add_task(label, total=total, note="")
            yield lambda n=1, note="": bar.update(job, advance=n, note=note)
        return
    state = {"done": 0, "said": time.monotonic(), "start": time.monotonic()}

    def advance(n=1, note=""):
        state["done"] += n
        now = time.monotonic()
        if now - state["said"] >= 10 or state["done"] == total:
            left = (now - state["start"]) / max(state["done"], 1) * (total - state["done"])
            print(f"{label} {state['done']}/{total}  {left:.0f} s left  {note}".rstrip(), file=sys.stderr, flush=True)
            state["said"] = now
    yield advance


def machine() -> dict:
    """What a measurement was taken on: processor, cores, memory, Python and library versions."""
    from importlib import metadata
    versions = {}
    for name in ("numpy", "torch", "torchao", "onnx", "onnxruntime", "ai-edge-litert", "wfdb"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version(),
            "versions": versions}


_json = False


def run(main, parser: Parser, argv=None) -> int:
    """Parse `argv`, call main(args) -> dict of results or None, and return the exit code.

    A UserError becomes three lines on stderr and its exit code; anything else is a defect of ours and is shown whole
    with --trace. With --json, stdout carries one object: the result, or {"error": ...}.
    """
    global _json
    words = sys.argv[1:] if argv is None else list(argv)
    before, trace = _json, "--trace" in words
    _json = "--json" in words
    try:
        return _run(main, parser, words, trace)
    finally:
        _json = before          # of the program that calls this one


def _run(main, parser: Parser, words: list[str], trace: bool) -> int:
    try:
        result = main(parser.parse_args(words))
    except UserError as error:
        if trace:
            raise
        if _json:
            print(json.dumps({"error": {"what": error.what, "expected": error.expected, "fix": error.fix}}))
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped by the user; what was written so far is complete", file=sys.stderr)
        return 130
    except OSError as error:
        if trace:
            raise
        print(f"error: {error.strerror or error}: {error.filename or ''}\n"
              "  fix: check the path, its permissions and the space left on the disk; --trace shows where",
              file=sys.stderr)
        return WRONG_INPUT
    if _json:
        print(json.dumps(result if result is not None else {}))
    return DONE
