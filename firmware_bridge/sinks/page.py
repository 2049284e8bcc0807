# SPDX-License-Identifier: Apache-2.0
"""The live page: a session in any browser, over HTTP and one WebSocket, served from a thread of its own.

What the page is told lies in one history of about half a minute, and a client is a place in it: whoever comes late gets
what is there at once, whoever is slow skips whole frames and is told how many. Nobody holds up the bridge.

Samples travel as binary frames (little-endian): u8 version 1, u8 bytes of a value (2 or 4), u16 leads, u32 moments,
i64 index of the first moment; then the microvolts of each lead, then one value a moment: bit l, lead l is off.
Everything else is JSON, as in sinks/jsonl.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import json
import secrets
import socket
import struct
import threading
from collections import Counter, deque
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from firmware_bridge.session import Decision, Gap, Session, Stretch
from firmware_bridge.sinks import jsonl
from train import say

FILES = Path(__file__).resolve().parents[1] / "page"
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
LOOPBACK = "127.0.0.1"
KEPT_S, KEPT = 30, 8192         # of history: seconds of the stream, and frames whatever they hold
BEHIND = 150                    # frames that a client may lag before it skips; so many are always kept
CLIENTS = 16
EACH_S = 1.0                    # between two totals
RECENT = 500                    # decisions that the latencies are of
EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)      # of the histogram, ms
END = '{"type": "end"}'
BEAT_S = (0.25, 0.35)           # before and after R, where a beat's class is shown
HEADERS = {"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                                      "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
           "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Page:
    """port: 0 for any that is free. listen: an address beyond this computer, which then asks for a token."""

    def __init__(self, port: int, listen: str | None = None):
        say.need("aiohttp", "page")
        self.token = secrets.token_urlsafe(16) if listen else ""
        self._socket = bound(listen or LOOPBACK, port)
        self.port = self._socket.getsockname()[1]
        self.history = History()
        self._totals, self._told = Totals(), 0.0
        self._held: list[Stretch] = []
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """What to open. An address that means "all" is printed as this computer's name."""
        host = self._socket.getsockname()[0]
        if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
            host = socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def begin(self, session: Session) -> None:
        """Serve from now on."""
        self.session, m = session, session.manifest
        self._hop = round(m.trigger.hop * session.fs / m.fs) if m and m.trigger.kind == "hop" else 0
        self.history.begin(json.dumps(jsonl.heading(session) | {"title": session.profile.title}), session.fs)
        self._server = Server(self.history, self._socket, self.token)
        self._server.start()

    def take(self, item) -> None:
        """Samples wait for the next tick; a gap comes after those before it."""
        if isinstance(item, Stretch):
            if self._held and self._held[-1].first + len(self._held[-1].counts) != item.first:
                self._samples()
            self._held.append(item)
            if item.first - self._held[0].first > self.session.fs:
                self._samples()
            return
        if isinstance(item, Gap):
            self._samples()
        self._totals.add(item)
        told = jsonl.record(item, self.session)
        self.history.add(json.dumps(told | self._span(item) if isinstance(item, Decision) else told), item_end(item))

    def tick(self, now: float) -> None:
        """Out with it."""
        self._samples()
        if now - self._told >= EACH_S:
            self._told = now
            self.history.add(json.dumps(self._totals.told()))
        self._server.wake()

    def end(self) -> None:
        """Tell the clients, and stop."""
        if self._server is None:
            return
        self._samples()
        self.history.add(json.dumps(self._totals.told()))
        self.history.add(END)
        self._server.stop()
        self._server = None

    def _samples(self) -> None:
        if self._held:
            self.history.add(packed(self._held), item_end(self._held[-1]))
            self._held = []

    def _span(self, d: Decision) -> dict:
        """Which moments a decision is shown at."""
        if d.beat is not None:
            before, after = (round(s * self.session.fs) for s in BEAT_S)
            return {"from": max(int(d.beat) - before, 0), "to": int(d.beat) + after}
        return {"from": max(int(d.index) - self._hop, 0), "to": int(d.index)}


def bound(address: str, port: int) -> socket.socket:
    """A socket that listens; UserError when it cannot."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except (OSError, OverflowError) as error:
        raise say.UserError(f"the page cannot be served on {address} port {port}: {error}",
                            "an address of this computer and a free port", "--page 0 takes any free port") from None


def packed(stretches: list[Stretch]) -> bytes:
    """One binary frame of stretches that follow each other; see the head of this file."""
    uv = np.concatenate([s.uv for s in stretches], 1)
    off = np.concatenate([s.lead_off for s in stretches])
    narrow = len(uv) <= 16 and -32768 <= uv.min(initial=0) and uv.max(initial=0) <= 32767
    kind, mask = (np.dtype("<i2"), np.dtype("<u2")) if narrow else (np.dtype("<i4"), np.dtype("<u4"))
    head = struct.pack("<BBHIq", 1, kind.itemsize, *uv.shape, stretches[0].first)
    return head + uv.astype(kind).tobytes() + off.astype(mask).tobytes()


def item_end(item) -> int:
    """The moment after the last one that an item is about."""
    if isinstance(item, Stretch):
        return item.first + len(item.counts)
    return item.first + item.length if isinstance(item, Gap) else item.index


class Totals:
    """What a client that comes late could not add up."""

    def __init__(self):
        self.decisions = self.compared = self.equal = 0
        self.missing, self.latency = Counter(), deque(maxlen=RECENT)

    def add(self, item) -> None:
        """Count it."""
        if isinstance(item, Gap):
            self.missing[item.reason] += item.length
        elif isinstance(item, Decision):
            self.decisions += 1
            self.latency.append(item.latency_ms)
            self.compared += item.agrees is not None
            self.equal += bool(item.agrees)

    def told(self) -> dict:
        """As JSON. counts: of the latencies below each edge and above the one before; the last above all."""
        ms = np.array(self.latency)
        p50, p95 = (round(float(v), 1) for v in np.percentile(ms, (50, 95))) if len(ms) else (None, None)
        counts = np.bincount(np.searchsorted(EDGES, ms, side="right"), minlength=len(EDGES) + 1)
        return {"type": "totals", "decisions": self.decisions, "compared": self.compared, "equal": self.equal,
                "missing": dict(self.missing), "p50": p50, "p95": p95, "edges": EDGES, "counts": counts.tolist()}


class History:
    """Frames (str or bytes) with a running number, the last KEPT_S seconds of them; any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._frames: deque[tuple[str | bytes, int]] = deque(maxlen=KEPT)
        self.count = 0                  # frames that ever came, so the number of the next one
        self.heading, self._kept, self._newest = "", 0, 0

    def begin(self, heading: str, fs: float) -> None:
        """heading: what every client gets first."""
        self.heading, self._kept = heading, round(KEPT_S * fs)

    def add(self, frame: str | bytes, until: int = 0) -> None:
        """until: the moment after the last one that the frame is about."""
        with self._lock:
            self._newest = max(self._newest, until)
            self._frames.append((frame, self._newest))
            self.count += 1
            while len(self._frames) > BEHIND and self._frames[0][1] < self._newest - self._kept:
                self._frames.popleft()

    def since(self, number: int) -> tuple[list[str | bytes], int]:
        """Frames from that number on, those that are still there, and the number of the next one."""
        with self._lock:
            first = self.count - len(self._frames)
            return [f for f, _ in itertools.islice(self._frames, max(number - first, 0), None)], self.count


class Server:
    """HTTP and WebSocket in a thread with an event loop of its own."""

    def __init__(self, history: History, sock: socket.socket, token: str):
        self.history, self.token, self._socket = history, token, sock
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._ready, self._woken = threading.Event(), False
        self._fresh, self._clients = asyncio.Event(), 0
        self._error: OSError | None = None

    # ---- called by the bridge

    def start(self) -> None:
        """Returns once clients are answered."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise say.UserError(f"the page's server does not start: {self._error}")

    def wake(self) -> None:
        """There is something new; at most one call waits in the loop."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._notify)

    def stop(self) -> None:
        """A second for the clients to read the rest, then all is closed."""
        if not self._thread.is_alive():
            return
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(FutureTimeout):
            future.result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    # ---- in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._error = error
        finally:
            self._ready.set()
        if self._error is None:
            self._loop.run_forever()
        self._loop.close()

    async def _serve(self) -> None:
        from aiohttp import web
        app = web.Application(middlewares=[self._guard()])
        for name in TYPES:
            app.router.add_get("/" if name == "index.html" else f"/{name}", self._file(name))
        app.router.add_get("/stream", self._stream)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handle_signals=False)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    def _notify(self) -> None:
        self._woken, fresh, self._fresh = False, self._fresh, asyncio.Event()
        fresh.set()

    async def _close(self) -> None:
        self._notify()
        for _ in range(20):
            if not self._clients:
                break
            await asyncio.sleep(0.05)
        await self._runner.cleanup()

    def _guard(self):
        """Who does not know the token is refused; without one, who does not mean this computer (DNS rebinding)."""
        from aiohttp import web

        @web.middleware
        async def guard(request, handler):
            if self.token:
                if not secrets.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
                    raise web.HTTPForbidden(text="the address with its token, as it was printed, is needed\n")
            elif not local(request.host):
                raise web.HTTPForbidden(text="this page is for this computer only\n")
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != request.host:
                raise web.HTTPForbidden(text="asked from a foreign page\n")
            return await handler(request)
        return guard

    def _file(self, name: str):
        """A handler; {query} in the page is what its parts must be asked with."""
        from aiohttp import web
        text = (FILES / name).read_text(encoding="utf-8")
        text = text.replace("{query}", f"?token={self.token}" if self.token else "") if name == "index.html" else text

        async def get(request):
            return web.Response(text=text, content_type=TYPES[name], headers=HEADERS)
        return get

    async def _stream(self, request):
        """One client, for as long as it stays; what it says is of no interest."""
        from aiohttp import web
        if self._clients >= CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"{CLIENTS} pages are open already\n")
        ws = web.WebSocketResponse(heartbeat=20, compress=False, max_msg_size=4096)
        await ws.prepare(request)
        self._clients += 1
        sending = asyncio.ensure_future(self._send(ws))
        try:
            async for _ in ws:
                pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._clients -= 1
        return ws

    async def _send(self, ws) -> None:
        """The history, then what is new; who lags skips what there is and is told how much."""
        with contextlib.suppress(ConnectionError):
            await ws.send_str(self.history.heading)
            frames, at = self.history.since(0)
            while True:
                for frame in frames:
                    await (ws.send_bytes(frame) if isinstance(frame, bytes) else ws.send_str(frame))
                    if frame == END:
                        await ws.close()
                        return
                fresh, before = self._fresh, at
                if self.history.count == at:
                    await fresh.wait()
                frames, at = self.history.since(before)
                if len(frames) < at - before or len(frames) > BEHIND:
                    await ws.send_str(json.dumps({"type": "skipped", "frames": at - before}))
                    frames = [frame for frame in frames if frame == END]


def local(host: str) -> bool:
    """Whether a Host header means this computer, at any port (a tunnel has another one)."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in ("localhost", LOOPBACK, "::1")


def asked(port: int | None, listen: str | None) -> list[Page]:
    """The page that a command line asks for, if it does, its address printed."""
    if port is None:
        if listen:
            raise say.UserError(f"--listen {listen} without a page", "--page too", f"--page --listen {listen}")
        return []
    made = Page(port, listen)
    say.info(f"page: {made.url}")
    return [made]
