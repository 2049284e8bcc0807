// SPDX-License-Identifier: Apache-2.0
// The live page: what sinks/page.py sends, drawn on ECG paper. A pen sweeps from left to right and wipes what lies
// just ahead of it, so each moment is drawn once; only a new size or colour draws a whole sweep again.
"use strict";

const MM = 96 / 25.4;               // CSS pixels of a millimetre
const SPEED = 25, GAIN = 10;        // mm/s and mm/mV
const KEPT_S = 40;                  // of samples held here
const DELAY_S = 0.35;               // the pen stays behind the newest moment, so that it moves evenly
const AHEAD_MM = 6;                 // wiped in front of the pen
const QUIET_S = 2;                  // without a sample, and the figures are said to be old
const LANE = 14, TICKS = 12;        // px in the strip: a class, the R peaks
const MOST = 2000;                  // runs and beats that are held
const ALL = -1;                     // a run over all lanes
const HERE = 1, MISSING = 2;        // what is known of a moment

const $ = id => document.getElementById(id);
const paper = $("paper"), trace = $("trace"), strip = $("strip");
const view = { scale: 1, colours: {}, held: false, dirty: true, before: 0 };
let session = null, store = null, pen = null;       // the heading, what came since, and where it is drawn

// ---- small things

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch { return null; }          // refused in private windows
}

function colour(name) {
  $("probe").style.color = `var(--${name})`;
  return getComputedStyle($("probe")).color;
}

const hue = k => `hsl(${(210 + k * 137.5) % 360} 75% 28%)`;     // white text can be read on all of them

function clock(moment) {
  const s = Math.floor(moment / session.fs), two = n => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function text(id, words) {
  if ($(id).textContent !== words) $(id).textContent = words;
}

// ---- what comes in

function begin(heading) {
  const size = Math.ceil(KEPT_S * heading.fs);
  session = heading;
  store = {
    size, next: null, heard: performance.now(), end: -Infinity, zero: [], looked: 0,
    uv: heading.leads.map(() => new Int32Array(size)), base: heading.leads.map(() => new Int32Array(size)),
    off: new Uint32Array(size), is: new Uint8Array(size), runs: [], beats: [],
  };
  pen = { at: 0, drawn: 0, moments: 1, px: 1 };
  text("session", `${heading.session}, ${heading.leads.join(", ")}, ${heading.fs} Hz`);
  text("device", heading.title);
  text("model", heading.model ? `${heading.model} ${heading.identity.slice(0, 16)}` : "none, nothing is classified");
  text("class", heading.model ? "no decision yet" : "no model");
  $("class").className = "big";
  text("bpm", "--");
  $("events").replaceChildren();
  layout();
}

function samples(buffer) {
  const head = new DataView(buffer), leads = head.getUint16(2, true), n = head.getUint32(4, true);
  const first = Number(head.getBigInt64(8, true)), narrow = head.getUint8(1) === 2;
  const values = new (narrow ? Int16Array : Int32Array)(buffer, 16), off = values.subarray(leads * n);
  if (store.next === null) pen.at = pen.drawn = store.next = first;
  for (let i = Math.max(store.next, first - store.size); i < first; i++) store.is[i % store.size] = MISSING;
  for (let i = 0; i < n; i++) {
    const slot = (first + i) % store.size;
    for (let k = 0; k < leads; k++) store.uv[k][slot] = values[k * n + i];
    store.off[slot] = off[i];
    store.is[slot] = HERE;
  }
  store.next = first + n;
  store.heard = performance.now();
  if (first - store.end > session.fs || store.next - store.looked > session.fs) centre();
  store.end = store.next;
  for (let i = first; i < first + n; i++)
    for (let k = 0; k < leads; k++) store.base[k][i % store.size] = store.zero[k];
}

function centre() {     // electrodes have offsets: what is drawn in the middle changes when a trace has left it
  const far = view.row / 4 / (GAIN * view.mm) * 1000, here = [];
  for (let i = Math.max(store.next - Math.round(session.fs), 0); i < store.next; i++)
    if (store.is[i % store.size] === HERE) here.push(i % store.size);
  store.looked = store.next;
  store.zero = store.uv.map((uv, k) => {
    const middle = Int32Array.from(here, slot => uv[slot]).sort()[here.length >> 1];
    return Math.abs(middle - store.zero[k]) <= far ? store.zero[k] : middle;
  });
}

function run(from, to, lane, words, fill) {     // in the strip; one that goes on is made longer
  const last = store.runs.findLast(r => r.lane === lane);
  if (last && last.words === words && from <= last.to && to >= last.to) last.to = to;
  else store.runs.push({ from, to, lane, words, fill });
  if (store.runs.length > MOST) store.runs.shift();       // a tab in the background draws nothing and drops nothing
}

function decision(d) {
  const none = session.classes.length > 0 && d.present.length === 0;
  text("class", d.unreliable ? `unreliable: ${d.unreliable}` : none ? "none of the classes" : d.present.join(" + "));
  $("class").className = d.unreliable ? "big unreliable" : "big";
  if (d.unreliable) run(d.from, d.to, ALL, d.unreliable, "hatch");
  for (const name of d.present) {
    const lane = session.classes.indexOf(name);
    run(d.from, d.to, lane, name, hue(lane));
  }
}

function totals(t) {
  const missing = Object.entries(t.missing).map(([why, n]) => `${n} ${why}`).join(", ");
  text("missing", missing ? `${missing} moments` : "none");
  text("twin", t.compared ? `agrees ${t.equal} of ${t.compared}` : "not compared");
  text("latency", t.p50 === null ? "no decision yet" : `p50 ${t.p50} ms, p95 ${t.p95} ms`);
  histogram(t.edges, t.counts);
}

function quality(q) {
  session.leads.forEach((lead, k) => {
    const { grade, reason } = q.leads[lead], mark = $("leads").children[k].lastChild;
    mark.className = grade;
    mark.textContent = reason ? `${grade} ${reason}` : grade;
  });
}

function event(e) {
  const line = document.createElement("li");
  line.className = e.level;
  line.textContent = `${clock(e.index)}  ${e.kind}: ${e.text}`;
  $("events").prepend(line);
  while ($("events").children.length > 8) $("events").lastChild.remove();
}

const note = (level, words) => event({ index: store.next || 0, kind: "page", level, text: words });

const takes = {
  session: begin, decision, totals, quality, event,
  gap: g => run(g.index, g.index + g.length, ALL, `gap: ${g.reason}`, "hatch"),
  beat(b) {
    store.beats.push(b.index);
    if (store.beats.length > MOST) store.beats.shift();
    if (b.bpm !== null) text("bpm", String(Math.round(b.bpm)));
  },
  skipped: s => note("warning", `too slow, skipped ${s.frames} frames`),
  end: () => note("info", "the session has ended"),
};

function take(data) {
  const told = data instanceof ArrayBuffer ? samples(data) : JSON.parse(data);
  if (told) takes[told.type]?.(told);
  view.dirty = true;
}

// ---- paper

function layout() {                 // all sizes, then everything once
  const wide = Math.floor($("sheet").clientWidth), mm = MM * view.scale, n = session ? session.leads.length : 1;
  const row = Math.round(mm * (n === 1 ? 40 : n <= 3 ? 28 : 16)), lanes = session ? session.classes.length : 0;
  Object.assign(view, { wide, mm, row, high: row * n, lanes: Math.max(lanes, 1), dpr: window.devicePixelRatio || 1 });
  for (const canvas of [paper, trace]) sized(canvas, wide, view.high);
  sized(strip, wide, TICKS + LANE * view.lanes);
  $("bar").style.width = `${50 * mm}px`;
  for (const name of ["ink", "fine", "coarse", "hole", "off", "text", "paper", "faint"])
    view.colours[name] = colour(name);
  view.hatch = hatched();
  grid();
  if (!session) return;
  labels();
  pen.px = SPEED * mm / session.fs;
  pen.moments = Math.max(Math.floor(wide / pen.px), 1);
  again();
}

function sized(canvas, wide, high) {
  canvas.width = Math.round(wide * view.dpr);
  canvas.height = Math.round(high * view.dpr);
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  canvas.getContext("2d").setTransform(view.dpr, 0, 0, view.dpr, 0, 0);
}

function grid() {
  const g = paper.getContext("2d"), line = 1 / view.dpr;
  const snap = v => Math.round(v * view.dpr) / view.dpr;
  for (const [step, name] of [[1, "fine"], [5, "coarse"]]) {
    g.fillStyle = view.colours[name];
    for (let i = 0; i * view.mm * step <= view.wide; i++) g.fillRect(snap(i * view.mm * step), 0, line, view.high);
    for (let i = 0; i * view.mm * step <= view.high; i++) g.fillRect(0, snap(i * view.mm * step), view.wide, line);
  }
}

function hatched() {                // a pattern of slanting lines
  const tile = document.createElement("canvas"), n = Math.round(8 * view.dpr);
  tile.width = tile.height = n;
  const g = tile.getContext("2d");
  Object.assign(g, { strokeStyle: view.colours.hole, lineWidth: n / 5 });
  g.beginPath();
  for (const d of [-n, 0, n]) { g.moveTo(d - 1, n + 1); g.lineTo(d + n + 1, -1); }
  g.stroke();
  const pattern = g.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / view.dpr));
  return pattern;
}

function label(words, kind, top, ...more) {
  const made = document.createElement("span");
  made.className = `label ${kind}`;
  made.style.top = `${top}px`;
  made.append(words, ...more);
  return made;
}

function labels() {                 // of leads with their quality, and of the strip's lanes
  $("leads").replaceChildren(...session.leads.map((lead, k) => label(`${lead} `, "lead", k * view.row + 2,
    $("leads").children[k]?.lastChild || document.createElement("b"))));
  $("lanes").replaceChildren(...session.classes.map((name, k) => {
    const made = label(name, "lane", TICKS + k * LANE);
    made.style.borderColor = hue(k);
    return made;
  }));
}

// ---- traces

const x = moment => (moment % pen.moments) * pen.px;
const ahead = () => Math.min(Math.ceil(AHEAD_MM * view.mm / pen.px), pen.moments - 1);

function* sweeps(from, to) {        // [from, to) cut where the pen jumps back to the left
  while (from < to) {
    const end = Math.min(to, from - from % pen.moments + pen.moments);
    yield [from, end];
    from = end;
  }
}

function* alike(from, to, of) {     // runs of moments for which `of` is the same
  for (let a = from, b; a < to; a = b) {
    const value = of(a % store.size);
    for (b = a + 1; b < to && of(b % store.size) === value;) b++;
    yield [a, b, value];
  }
}

function columns(a, b, top, high) {      // a rectangle over moments, on whole pixels so that parts join
  const left = Math.round(x(a) * view.dpr), right = Math.round((x(a) + (b - a) * pen.px) * view.dpr);
  return [left / view.dpr, top, Math.max(right - left, Math.ceil(view.dpr)) / view.dpr, high];
}

function wipe(g, from, to) {
  for (const [a, b] of sweeps(from, to)) {
    const [left, , wide] = columns(a, b, 0, 0);
    g.clearRect(left, 0, b % pen.moments ? wide : view.wide - left, view.high);
  }
}

function draw(from, to) {           // the traces of [from, to); the moment before is there already
  const g = trace.getContext("2d");
  wipe(g, from + ahead(), to + ahead());
  Object.assign(g, { strokeStyle: view.colours.ink, lineWidth: 1.4, lineJoin: "round", lineCap: "round" });
  for (const [a, b] of sweeps(from, to)) {
    holes(g, a, b);
    for (let k = 0; k < store.uv.length; k++) line(g, k, a, b);
  }
}

function line(g, k, a, b) {
  const { is, size } = store, uv = store.uv[k], base = store.base[k];
  const zero = (k + 0.5) * view.row, y = GAIN * view.mm / 1000;
  let down = null;                  // the baseline while the pen is down
  g.beginPath();
  for (let i = a % pen.moments ? a - 1 : a; i < b; i++) {
    const slot = i % size;
    if (is[slot] !== HERE) { down = null; continue; }
    g[down === base[slot] ? "lineTo" : "moveTo"](x(i), zero - (uv[slot] - base[slot]) * y);
    down = base[slot];
  }
  g.stroke();
}

function holes(g, a, b) {           // missing moments hatched, leads that are off shaded
  for (const [from, to, what] of alike(a, b, slot => store.is[slot])) {
    if (what !== MISSING) continue;
    g.fillStyle = tiny(from) ? view.colours.hole : view.hatch;
    g.fillRect(...columns(from, to, 0, view.high));
  }
  for (const [from, to, off] of alike(a, b, slot => store.is[slot] === HERE ? store.off[slot] : 0)) {
    g.fillStyle = view.colours.off;
    for (let k = 0; off && k < store.uv.length; k++)
      if (off >> k & 1) g.fillRect(...columns(from, to, k * view.row, view.row));
  }
}

function tiny(i) {                  // whether the hole around a moment is too narrow for slanting lines
  const few = Math.ceil(4 / pen.px), same = j => store.is[(j + store.size) % store.size] === MISSING;
  let n = 1;
  for (let j = i - 1; n < few && same(j); j--) n++;
  for (let j = i + 1; n < few && j < store.next && same(j); j++) n++;
  return n < few;
}

function again() {                  // the whole sweep
  trace.getContext("2d").clearRect(0, 0, view.wide, view.high);
  if (store.next !== null) {
    pen.drawn = Math.floor(pen.at);
    draw(Math.max(pen.drawn - pen.moments + ahead(), store.next - store.size, 0), pen.drawn);
  }
  view.dirty = true;
}

function move(seconds) {            // the pen follows the newest moment, a little behind
  const fs = session.fs, behind = (store.next - pen.at) / fs;
  if (behind > 2) {
    pen.at = store.next - DELAY_S * fs;
    again();
  } else {
    const hurry = Math.max(1 + 2 * (behind - DELAY_S), 0.25);
    pen.at = Math.min(pen.at + hurry * fs * seconds, store.next);
  }
  const to = Math.floor(pen.at + 1e-6);
  if (to <= pen.drawn) return;
  draw(pen.drawn, to);
  pen.drawn = to;
  view.dirty = true;
}

// ---- strip and histogram

function marks() {                  // R peaks, gaps and classes of the sweep that is shown
  const g = strip.getContext("2d"), high = TICKS + LANE * view.lanes;
  const first = Math.max(pen.drawn - pen.moments + ahead(), 0);
  store.beats = store.beats.filter(b => b >= first);
  store.runs = store.runs.filter(r => r.to > first);
  g.clearRect(0, 0, view.wide, high);
  Object.assign(g, { fillStyle: view.colours.text, font: "11px system-ui, sans-serif", textBaseline: "middle" });
  for (const b of store.beats) if (b < pen.drawn) g.fillRect(x(b) - 0.75, 2, 1.5, TICKS - 4);
  for (const r of store.runs)
    for (const [a, b] of sweeps(Math.max(r.from, first), Math.min(r.to, pen.drawn))) block(g, r, a, b);
}

function block(g, r, a, b) {
  const [top, high] = r.lane === ALL ? [TICKS, LANE * view.lanes] : [TICKS + LANE * r.lane, LANE - 1];
  const [left, , wide] = columns(a, b, top, high), hatch = r.fill === "hatch", room = g.measureText(r.words).width + 4;
  g.fillStyle = hatch ? view.hatch : r.fill;
  g.fillRect(left, top, wide, high);
  if (room + 4 > wide) return;      // a word that is cut off may be another one
  if (hatch) {                      // its reason has to be read on something plain
    g.fillStyle = view.colours.paper;
    g.fillRect(left + 2, top + 1, room, LANE - 3);
  }
  g.fillStyle = hatch ? view.colours.text : "#fff";
  g.fillText(r.words, left + 4, top + LANE / 2);
}

function histogram(edges, counts) {
  const canvas = $("latencies"), wide = canvas.clientWidth, high = canvas.clientHeight, most = Math.max(...counts, 1);
  const ratio = window.devicePixelRatio || 1, g = canvas.getContext("2d"), step = wide / counts.length;
  canvas.width = Math.round(wide * ratio);
  canvas.height = Math.round(high * ratio);
  g.scale(ratio, ratio);
  g.fillStyle = view.colours.faint;
  g.fillRect(0, high - 1, wide, 1);
  g.fillStyle = view.colours.text;
  counts.forEach((n, i) => n && g.fillRect(i * step, high - Math.max(n / most * high, 1), step - 1, high));
  canvas.title = `decisions by latency, bars up to ${edges.join(", ")} ms and above`;
}

// ---- time, connection, controls

function frame(now) {
  const seconds = Math.min((now - view.before) / 1000, 0.25);
  view.before = now;
  if (session && store.next !== null && !view.held) {
    move(seconds);
    if (view.dirty) marks();
    text("time", clock(pen.at));
    view.dirty = false;
  }
  requestAnimationFrame(frame);
}

function standing() {               // the connection in words; old figures are dimmed
  const open = view.socket?.readyState === WebSocket.OPEN;
  const quiet = !store || store.next === null || performance.now() - store.heard > 1000 * QUIET_S;
  const words = view.held ? "held" : quiet ? "connected, no samples" : "live";
  text("connection", open ? words : view.waiting || "connecting");
  document.body.classList.toggle("stale", !open || quiet);
}

function connect(wait) {
  const address = new URL(`stream${location.search}`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = view.socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = message => { wait = 0.5; take(message.data); };
  socket.onopen = standing;
  socket.onclose = () => {
    view.waiting = "disconnected, trying again";
    standing();
    setTimeout(() => connect(Math.min(2 * wait, 8)), 1000 * wait);
  };
}

function hold() {
  view.held = !view.held;
  $("hold").setAttribute("aria-pressed", String(view.held));
  standing();
}

function theme() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || dark) === "dark" ? "light" : "dark";
  remembered("theme", root.dataset.theme);
  layout();
}

function resize() {
  view.scale = Number($("size").value) / 100;
  text("percent", `${$("size").value} %`);
  remembered("size", $("size").value);
  layout();
}

function start() {
  const kept = remembered("theme"), size = Number(remembered("size"));
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  if (size) $("size").value = size;
  resize();
  $("hold").onclick = hold;
  $("theme").onclick = theme;
  $("size").oninput = resize;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layout);
  new ResizeObserver(() => { if ($("sheet").clientWidth !== view.wide) layout(); }).observe($("sheet"));
  setInterval(standing, 500);
  connect(0.5);
  requestAnimationFrame(frame);
}

start();
