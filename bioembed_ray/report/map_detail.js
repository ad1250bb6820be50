"use strict";
// What a dot of the map is: its recording and time, its spectrogram and sound.
const soundDetail = (() => {
  const box = document.getElementById("map-detail");
  const clips = report.json("map-clips");
  const byRecording = new Map();
  const addresses = [];
  clips.forEach((clip, k) => {
    if (!byRecording.has(clip.recording)) byRecording.set(clip.recording, []);
    byRecording.get(clip.recording).push(k);
  });

  // Which clip holds the window of each dot, -1 for none, and which dots have one.
  function heard(map) {
    const found = { clip: new Int32Array(map.n).fill(-1), shown: [] };
    for (let i = 0; i < map.n; i++) {
      const own = byRecording.get(map.recording[i]);
      if (!own) continue;
      const start = map.start[i], stop = start + (map.lengths ? map.lengths[i] : map.length);
      for (const k of own) {
        const clip = clips[k];
        // A padded window ends after its recording; half of it has to be sound that is here.
        const isInside = map.level === "recordings" || (clip.channel === map.channel[i]
          && start >= clip.start - 1e-6 && start < clip.end - 1e-6
          && (stop <= clip.end + 1e-6 || clip.isTail));
        if (isInside) {
          found.clip[i] = k;
          found.shown.push(i);
          break;
        }
      }
    }
    return found;
  }

  function moment(map, i) {
    const clock = soundMap.page.clock[map.recording[i]];
    if (clock === null) return "";
    return new Date((clock + map.start[i]) * 1000).toISOString().slice(0, 19).replace("T", " ");
  }

  function span(map, i, length) {
    return `${report.clock(map.start[i])} – ${report.clock(map.start[i] + length)}`;
  }

  function line(map, i, length) {
    const name = soundMap.page.names[map.recording[i]];
    const at = moment(map, i);
    const when = map.level === "windows" ? span(map, i, length) : `${report.clock(length)} long`;
    return `${name}\n${when}${at ? ` · ${at}` : ""}`;
  }

  function address(text, kind) {
    const plain = atob(text);
    const bytes = new Uint8Array(plain.length);
    for (let k = 0; k < plain.length; k++) bytes[k] = plain.charCodeAt(k);
    const made = URL.createObjectURL(new Blob([bytes], { type: kind }));
    addresses.push(made);
    return made;
  }

  function quoted(name) {
    return `'${name.replaceAll("'", "'\\''")}'`;
  }

  function command(map, i, length) {
    const start = Math.max(0, map.start[i] - (map.level === "windows" ? 2 : 0));
    const values = {
      recording: quoted(soundMap.page.names[map.recording[i]]),
      channel: map.channel[i],
      start: Number(start.toFixed(3)),
      length: Number((map.level === "windows" ? length + 4 : Math.min(length, 30)).toFixed(3)),
    };
    return soundMap.page.listen.replace(/\{(\w+)\}/g, (_, key) => values[key]);
  }

  // A spectrogram with its axes, the window marked, and a line where the sound is.
  function picture(clip, map, i, length) {
    const seconds = clip.end - clip.start;
    const share = (at) => `${(100 * Math.min(1, Math.max(0, (at - clip.start) / seconds))).toFixed(2)}%`;
    const image = report.element("img", { src: address(clip.image, "image/webp"), alt: "Spectrogram" });
    const stage = report.element("div", { className: "spectrogram" }, image);
    if (map.level === "windows") {
      const frame = report.element("span", { className: "window", title: "the window" });
      frame.style.left = share(map.start[i]);
      frame.style.right = `${100 - parseFloat(share(map.start[i] + length))}%`;
      stage.append(frame);
    }
    const line = report.element("span", { className: "playhead", hidden: true });
    stage.append(line);
    const top = clip.top / 1000;
    const bands = report.element("div", { className: "khz" },
      report.element("span", {}, `${Number(top.toFixed(1))} kHz`), report.element("span", {}, "0"));
    const times = report.element("div", { className: "times" },
      report.element("span", {}, report.clock(clip.start)),
      report.element("span", {}, report.clock(clip.end)));
    return { stage, line, share, whole: report.element("div", { className: "spectrogram-frame" }, bands, stage, times) };
  }

  function player(clip, drawn, map, i) {
    const sound = report.element("audio", { controls: true, src: address(clip.sound, "audio/mpeg") });
    sound.setAttribute("aria-label", "sound with context");
    const follow = () => {
      drawn.line.hidden = false;
      drawn.line.style.left = drawn.share(clip.start + sound.currentTime);
      if (!sound.paused) requestAnimationFrame(follow);
    };
    sound.addEventListener("play", follow);
    sound.addEventListener("seeked", follow);
    drawn.stage.addEventListener("click", (event) => {
      const frame = drawn.stage.getBoundingClientRect();
      sound.currentTime = ((event.clientX - frame.left) / frame.width) * (clip.end - clip.start);
      sound.play();
    });
    return sound;
  }

  function tell(i) {
    addresses.splice(0).forEach((one) => URL.revokeObjectURL(one));
    const map = soundMap.state.map;
    if (i < 0) {
      box.replaceChildren(report.element("p", { className: "quiet" },
        "Point at a dot to see where it is from; choose it to see and hear it."));
      return;
    }
    const length = soundMap.lengthOf(i);
    const name = soundMap.page.names[map.recording[i]];
    const parts = [report.element("h3", { title: name, className: "detail-name" }, name)];
    const rows = report.element("dl", { className: "pairs" });
    const add = (key, value) => {
      if (value) rows.append(report.element("dt", {}, key), report.element("dd", {}, value));
    };
    if (map.level === "windows") add("window", span(map, i, length));
    else add("length", report.clock(length));
    add("recorded", moment(map, i));
    if (map.channel[i] > 0) add("channel", String(map.channel[i]));
    for (const colour of soundMap.values(i)) add(colour.title, colour.text);
    parts.push(rows);
    const clip = clips[map.heard.clip[i]];
    if (clip) {
      const drawn = picture(clip, map, i, length);
      const sound = player(clip, drawn, map, i);
      parts.push(drawn.whole, sound);
      if (map.level === "windows") {
        const only = report.element("button", { type: "button" }, "play the window");
        only.addEventListener("click", () => {
          const stop = map.start[i] + length - clip.start;
          sound.currentTime = Math.max(0, map.start[i] - clip.start);
          const watch = () => {
            if (sound.currentTime >= stop) sound.pause();
            else if (!sound.paused) requestAnimationFrame(watch);
          };
          sound.play().then(watch, () => {});
        });
        parts.push(only);
      }
      if (clip.slowed) {
        const slow = report.element("audio", { controls: true, src: address(clip.slowedSound, "audio/mpeg") });
        slow.setAttribute("aria-label", `slowed ${clip.slowed} times`);
        parts.push(report.element("p", { className: "slowed" },
          `Slowed ${clip.slowed} times, a derived copy of ${report.clock(clip.slowedStart)} – ${report.clock(clip.slowedEnd)}:`), slow);
      }
    } else {
      parts.push(report.element("p", { className: "quiet" },
        "This sound is not in the page. To hear it from the archive:"),
      report.element("pre", {}, command(map, i, length)));
      const near = soundMap.nearestOf(i, map.heard.shown);
      if (near >= 0) {
        const go = report.element("button", { type: "button" }, "nearest dot with sound");
        go.addEventListener("click", () => soundMap.choose(near));
        parts.push(go);
      }
    }
    box.replaceChildren(...parts);
  }

  function play() {
    const sound = box.querySelector("audio");
    if (sound) (sound.paused ? sound.play() : sound.pause());
  }

  return { heard, line, tell, play };
})();
soundMap.tell(soundDetail.tell);
soundMap.start();
