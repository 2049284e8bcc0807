# SPDX-License-Identifier: Apache-2.0
"""Where a network looks: receptive fields, and the window, hop and offset of each task.

A *column* is one time step at the output of the local layers: column j sees samples j * stride - left .. j * stride +
right of the lead. Standard library only; everything counts samples at the task's fs unless the name says columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.say import fail

SETTLE_S = 2    # the front end's filters settle; the first window starts here when the record is long enough


@dataclass(frozen=True)
class Span:
    """Receptive field of a chain of layers: samples before and after the anchor j * stride of an output step."""

    left: int = 0
    right: int = 0
    stride: int = 1

    def conv(self, kernel: int, stride: int = 1, pad: int | None = None) -> Span:
        """The span after a convolution or pooling over time; `pad` defaults to (kernel - 1) // 2."""
        pad = (kernel - 1) // 2 if pad is None else pad
        return Span(self.left + pad * self.stride, self.right + (kernel - 1 - pad) * self.stride, self.stride * stride)

    def band(self, half: int) -> Span:
        """The span after attention to `half` steps on either side."""
        return replace(self, left=self.left + half * self.stride, right=self.right + half * self.stride)

    def join(self, other: Span) -> Span:
        """The span of two parallel paths that are added."""
        assert self.stride == other.stride
        return Span(max(self.left, other.left), max(self.right, other.right), self.stride)


@dataclass(frozen=True)
class Hop:
    """A window every `hop` samples; `core` samples are decided on, the receptive field's margins come on top."""

    core: int
    hop: int


@dataclass(frozen=True)
class Beat:
    """A window at each R peak: `before` samples up to R, R itself and `after - 1` samples more; no margins."""

    before: int
    after: int


# 250 Hz. Hop 256 is the multiple of the presets' total stride 32 nearest to one second; the core of 5.8 s leaves room
# for the margins in 8 s, so that a 10 s record still holds one window after the front end has all but settled.
HOP = Hop(core=1440, hop=256)
BEAT = Beat(before=128, after=160)
WINDOWS: dict[str, Hop | Beat] = {"mitbih": BEAT}


def task_window(task: str, trigger: str = "hop") -> Hop | Beat:
    """The window of a task by name; tasks without an entry of their own get the default of their trigger."""
    return WINDOWS.get(task, BEAT if trigger == "r-peak" else HOP)


@dataclass(frozen=True)
class Geometry:
    """What a network needs to see for one decision.

    A crop of `window` samples gives window / stride columns; the first `left` and the last `right` of them could see
    the crop's edges and are dropped; the `columns` between are decided on. Beat windows drop none.
    """

    window: int
    stride: int
    columns: int
    left: int
    right: int
    field: int              # receptive field of one column, samples
    trigger: str            # hop | r-peak
    hop: int = 0            # samples between windows, kind hop
    offset: int = 0         # index of R in the window, kind r-peak
    streaming: bool = True  # columns are computed once over an endless record
    fs: int = 250           # Hz

    def starts(self, length: int, settle: int) -> range:
        """First samples of all windows of a record of `length` samples, `settle` of them settling.

        All are multiples of the stride (absolute column phase). A record too short to settle starts earlier, never
        before 0; one shorter than a window has none (dataset.fill repeats it first).
        """
        last = length - self.window
        if last < 0:
            return range(0)
        first = min(settle, last) // self.stride * self.stride
        return range(first, last + 1, self.hop)


def geometry(span: Span, window: Hop | Beat) -> Geometry:
    """The geometry of local layers with receptive field `span` under a task's window."""
    stride, field = span.stride, span.left + span.right + 1
    if isinstance(window, Beat):
        length = window.before + window.after
        if length % stride:
            fail(f"a beat window of {length} samples does not fit the network's total stride {stride}",
                 f"before + after = a multiple of {stride}")
        return Geometry(length, stride, length // stride, 0, 0, field, "r-peak", offset=window.before,
                        streaming=False)
    if window.hop % stride or window.core % stride:
        fail(f"hop {window.hop} or core {window.core} does not fit the network's total stride {stride}",
             f"multiples of {stride}")
    left, right = -(-span.left // stride), -(-(span.right + 1) // stride) - 1
    columns = window.core // stride
    return Geometry((left + columns + right) * stride, stride, columns, left, right, field, "hop", hop=window.hop)
