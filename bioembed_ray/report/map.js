"use strict";
// The map: dots on a canvas, found again by a grid of buckets. What a dot is, map_detail.js says.
const soundMap = (() => {
  const page = report.json("map-page");
  const canvas = document.getElementById("map-canvas");
  const context = canvas.getContext("2d");
  const tip = document.getElementById("map-tip");
  const GRID = 65535, CELLS = 128, REACH = 14, MISSING = 65535, STEPS = 65534, LISTED = 14, RIMS = 600, CLOSE = 2;
  const decoded = new Map();
  const state = { map: null, colour: null, only: null, hover: -1, chosen: -1, scale: 1, x: 0, y: 0 };
  const listeners = [];

  function typed(id, Kind) {
    if (!decoded.has(id)) decoded.set(id, new Kind(report.bytes(id).buffer));
    return decoded.get(id);
  }

  function load(map) {
    if (map.xy) return map;
    map.xy = typed(`${map.id}-xy`, Uint16Array);
    map.recording = typed(`${map.id}-recording`, page.isWide ? Uint32Array : Uint16Array);
    map.start = typed(`${map.id}-start`, Float64Array);
    map.channel = map.hasChannels
      ? typed(`${map.id}-channel`, Uint16Array) : new Uint16Array(map.n);
    map.lengths = map.length === null ? typed(`${map.id}-length`, Float64Array) : null;
    // Points by bucket, so that the nearest one is found among few.
    const counts = new Uint32Array(CELLS * CELLS + 1);
    const cell = (i) => (map.xy[2 * i + 1] >> 9) * CELLS + (map.xy[2 * i] >> 9);
    for (let i = 0; i < map.n; i++) counts[cell(i) + 1]++;
    for (let c = 0; c < CELLS * CELLS; c++) counts[c + 1] += counts[c];
    map.bounds = counts.slice();
    map.sorted = new Uint32Array(map.n);
    for (let i = 0; i < map.n; i++) map.sorted[counts[cell(i)]++] = i;
    map.heard = soundDetail.heard(map);
    return map;
  }

  function lengthOf(i) {
    return state.map.lengths ? state.map.lengths[i] : state.map.length;
  }

  // Colours -------------------------------------------------------------------------------------
  function ramp(share) {
    // Five colours of viridis (Smith and van der Walt 2015), mixed in between.
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [230, 210, 30]];
    const at = Math.min(3.9999, Math.max(0, share * 4)), k = Math.floor(at), f = at - k;
    return `rgb(${stops[k].map((v, c) => Math.round(v + f * (stops[k + 1][c] - v))).join()})`;
  }

  function hourColour(share) {
    // Midnight is dark blue, dawn rose, noon gold, dusk orange.
    const stops = [[38, 50, 110], [178, 92, 150], [236, 190, 60], [222, 112, 52], [38, 50, 110]];
    const at = Math.min(3.9999, share * 4), k = Math.floor(at), f = at - k;
    return `rgb(${stops[k].map((v, c) => Math.round(v + f * (stops[k + 1][c] - v))).join()})`;
  }

  function categoryColour(colour, code) {
    if (colour.title === "day or night") return ["#e0a100", "#c05f8a", "#3d5a98"][code];
    if (code < page.palette.length) return page.palette[code];
    // The golden angle keeps neighbours apart, however many there are.
    return `hsl(${(code * 137.508) % 360} ${45 + (code % 3) * 12}% ${46 + (code % 4) * 5}%)`;
  }

  function coloursOf(map) {
    return [...page.colourings, ...map.colourings];
  }

  function codeOf(colour, i) {
    const at = state.map.start[i];
    if (colour.by === "start") {
      return Math.round((STEPS * (at - colour.low)) / (colour.high - colour.low));
    }
    if (colour.by === "clock") {
      const clock = page.clock[state.map.recording[i]];
      return clock === null ? MISSING : Math.round((STEPS * ((clock + at) % 86400)) / 86400);
    }
    const values = typed(colour.id, Uint16Array);
    return colour.by === "recording" ? values[state.map.recording[i]] : values[i];
  }

  function bucketOf(colour, code) {
    if (code === MISSING) return MISSING;
    return colour.kind === "category" ? code : Math.floor(code / 1024);
  }

  function bucketColour(colour, bucket) {
    if (bucket === MISSING) return report.style("--pending");
    if (colour.kind === "category") return categoryColour(colour, bucket);
    const share = ((bucket + 0.5) * 1024) / STEPS;
    return colour.kind === "hour" ? hourColour(share) : ramp(share);
  }

  // What is known of a point, as text; what the detail says anyway is left out.
  function values(i) {
    const said = new Set(["recording", "date", "hour of day", "time in recording", "channel", "folder", "status", "container", "channels"]);
    const found = [];
    for (const colour of coloursOf(state.map)) {
      const code = codeOf(colour, i);
      if (said.has(colour.title) || code === MISSING) continue;
      const number = colour.low + (code / STEPS) * (colour.high - colour.low);
      const text = colour.kind === "category"
        ? colour.labels[code]
        : `${Number(number.toPrecision(4)).toLocaleString("en")} ${colour.unit}`;
      found.push({ title: colour.title, text });
    }
    return found;
  }

  // Every colour's points one after the other, so that the pen changes seldom.
  function arrange() {
    const map = state.map, groups = new Map();
    for (let i = 0; i < map.n; i++) {
      const bucket = bucketOf(state.colour, codeOf(state.colour, i));
      if (!groups.has(bucket)) groups.set(bucket, []);
      groups.get(bucket).push(i);
    }
    state.groups = [...groups].sort((a, b) => b[1].length - a[1].length);
  }

  // Drawing -------------------------------------------------------------------------------------
  function fit() {
    const ratio = window.devicePixelRatio || 1;
    const wide = canvas.clientWidth, tall = canvas.clientHeight;
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(tall * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    state.wide = wide;
    state.tall = tall;
    state.side = Math.min(wide, tall) - 36;
  }

  function place(i) {
    const unit = (state.side * state.scale) / GRID;
    const xy = state.map.xy;
    return [
      state.wide / 2 + (xy[2 * i] - GRID / 2) * unit + state.x,
      state.tall / 2 - (xy[2 * i + 1] - GRID / 2) * unit + state.y,
    ];
  }

  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; paint(); });
  }

  function paint() {
    const map = state.map;
    context.clearRect(0, 0, state.wide, state.tall);
    const base = Math.min(7, Math.max(2, 260 / Math.sqrt(map.n + 1)));
    const size = Math.min(11, base * Math.sqrt(state.scale));
    // Written out, not by place(): a hundred thousand pairs are much to allocate for a frame.
    const unit = (state.side * state.scale) / GRID, xy = map.xy;
    const left = state.wide / 2 + state.x - (GRID / 2) * unit;
    const top = state.tall / 2 + state.y + (GRID / 2) * unit;
    const isSeen = (x, y) => x > -9 && y > -9 && x < state.wide + 9 && y < state.tall + 9;
    // In turns, so that of many dots the last colour does not cover the others.
    const turns = size < 4.5 && state.groups.length < 64 ? 8 : 1;
    for (let turn = 0; turn < turns; turn++) for (const [bucket, points] of state.groups) {
      const isFaint = state.only !== null && state.only !== bucket;
      context.globalAlpha = isFaint ? 0.07 : map.n > 20000 ? 0.55 : 0.8;
      context.fillStyle = bucketColour(state.colour, bucket);
      if (size < 4.5) {
        for (let k = turn; k < points.length; k += turns) {
          const i = points[k];
          const x = left + xy[2 * i] * unit, y = top - xy[2 * i + 1] * unit;
          if (isSeen(x, y)) context.fillRect(x - size / 2, y - size / 2, size, size);
        }
      } else {
        context.beginPath();
        for (const i of points) {
          const x = left + xy[2 * i] * unit, y = top - xy[2 * i + 1] * unit;
          if (!isSeen(x, y)) continue;
          context.moveTo(x + size / 2, y);
          context.arc(x, y, size / 2, 0, 7);
        }
        context.fill();
      }
    }
    // Where many dots in view can be heard, rims would only darken the map.
    const places = map.heard.shown.map(place).filter(([x, y]) => isSeen(x, y));
    context.globalAlpha = state.only === null ? 0.9 : 0.25;
    context.strokeStyle = report.style("--ink");
    context.lineWidth = 0.8;
    context.beginPath();
    const r = Math.max(2.4, size / 2 + 0.6);
    for (const [x, y] of map.heard.shown.length < 0.3 * map.n && places.length <= RIMS ? places : []) {
      context.moveTo(x + r, y);
      context.arc(x, y, r, 0, 7);
    }
    context.stroke();
    context.globalAlpha = 1;
    for (const [i, wide] of [[state.hover, 1.5], [state.chosen, 2.5]]) {
      if (i < 0) continue;
      const [x, y] = place(i);
      context.lineWidth = wide;
      context.strokeStyle = report.style("--ink");
      context.beginPath();
      context.arc(x, y, size / 2 + 4, 0, 7);
      context.stroke();
    }
  }

  // Finding -------------------------------------------------------------------------------------
  function nearest(px, py, reach = REACH) {
    const map = state.map, unit = (state.side * state.scale) / GRID;
    const gx = (px - state.wide / 2 - state.x) / unit + GRID / 2;
    const gy = -(py - state.tall / 2 - state.y) / unit + GRID / 2;
    const r = reach / unit;
    const low = (v) => Math.max(0, Math.min(CELLS - 1, Math.floor((v - r) / 512)));
    const high = (v) => Math.max(0, Math.min(CELLS - 1, Math.floor((v + r) / 512)));
    let best = -1, least = r * r, heard = -1, leastHeard = Math.min(r, CLOSE / unit) ** 2;
    for (let cy = low(gy); cy <= high(gy); cy++) {
      for (let c = cy * CELLS + low(gx); c <= cy * CELLS + high(gx); c++) {
        for (let k = map.bounds[c]; k < map.bounds[c + 1]; k++) {
          const i = map.sorted[k];
          const dx = map.xy[2 * i] - gx, dy = map.xy[2 * i + 1] - gy;
          const far = dx * dx + dy * dy;
          if (far < least) [least, best] = [far, i];
          if (far < leastHeard && map.heard.clip[i] >= 0) [leastHeard, heard] = [far, i];
        }
      }
    }
    // Of dots that nobody can tell apart, one that can be heard.
    return heard >= 0 ? heard : best;
  }

  function nearestOf(i, candidates) {
    const xy = state.map.xy;
    let best = -1, least = Infinity;
    for (const k of candidates) {
      const far = (xy[2 * k] - xy[2 * i]) ** 2 + (xy[2 * k + 1] - xy[2 * i + 1]) ** 2;
      if (far < least) [least, best] = [far, k];
    }
    return best;
  }

  // Legend --------------------------------------------------------------------------------------
  function legend() {
    const box = document.getElementById("map-legend"), colour = state.colour;
    const swatch = (fill) => {
      const made = report.element("i");
      made.style.background = fill;
      return made;
    };
    box.replaceChildren();
    if (colour.kind !== "category") {
      const bar = report.element("span", { className: "map-ramp" });
      const pick = colour.kind === "hour" ? hourColour : ramp;
      bar.style.background = `linear-gradient(90deg, ${[0, .125, .25, .375, .5, .625, .75, .875, .999].map(pick).join()})`;
      const say = (v) => colour.title === "date"
        ? new Date(v * 864e5).toISOString().slice(0, 10)
        : `${Number(v.toPrecision(4)).toLocaleString("en")} ${colour.unit}`;
      box.append(report.element("span", {}, say(colour.low)), bar, report.element("span", {}, say(colour.high)));
      const unknown = state.groups.find(([bucket]) => bucket === MISSING);
      if (unknown) box.append(swatch(bucketColour(colour, MISSING)), `unknown (${unknown[1].length.toLocaleString("en")})`);
      return;
    }
    const known = state.groups.filter(([bucket]) => bucket !== MISSING);
    const rows = known.slice(0, LISTED).concat(state.groups.filter(([bucket]) => bucket === MISSING));
    for (const [bucket, points] of rows) {
      const label = bucket === MISSING ? "unknown" : colour.labels[bucket];
      const isOnly = state.only === bucket;
      const button = report.element("button", { type: "button", title: label, className: "map-key" },
        swatch(bucketColour(colour, bucket)),
        report.element("span", { className: "name" }, label),
        report.element("small", {}, points.length.toLocaleString("en")));
      button.setAttribute("aria-pressed", String(isOnly));
      button.addEventListener("click", () => {
        state.only = isOnly ? null : bucket;
        legend();
        redraw();
      });
      box.append(button);
    }
    if (known.length > LISTED) {
      const n = known.length - LISTED;
      box.append(report.element("span", { className: "quiet" }, `and ${n.toLocaleString("en")} more`));
    }
  }

  // Choosing ------------------------------------------------------------------------------------
  function show(encoder, level) {
    const before = state.map;
    state.map = load(page.maps.find((m) => m.encoder === encoder && m.level === level));
    const isOther = before !== state.map;
    if (isOther) Object.assign(state, { hover: -1, chosen: -1, scale: 1, x: 0, y: 0, only: null });
    for (const button of document.querySelectorAll("[data-encoder]")) {
      button.setAttribute("aria-pressed", String(button.dataset.encoder === encoder));
    }
    for (const button of document.querySelectorAll("[data-level]")) {
      button.setAttribute("aria-pressed", String(button.dataset.level === level));
    }
    const select = document.getElementById("map-colour");
    const wanted = select.value;
    const colours = coloursOf(state.map);
    select.replaceChildren(...colours.map((c) => report.element("option", { value: c.title }, c.title)));
    select.value = colours.some((c) => c.title === wanted) ? wanted : page.first;
    const map = state.map;
    const rest = map.n === map.all ? "all" : `${map.n.toLocaleString("en")} of`;
    document.getElementById("map-caption").textContent =
      `${map.encoder}: ${rest} ${map.all.toLocaleString("en")} ${map.level} · ${map.weights} · version ${map.version} · `
      + `${map.heard.shown.length.toLocaleString("en")} can be heard in this page`;
    if (isOther) listeners.forEach((tell) => tell(-1));
    recolour();
  }

  function recolour() {
    const title = document.getElementById("map-colour").value;
    state.colour = coloursOf(state.map).find((c) => c.title === title);
    state.only = null;
    document.getElementById("map-note").textContent = state.colour.note
      ? `${state.colour.title}: ${state.colour.note}` : "";
    arrange();
    legend();
    redraw();
  }

  function choose(i) {
    state.chosen = i;
    listeners.forEach((tell) => tell(i));
    redraw();
  }

  function zoom(factor, px = state.wide / 2, py = state.tall / 2) {
    const after = Math.min(60, Math.max(0.7, state.scale * factor)), by = after / state.scale;
    state.x = px - state.wide / 2 - (px - state.wide / 2 - state.x) * by;
    state.y = py - state.tall / 2 - (py - state.tall / 2 - state.y) * by;
    state.scale = after;
    redraw();
  }

  function hover(px, py) {
    const i = nearest(px, py);
    if (i !== state.hover) {
      state.hover = i;
      redraw();
    }
    canvas.style.cursor = i < 0 ? "grab" : "pointer";
    tip.hidden = i < 0;
    if (i >= 0) {
      tip.textContent = soundDetail.line(state.map, i, lengthOf(i));
      tip.style.left = `${Math.max(4, Math.min(px + 14, state.wide - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(4, py - tip.offsetHeight - 10)}px`;
    }
  }

  // Fingers and mice: one drags, two zoom, a touch that stays in place chooses.
  const held = new Map();
  let moved = 0, apart = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, at(event));
    moved = 0;
    apart = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [px, py] = at(event);
    if (!held.has(event.pointerId)) return hover(px, py);
    const [ox, oy] = held.get(event.pointerId);
    held.set(event.pointerId, [px, py]);
    moved += Math.abs(px - ox) + Math.abs(py - oy);
    if (held.size === 1) {
      state.x += px - ox;
      state.y += py - oy;
    } else {
      const [a, b] = [...held.values()];
      const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (apart) zoom(now / apart, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      apart = now;
    }
    redraw();
    return undefined;
  });
  const release = (event) => {
    const isTap = event.type === "pointerup" && held.size === 1 && moved < 6;
    held.delete(event.pointerId);
    apart = 0;
    if (isTap) {
      const i = nearest(...at(event), event.pointerType === "touch" ? 24 : REACH);
      if (i >= 0) choose(i);
    }
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; state.hover = -1; redraw(); });
  canvas.addEventListener("wheel", (event) => {
    // Without a key held, the wheel scrolls the page once the map is whole.
    if (state.scale <= 1 && event.deltaY > 0) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "+" || event.key === "=") zoom(1.3);
    else if (event.key === "-") zoom(1 / 1.3);
    else if (event.key === " ") soundDetail.play();
    else if (way) step(way);
    else return;
    event.preventDefault();
  });

  function step([dx, dy]) {
    if (state.chosen < 0) return choose(nearestOf(0, state.map.heard.shown.length ? state.map.heard.shown : [0]));
    const [x, y] = place(state.chosen);
    let best = -1, least = Infinity;
    for (let i = 0; i < state.map.n; i++) {
      const [px, py] = place(i);
      const along = (px - x) * dx + (py - y) * dy, off = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (along > 1 && along + 2 * off < least) [least, best] = [along + 2 * off, i];
    }
    return best >= 0 ? choose(best) : undefined;
  }

  function start() {
    for (const button of document.querySelectorAll("[data-encoder]")) {
      button.addEventListener("click", () => show(button.dataset.encoder, state.map.level));
    }
    for (const button of document.querySelectorAll("[data-level]")) {
      button.addEventListener("click", () => show(state.map.encoder, button.dataset.level));
    }
    document.getElementById("map-colour").addEventListener("change", recolour);
    document.getElementById("map-reset").addEventListener("click", () => {
      Object.assign(state, { scale: 1, x: 0, y: 0 });
      redraw();
    });
    new ResizeObserver(() => { fit(); if (state.map) redraw(); }).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    fit();
    show(page.maps[0].encoder, page.maps[0].level);
  }

  return { page, state, place, paint, nearest, choose, start, show, values, lengthOf, nearestOf, tell: (f) => listeners.push(f) };
})();
