"use strict";
// Tokens on a page: whatever stands for one chooses it; strip and matrix are drawn, clips played.
{
  let chosen = null;
  const redraws = [];
  const hue = (token) => Math.round(token * 137.50776) % 360;
  const colour = (token, alpha = 1) =>
    `hsl(${hue(token)} ${report.style("--code-s")} ${report.style("--code-l")} / ${alpha})`;

  function choose(token, follow) {
    chosen = token;
    for (const one of document.querySelectorAll("[data-token].on, .gallery.on")) one.classList.remove("on");
    for (const one of document.querySelectorAll(`[data-token="${token}"], [data-of="${token}"]`)) {
      one.classList.add("on");
    }
    for (const redraw of redraws) redraw();
    const target = document.getElementById(`token-${token}`) || document.getElementById(`row-${token}`);
    if (follow && target) target.scrollIntoView({ block: target.id.startsWith("row-") ? "center" : "start" });
  }
  document.addEventListener("click", (event) => {
    const one = event.target.closest("[data-token]");
    if (!one) return;
    event.preventDefault();
    history.replaceState(null, "", `#token-${one.dataset.token}`);
    choose(Number(one.dataset.token), true);
  });
  const asked = /^#token-(\d+)$/.exec(location.hash);
  if (asked) choose(Number(asked[1]), true);

  // One tooltip for everything that has a line to say.
  const tip = report.element("div", { className: "tip", hidden: true, role: "tooltip" });
  document.body.append(tip);
  function say(line, x, y) {
    tip.hidden = !line;
    if (!line) return;
    tip.textContent = line;
    const wide = tip.offsetWidth;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - wide - 4))}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
  }
  document.addEventListener("pointermove", (event) => {
    if (event.target.tagName === "CANVAS") return;
    const one = event.target.closest("[data-tip]");
    say(one ? one.dataset.tip : "", event.clientX, event.clientY);
  });

  function canvasContext(canvas) {
    // Wider canvases than this stay empty in some browsers.
    const scale = Math.min(devicePixelRatio || 1, 16000 / Math.max(1, canvas.clientWidth));
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    return pen;
  }

  function drawn(canvas, redraw) {
    redraws.push(redraw);
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  const AXIS = 22;
  function startStrip() {
    const canvas = document.querySelector(".strip-tokens");
    if (!canvas) return;
    const { start, stop, bands, slowed, hop, runs } = report.json("strip-data");
    const length = stop - start;
    const at = (ms) => (ms / 1000 / length) * canvas.clientWidth;

    function redraw() {
      const pen = canvasContext(canvas);
      const wide = canvas.clientWidth;
      const tall = canvas.clientHeight - AXIS;
      const band = tall / bands;
      const ground = report.style("--ground");
      pen.strokeStyle = report.style("--line");
      pen.beginPath();
      for (let x = -tall; x < wide; x += 7) {
        pen.moveTo(x, tall);
        pen.lineTo(x + tall, 0);
      }
      pen.stroke();
      pen.font = "600 11px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (const [token, row, low, high] of runs) {
        const x = at(low);
        const w = at(high) - x;
        const y = tall - (row + 1) * band;
        const [w1, h1] = [Math.max(w - (w > 4 ? 0.75 : 0), 0.5), band - (bands > 1 ? 0.5 : 0)];
        pen.fillStyle = ground;
        pen.fillRect(x, y, w1, h1);
        pen.fillStyle = colour(token, chosen === null || chosen === token ? 1 : 0.28);
        pen.fillRect(x, y, w1, h1);
        if (w > 9 + 7 * String(token).length && band > 14) {
          pen.fillStyle = chosen === null || chosen === token ? "#fff" : report.style("--quiet");
          pen.fillText(token, x + w / 2, y + band / 2);
        }
      }
      pen.fillStyle = report.style("--quiet");
      pen.textBaseline = "alphabetic";
      pen.font = "11px system-ui, sans-serif";
      const steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60];
      const step = steps.find((one) => (one / length) * wide > 60) || 60;
      for (let n = Math.ceil(start / step - 1e-6); n * step <= stop + 1e-9; n++) {
        const x = ((n * step - start) / length) * wide;
        pen.fillRect(Math.min(x, wide - 1), tall, 1, 4);
        pen.textAlign = x < 20 ? "left" : x > wide - 20 ? "right" : "center";
        pen.fillText(`${Number((n * step).toFixed(3))} s`, x, tall + 17);
      }
    }

    function under(event) {
      const box = canvas.getBoundingClientRect();
      const ms = ((event.clientX - box.left) / box.width) * length * 1000;
      const row = Math.floor(((box.height - AXIS - (event.clientY - box.top)) / (box.height - AXIS)) * bands);
      return runs.find(([, band, low, high]) => band === row && low <= ms && ms < high);
    }
    canvas.addEventListener("pointermove", (event) => {
      const run = under(event);
      const band = run && bands > 1 ? `, band ${run[1]}` : "";
      say(run ? `token ${run[0]}: ${Math.round(run[3] - run[2])} ms at ${report.clock(start + run[2] / 1000)}${band}` : "", event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => say(""));
    canvas.addEventListener("click", (event) => {
      const run = under(event);
      if (run) choose(run[0], true);
    });
    drawn(canvas, redraw);

    const frame = document.querySelector(".strip");
    const inner = document.querySelector(".strip-inner");
    const zooms = [...document.querySelectorAll("[data-zoom]")];
    function zoom(button) {
      const seen = (frame.scrollLeft + frame.clientWidth / 2) / Math.max(1, frame.scrollWidth);
      const isFirst = !inner.style.width;
      inner.style.width = `${100 * button.dataset.zoom}%`;
      frame.scrollLeft = isFirst ? 0 : seen * frame.scrollWidth - frame.clientWidth / 2;
      for (const one of zooms) one.setAttribute("aria-pressed", String(one === button));
    }
    for (const button of zooms) button.addEventListener("click", () => zoom(button));
    // A step wide enough to be seen, where there is a zoom for it.
    const wide = (button) => (button.dataset.zoom * frame.clientWidth * hop) / length >= 2.5;
    zoom(zooms.find(wide) || zooms[zooms.length - 1]);

    const sound = document.querySelector("#strip > audio");
    const image = document.querySelector(".spectrogram");
    if (!sound || !image) return;
    const head = document.querySelector(".strip-inner > .playhead");
    follow(sound, head, () => length * slowed, () => {
      const x = (sound.currentTime / slowed / length) * frame.scrollWidth;
      if (x < frame.scrollLeft || x > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x - 40;
    });
    image.addEventListener("click", (event) => {
      const box = image.getBoundingClientRect();
      sound.currentTime = ((event.clientX - box.left) / box.width) * length * slowed;
      sound.play();
    });
  }

  // A line that goes along with a sound.
  function follow(sound, head, length, onMove = () => {}) {
    function move() {
      head.style.left = `${Math.min(100, (sound.currentTime / length()) * 100)}%`;
      onMove();
      if (!sound.paused) requestAnimationFrame(move);
    }
    sound.addEventListener("play", () => {
      head.hidden = false;
      move();
    });
    sound.addEventListener("ended", () => { head.hidden = true; });
  }

  for (const clip of document.querySelectorAll(".clip")) {
    const [button, sound] = [clip.querySelector("button"), clip.querySelector("audio")];
    follow(sound, clip.querySelector(".playhead"), () => sound.duration || 1);
    button.addEventListener("click", () => (sound.paused ? sound.play() : sound.pause()));
    for (const kind of ["play", "pause", "ended"]) {
      sound.addEventListener(kind, () => button.classList.toggle("playing", !sound.paused));
    }
  }

  function startMatrix() {
    const canvas = document.querySelector(".matrix canvas");
    if (!canvas) return;
    const { order, most } = report.json("matrix-order");
    const raw = report.bytes("matrix-shares");
    const shares = new DataView(raw.buffer, raw.byteOffset);
    const n = order.length;
    const share = (row, column) => shares.getUint16(2 * (row * n + column), true) / 65535;
    const readout = document.querySelector(".matrix .readout");

    // Ids stand beside the squares where there is room for them.
    const edge = () => (canvas.clientWidth / n > 13 ? 22 : 0);

    function redraw() {
      const pen = canvasContext(canvas);
      const margin = edge();
      const side = (canvas.clientWidth - margin) / n;
      const gap = side > 5 ? 0.6 : 0;
      const accent = report.style("--accent");
      pen.fillStyle = report.style("--raised");
      pen.fillRect(margin, margin, canvas.clientWidth - margin, canvas.clientHeight - margin);
      for (let row = 0; row < n; row++) {
        for (let column = 0; column < n; column++) {
          const value = share(row, column);
          if (value === 0 && row !== column) continue;
          pen.globalAlpha = row === column ? 1 : 0.08 + 0.92 * Math.sqrt(value / most);
          pen.fillStyle = row === column ? report.style("--sunk") : accent;
          pen.fillRect(margin + column * side, margin + row * side, side - gap, side - gap);
        }
      }
      pen.globalAlpha = 1;
      const place = order.indexOf(chosen);
      if (margin) {
        pen.textBaseline = "middle";
        order.forEach((token, k) => {
          const at = margin + (k + 0.5) * side;
          pen.fillStyle = report.style(k === place ? "--ink" : "--quiet");
          pen.font = `${k === place ? "700 " : ""}10px system-ui, sans-serif`;
          pen.textAlign = "right";
          pen.fillText(token, margin - 4, at);
          pen.textAlign = "center";
          pen.fillText(token, at, margin - 8);
        });
      }
      if (place >= 0) {
        const whole = canvas.clientWidth - margin - 1;
        pen.strokeStyle = report.style("--ink");
        pen.strokeRect(margin + 0.5, margin + place * side, whole, side);
        pen.strokeRect(margin + place * side, margin + 0.5, side, whole);
      }
    }

    function under(event) {
      const box = canvas.getBoundingClientRect();
      const side = (box.width - edge()) / n;
      const inside = (value) => Math.max(0, Math.min(n - 1, Math.floor((value - edge()) / side)));
      return [inside(event.clientY - box.top), inside(event.clientX - box.left)];
    }
    canvas.addEventListener("pointermove", (event) => {
      const [row, column] = under(event);
      const part = (100 * share(row, column)).toFixed(1);
      readout.textContent = row === column
        ? `token ${order[row]}: its own followers are under “Stays” below`
        : `token ${order[row]} → ${order[column]}: ${part}% of its moves`;
    });
    canvas.addEventListener("pointerleave", () => { readout.textContent = "\u00a0"; });
    canvas.addEventListener("click", (event) => choose(order[under(event)[0]], true));
    drawn(canvas, redraw);
  }
  startStrip();
  startMatrix();
}
