# SPDX-License-Identifier: Apache-2.0
"""The live page in headless Chromium, and what it is served with: scale, gaps, classes, tokens, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import aiohttp
import browser as chromium
import numpy as np
import pytest
from test_engine import hop_model

from firmware_bridge import live
from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from firmware_bridge.sinks.page import BEHIND, KEPT_S, Page
from train import say
from train.manifest import Label

FS, HOP = 250, 125
MM = 96 / 25.4                              # CSS pixels
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
BOARD = Profile("plain", "test", "a plain board", (Channel("ch1", 1000.0, -100_000, 100_000),), FS)
needs_chromium = pytest.mark.skipif(chromium.CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
DRAWN = "store && store.next !== null && pen.drawn === store.next"


@pytest.fixture(scope="module")
def chrome():
    """One browser for all."""
    with chromium.Browser() as made:
        yield made


def session(leads=("I",), classes=("N", "AF", "PVC")):
    """A session whose model says something every half second; no classes: no model."""
    m, _ = hop_model(len(leads))
    m = replace(m, classes=tuple(Label(c, "") for c in classes), trigger=replace(m.trigger, hop=HOP * m.fs // FS))
    return Session(BOARD, FS, leads, m if classes else None, 0.0)


@contextlib.contextmanager
def served(about=None, port=0, listen=None):
    """A page that is served."""
    page = Page(port, listen)
    page.begin(about or session())
    try:
        yield page
    finally:
        page.end()


def stretch(first, uv, off=0):
    """uv: (lead, moment)."""
    uv = np.atleast_2d(np.asarray(uv, np.int32))
    n = uv.shape[1]
    return Stretch(first, np.zeros((n, 1), np.int32), uv, np.full(n, off, np.uint32), first / FS, time.monotonic())


def feed(page, *items):
    """Items, and a tick that sends them."""
    for item in items:
        page.take(item)
    page.tick(time.monotonic())


def said(index, *present, unreliable=""):
    return Decision(index, present, np.zeros(3, np.int8), unreliable, latency_ms=12.0, agrees=True)


def inked(tab):
    """bool (row, column): where the trace's own colour is."""
    px, ink = tab.pixels("trace"), rgb(tab, "view.colours.ink")
    return (px[..., 3] > 100) & (np.abs(px[..., :3].astype(int) - ink).max(-1) < 40)


def rgb(tab, expression):
    """What a canvas makes of a colour."""
    return np.array(tab.js("(() => { const g = document.createElement('canvas').getContext('2d');"
                           f"g.fillStyle = {expression}; g.fillRect(0, 0, 1, 1);"
                           "return [...g.getImageData(0, 0, 1, 1).data.slice(0, 3)]; })()"))


@needs_chromium
@pytest.mark.parametrize(("dpr", "size"), [(1, 100), (2, 100), (1, 120)])
def test_a_millivolt_is_ten_millimetres_high_and_a_second_25_wide(chrome, dpr, size):
    wave = np.where(np.arange(4 * FS) % FS < FS // 2, 0, 1000)
    with served() as page, chromium.Tab(chrome, page.url, dpr=dpr) as tab:
        tab.wait("document.body && session")
        tab.js(f"$('size').value = {size}; resize()")
        feed(page, stretch(0, wave))
        tab.wait(DRAWN)
        tab.js("localStorage.clear()")
        ink = inked(tab)
        mm = MM * dpr * size / 100
    tall = ink.sum(0) > 9 * mm
    edges = np.flatnonzero(tall & ~np.roll(tall, 1))
    assert len(edges) == 7 and np.abs(np.diff(edges) - 12.5 * mm).max() <= 1
    assert np.abs(edges[::2] - edges[0] - 25 * mm * np.arange(4)).max() <= 1
    rows = np.array([np.flatnonzero(ink[:, c]).mean() for c in range(5, edges[-1]) if 0 < ink[:, c].sum() <= 3 * dpr])
    low, high = rows[rows > rows.mean()], rows[rows < rows.mean()]
    assert abs(low.mean() - high.mean() - 10 * mm) <= 1 and low.std() < 0.5 and high.std() < 0.5


@needs_chromium
def test_traces_of_twelve_leads_move_and_begin_again_at_the_left(chrome):
    t = np.arange(60 * FS) / FS
    uv = np.rint(300 * np.sin(2 * np.pi * (1 + np.arange(12)[:, None] / 12) * t))
    with served(session(LEADS)) as page, chromium.Tab(chrome, page.url, width=500) as tab:
        tab.wait("session")
        ends, at = [], 0
        while at < 7 * FS:
            feed(page, stretch(at, uv[:, at:at + 25]))
            at += 25
            time.sleep(0.06)
            ends.append(tab.js("pen.drawn"))
        tab.wait(DRAWN)
        ink = inked(tab)
        assert tab.js("pen.moments") < 7 * FS - FS and tab.js("$('leads').innerText").split() == list(LEADS)
        row, pen = tab.js("view.row"), round(tab.js("x(pen.drawn)"))
    assert len(set(ends)) > 20 and ends == sorted(ends)
    for k in range(12):
        columns = ink[k * row:(k + 1) * row].any(0)
        assert columns[3:pen - 2].all() and columns[pen + 28:-3].all() and not columns[pen + 3:pen + 18].any()


@needs_chromium
def test_gaps_are_hatched_and_never_joined(chrome):
    with served() as page, chromium.Tab(chrome, page.url) as tab:
        tab.wait("session")
        feed(page, stretch(0, [300] * FS), Gap(FS, FS, "lost"), stretch(2 * FS, [-300] * FS),
             Gap(3 * FS, 2, "damaged"), stretch(3 * FS + 2, [300] * FS))
        tab.wait(DRAWN)
        ink, px, strip = inked(tab), tab.pixels("trace"), tab.pixels("strip")
        hole, text = rgb(tab, "view.colours.hole"), tab.js("store.runs.map(r => r.words)")
        tab.wait("$('missing').textContent === '250 lost, 2 damaged moments'")
    hatched = (np.abs(px[..., :3].astype(int) - hole).max(-1) < 10) & (px[..., 3] > 200)
    second = 25 * MM
    inside = slice(round(second) + 2, round(2 * second) - 2)
    assert not ink[:, inside].any() and 0.1 < hatched[:, inside].mean() < 0.5
    assert (ink[:, :inside.start - 4].sum(0) > 0).all() and not hatched[:, :inside.start - 4].any()
    tiny = round(3 * second)
    assert not (ink[:, tiny - 2:tiny + 4].sum(0) > 8).any() and hatched[:, tiny - 1:tiny + 2].mean(0).max() > 0.9
    assert text == ["gap: lost", "gap: damaged"] and (strip[14, inside, 3] > 0).any()


@needs_chromium
def test_electrodes_with_offsets_stay_on_paper_and_a_new_centre_breaks_the_trace(chrome):
    uv = np.full((2, 6 * FS), 150_000)
    uv[:, ::2] += 100                       # a line that is never flat
    uv[1, 3 * FS:] -= 400_000
    with served(session(("I", "II"))) as page, chromium.Tab(chrome, page.url) as tab:
        tab.wait("session")
        for at in range(0, uv.shape[1], 25):
            feed(page, stretch(at, uv[:, at:at + 25]))
        tab.wait(DRAWN)
        ink, row = inked(tab), tab.js("view.row")
    middle, second = [ink[k * row + row // 2 - 8:k * row + row // 2 + 8].any(0) for k in (0, 1)], 25 * MM
    assert middle[0][3:round(6 * second) - 3].all() and middle[1][3:round(3 * second) - 3].all()
    assert middle[1][round(5 * second):round(6 * second) - 3].all()
    tall = np.flatnonzero(ink[row:].sum(0) > 20)        # the step itself, and nothing where the trace comes back
    assert len(tall) and np.abs(tall - 3 * second).max() <= 2


@needs_chromium
def test_the_class_strip_follows_a_change_of_rhythm_with_several_labels_at_once(chrome):
    with served() as page, chromium.Tab(chrome, page.url) as tab:
        tab.wait("session")
        feed(page, stretch(0, [0] * 4 * FS), *(said(i, "N") for i in range(HOP, 2 * FS + 1, HOP)))
        tab.wait("$('class').textContent === 'N'")
        feed(page, stretch(4 * FS, [0] * 3 * FS), *(said(i, "AF", "PVC") for i in range(2 * FS + HOP, 4 * FS + 1, HOP)))
        tab.wait("$('class').textContent === 'AF + PVC'")
        feed(page, said(4 * FS + HOP), *(said(i, unreliable="lead-off") for i in range(5 * FS, 6 * FS + 1, HOP)))
        tab.wait("$('class').textContent === 'unreliable: lead-off'")
        tab.wait(f"{DRAWN} && !view.dirty")
        px, hues = tab.pixels("strip")[..., :4].astype(int), [rgb(tab, f"hue({k})") for k in range(3)]
        words = tab.js("store.runs.map(r => [r.words, r.from, r.to])")
        tab.wait("$('twin').textContent.startsWith('agrees') && $('latency').textContent === 'p50 12 ms, p95 12 ms'")
    assert words == [["N", 0, 500], ["AF", 500, 1000], ["PVC", 500, 1000], ["lead-off", 1125, 1500]]
    for lane, (begin, end) in enumerate([(0, 2), (2, 4), (2, 4)]):
        filled = np.flatnonzero((np.abs(px[12 + 14 * lane + 1, :, :3] - hues[lane]).max(-1) < 8)
                                & (px[12 + 14 * lane + 1, :, 3] == 255))
        assert abs(filled[0] - begin * 25 * MM) <= 1 and abs(filled[-1] + 1 - end * 25 * MM) <= 1
        assert len(filled) == filled[-1] - filled[0] + 1


@needs_chromium
def test_beats_rate_quality_leads_off_and_events_are_shown(chrome):
    with served(session(("I", "II"))) as page, chromium.Tab(chrome, page.url) as tab:
        tab.wait("session")
        flat = np.zeros((2, FS))
        feed(page, stretch(0, flat), stretch(FS, flat, off=2), stretch(2 * FS, flat),
             Beat(100, None), Beat(300, 71.6), Quality(3 * FS, ("A", "C"), ("", "lead-off")),
             Event(FS, "lead-off", "lead II is off <b>", "warning"))
        tab.wait(f"{DRAWN} && !view.dirty")
        assert tab.js("$('bpm').textContent") == "72" and tab.js("$('leads').innerText").split() == [
            "I", "A", "II", "C", "lead-off"]
        assert tab.js("$('events').innerText") == "0:00:01 lead-off: lead II is off <b>"
        assert tab.js("$('model').textContent").endswith(page.session.manifest.identity.hex()[:16])
        px, row, strip = tab.pixels("trace"), tab.js("view.row"), tab.pixels("strip")
    shaded, second = (px[..., 3] > 40) & (px[..., 3] < 80), 25 * MM
    middle = slice(round(second) + 1, round(2 * second) - 1)
    assert shaded[row + 5:row + 30, middle].all() and not shaded[:row - 2, middle].any()
    assert not shaded[row + 5:row + 30, :round(second) - 1].any()
    peaks = np.flatnonzero(strip[6, :, 3] > 100)
    assert {round(p / second * FS / 10) for p in peaks} == {10, 30}


@needs_chromium
def test_a_phone_scrolls_no_page_sideways_and_keys_reach_the_controls(chrome):
    names = tuple(f"a class with a long name {k}" for k in range(9))
    with served(session(LEADS, names)) as page, chromium.Tab(chrome, page.url, width=320, height=640) as tab:
        tab.wait("session")
        feed(page, stretch(0, np.zeros((12, 5 * FS))), said(5 * FS, *names), Event(FS, "device", "x" * 200, "error"),
             Quality(FS, ("C",) * 12, ("lead-off",) * 12), Gap(5 * FS, 10 ** 7, "unplugged"),
             stretch(5 * FS + 10 ** 7, np.zeros((12, FS))))
        tab.wait("$('class').textContent.length > 100 && store.next > 1e7")
        for size in (100, 160):
            tab.js(f"$('size').value = {size}; $('size').closest('details').open = true; resize()")
            assert tab.js("document.documentElement.scrollWidth") <= 320
            assert tab.js("$('trace').getBoundingClientRect().right") <= 320
        tab.js("localStorage.clear()")
        reached = []
        for _ in range(4):
            tab.key("Tab", 9)
            reached.append(tab.js("document.activeElement.id || document.activeElement.localName"))
            if reached[-1] in ("hold", "theme"):
                tab.key("Enter", 13)
        assert reached == ["hold", "theme", "summary", "size"]
        assert tab.js("[view.held, document.documentElement.dataset.theme]") == [True, "dark"]
        assert tab.js("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


@needs_chromium
def test_nothing_leaves_the_origin_and_nothing_is_complained_about(chrome):
    with served(listen="127.0.0.1") as page, chromium.Tab(chrome, page.url, dark=True) as tab:
        feed(page, stretch(0, [0] * FS), said(FS, "N"))
        tab.wait("$('connection').textContent === 'live'")
        asked = [e["request"]["url"] for e in tab.told("Network.requestWillBeSent")]
        streams = [e["url"] for e in tab.told("Network.webSocketCreated")]
        assert not tab.told("Log.entryAdded") and not tab.told("Runtime.exceptionThrown")
    origin = f"127.0.0.1:{page.port}/"
    assert all(u.startswith((f"http://{origin}", "data:,")) for u in asked) and len(asked) >= 3
    assert streams == [f"ws://{origin}stream?token={page.token}"]


@needs_chromium
def test_the_page_comes_back_by_itself(chrome):
    with served() as page, chromium.Tab(chrome, page.url) as tab:
        feed(page, stretch(0, [0] * FS))
        tab.wait("$('connection').textContent === 'live'")
        page.end()
        tab.wait("$('connection').textContent.startsWith('disconnected')")
        assert tab.js("document.body.className") == "stale" and "has ended" in tab.js("$('events').innerText")
        with served(port=page.port) as second:
            tab.wait(f"session.session === '{second.session.id}'")


def answer(url, **headers):
    """The status of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


def answers(page, path, *queries, **headers):
    """The status with each query."""
    return {answer(f"http://127.0.0.1:{page.port}/{path}{q}", **headers) for q in queries}


@pytest.mark.parametrize("path", ["", "page.js", "page.css", "stream"])
def test_beyond_this_computer_only_the_token_opens_it(path):
    with served(listen="0.0.0.0") as page:
        token = page.token
        assert socket.gethostname() in page.url and page.url.endswith(f"?token={token}") and len(token) >= 20
        assert answers(page, path, "", "?token=", "?token=%C3%A9", f"?token={token}x", f"?token={token[:-1]}") == {403}
        assert answers(page, path, f"?token={token}", Origin="http://evil.example") == {403}
        assert answers(page, path, f"?token={token}") == {400 if path == "stream" else 200}     # no WebSocket was asked


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": "localhost:9000"}, 200), ({"Host": "[::1]:80"}, 200), ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example:8300"}, 403), ({"Host": "[::1"}, 403), ({"Origin": "http://evil.example"}, 403),
    ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200), ({"Origin": "null"}, 403)])
def test_without_a_token_only_this_computer_is_answered(headers, status):
    with served() as page:
        assert page.token == "" and answer(page.url, **headers) == status
        assert page._socket.getsockname()[0] == "127.0.0.1"


def test_a_page_that_cannot_be_served_says_so(capsys, monkeypatch, tmp_path):
    with served() as page:
        assert say.run(live.main, live.parser(), ["--port", "sim", "--page", str(page.port)]) == 1
        assert "in use" in capsys.readouterr().err
    monkeypatch.setattr("firmware_bridge.sinks.page.FILES", tmp_path)
    with pytest.raises(say.UserError, match="does not start"), served():
        pass
    assert say.run(live.main, live.parser(), ["--port", "sim", "--listen", "127.0.0.1"]) == 1
    assert "--page --listen 127.0.0.1" in capsys.readouterr().err


def heard(page, feeding=lambda: None, slow=False):
    """All frames of a client (JSON as objects) while feeding() happens in another thread, until the page ends."""
    def tight():
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return made

    async def client():
        connector = aiohttp.TCPConnector(socket_factory=lambda _: tight()) if slow else None
        async with aiohttp.ClientSession(connector=connector) as http, \
                http.ws_connect(page.url + "stream", max_msg_size=0) as ws:
            frames = [await ws.receive()]
            feeder = asyncio.get_running_loop().run_in_executor(None, feeding)
            if slow:
                await feeder
            ending = asyncio.get_running_loop().run_in_executor(None, lambda: (feeder, page.end()))
            async for message in ws:
                frames.append(message)
            await asyncio.gather(feeder, ending)
            return [json.loads(m.data) if isinstance(m.data, str) else m.data for m in frames]
    return asyncio.run(client())


def unpacked(frame):
    """(first, uv (lead, moment), off (moment,)) of a binary frame."""
    version, size, leads, n, first = struct.unpack_from("<BBHIq", frame)
    assert version == 1 and len(frame) == 16 + size * (leads + 1) * n
    values = np.frombuffer(frame, f"<i{size}", offset=16).reshape(leads + 1, n)
    return first, values[:-1], values[-1]


@pytest.mark.parametrize(("least", "most", "size"), [(-32_768, 32_767, 2), (0, 32_768, 4), (-32_769, 0, 4)])
def test_who_comes_late_gets_the_last_half_minute_at_once_and_exactly(least, most, size):
    uv = np.random.default_rng(1).integers(least, most + 1, (12, 90 * FS))
    uv[0, ::25], uv[1, ::25] = least, most
    with served(session(LEADS)) as page:
        for at in range(0, uv.shape[1], 25):
            feed(page, stretch(at, uv[:, at:at + 25], off=at // 25 & 0xFFF))
        frames = heard(page)
    assert frames[0]["leads"] == list(LEADS) and frames[0]["classes"] == ["N", "AF", "PVC"]
    assert frames[-1] == {"type": "end"} and frames[-2]["type"] == "totals"
    parts = [unpacked(f) for f in frames if isinstance(f, bytes)]
    begin = parts[0][0]
    assert abs((uv.shape[1] - begin) / FS - KEPT_S) <= 0.2 and all(f[1] == size for f in frames if isinstance(f, bytes))
    assert np.array_equal(np.concatenate([p[1] for p in parts], 1), uv[:, begin:])
    assert np.array_equal(np.concatenate([p[2] for p in parts]), np.arange(begin, uv.shape[1]) // 25 & 0xFFF)


@pytest.mark.parametrize("kind", ["samples", "events"])
def test_a_slow_client_skips_whole_frames_is_told_and_holds_up_nobody(kind):
    uv = np.full((12, FS), 100_000)
    with served(session(LEADS)) as page:
        def feeding():
            for s in range(1500):
                feed(page, stretch(s * FS, uv) if kind == "samples" else Event(0, "device", "x" * 15_000))
                time.sleep(0.001)
        frames = heard(page, feeding, slow=True)
        count, kept = page.history.count, len(page.history.since(0)[0])
    skipped = sum(f["frames"] for f in frames[1:] if not isinstance(f, bytes) and f["type"] == "skipped")
    told = sum(isinstance(f, bytes) or f["type"] not in ("skipped", "session") for f in frames)
    assert skipped > 100 and told + skipped in (count, count + 1)
    assert kept <= BEHIND if kind == "samples" else kept == count
    assert all(len(f) == 16 + 4 * 13 * FS for f in frames if isinstance(f, bytes))


def test_the_histogram_and_the_sums_are_of_the_whole_session():
    with served() as page:
        page.take(Gap(0, 7, "lost"))
        for k, ms in enumerate((0.5, 3.0, 3.0, 30.0, 9999.0)):
            page.take(replace(said(k * HOP, "N"), latency_ms=ms, agrees=None if k == 4 else k != 2))
        last = heard(page)[-2]
    assert last["counts"] == [1, 0, 2, 0, 0, 1, *[0] * 6, 1] and last["p50"] == 3.0 and last["missing"] == {"lost": 7}
    assert (last["decisions"], last["compared"], last["equal"]) == (5, 4, 3)


@needs_chromium
def test_the_simulator_is_seen_in_the_page(chrome):
    command = [sys.executable, Path(live.__file__), "--port", "sim", "--page", "0", "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            url = re.search("http://127.0.0.1:[0-9]+/", running.stdout.readline())[0]
            with chromium.Tab(chrome, url) as tab:
                tab.wait("Number($('bpm').textContent) > 40 && $('leads').innerText.includes('A')", 30)
                assert inked(tab).any() and tab.js("$('connection').textContent") == "live"
        finally:
            running.terminate()
