"""Hits of a search as one HTML file: every hit to look at and to listen to, nothing to be fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import pyarrow as pa

from bioembed_ray.audio import clips
from bioembed_ray.errors import RecordingError, StorageError
from bioembed_ray.results import Results
from bioembed_ray.rows import Rows
from bioembed_ray.search.exact import SCHEMA

# Most seconds shown before and after a hit; less where its window is shorter.
CONTEXT_S = 1.0
# Recordings of ultrasound are played ten times slower, the custom of bat detectors.
SLOWED = 10

STYLE = """
:root { color-scheme: light dark; --edge: #8886; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; }
.warning { border: 1px solid #c60; border-left-width: .5rem; padding: .5rem .8rem; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr));
  list-style: none; padding: 0; }
li { border: 1px solid var(--edge); border-radius: .4rem; padding: .6rem; min-width: 0; }
figure { margin: 0; }
.view { position: relative; }
.view img { display: block; width: 100%; height: 8rem; image-rendering: pixelated; }
.view span { position: absolute; top: 0; bottom: 0; border: solid #fff; border-width: 0 2px;
  box-shadow: 0 0 2px #000, inset 0 0 2px #000; }
audio { width: 100%; margin: .4rem 0; }
b { font-variant-numeric: tabular-nums; }
p { margin: .2rem 0; overflow-wrap: anywhere; }
small { opacity: .8; }
"""


@dataclass(frozen=True, slots=True)
class Clip:
    """A hit with its surroundings, ready for a page.

    Attributes:
        picture: WebP.
        audio: MP3.
        start_s: Where picture and sound begin in the recording.
        stop_s: Where they end.
        top_hz: Upper edge of the picture.
        slowed: How many times slower the sound plays.
    """

    picture: bytes
    audio: bytes
    start_s: float
    stop_s: float
    top_hz: float
    slowed: int


def page(rows: Rows, hits: pa.Table, title: str) -> str:
    """Return hits as a page.

    A hit whose recording can no longer be read stays, with the reason in place of its sound.

    Args:
        rows: The windows that were searched.
        hits: Columns of `search.SCHEMA`, and others to show.
        title: What was searched for.

    Raises:
        InputError: recordings/ does not know one of the recordings.
    """
    shown = hits.to_pylist()
    made = _clips(rows, shown)
    cards = "\n".join(_card(hit, made[hit["rank"]]) for hit in shown)
    about = f"{len(shown)} windows of {rows.partition.encoder}, version {rows.version}"
    warning = ""
    if "RANDOM" in rows.weights:
        text = f"Weights are {rows.weights}: that windows are alike means nothing."
        warning = f'<p class="warning">{escape(text)}</p>'
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Like {escape(title)}</title>
<style>{STYLE}</style>
<h1>Like {escape(title)}</h1>
<p>{escape(about)}. The window stands between the white lines. Loudness is made equal.</p>
{warning}
<ol>
{cards}
</ol>
</html>
"""


def _clips(rows: Rows, hits: Iterable[dict[str, Any]]) -> dict[int, Clip | str]:
    """Return the clip of every hit by rank, or why there is none; recordings are opened once each."""
    by_track: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for hit in hits:
        by_track.setdefault((hit["recording"], hit["channel"]), []).append(hit)
    known = clips.find_recordings(
        Results(rows.output), list(dict.fromkeys(name for name, _ in by_track))
    )
    placement = rows.placement
    heard_hz = placement["rate_hz"] * placement["time_expansion"] / 2
    made: dict[int, Clip | str] = {}
    for (name, channel), own in by_track.items():
        if name not in known:
            made |= {hit["rank"]: "its header was never read" for hit in own}
            continue
        stretches = [_with_context(hit) for hit in own]
        try:
            sounds = clips.read_sounds(known[name], stretches, channel, placement["channels"])
        except (RecordingError, StorageError) as error:
            made |= {hit["rank"]: str(error) for hit in own}
            continue
        for hit, sound in zip(own, sounds, strict=True):
            made[hit["rank"]] = _clip(sound, heard_hz)
    return made


def _with_context(hit: dict[str, Any]) -> tuple[float, float]:
    context = min(CONTEXT_S, hit["end_s"] - hit["start_s"])
    return max(0.0, hit["start_s"] - context), hit["end_s"] + context


def _clip(sound: clips.Sound, heard_hz: float) -> Clip | str:
    if not len(sound.samples):
        return "no sound at this place"
    slowed = SLOWED if sound.is_ultrasound else 1
    top_hz = min(heard_hz, sound.rate_hz / 2)
    stop_s = sound.start_s + len(sound.samples) / sound.rate_hz
    picture = clips.spectrogram_image(sound, max_hz=top_hz)
    return Clip(picture, clips.compressed(sound, slowed), sound.start_s, stop_s, top_hz, slowed)


def _card(hit: dict[str, Any], clip: Clip | str) -> str:
    times = f"{hit['start_s']:.10g} to {hit['end_s']:.10g} s"
    what = f"hit {hit['rank']}, {hit['recording']}, {times}"
    return "\n".join(
        [
            f'<li id="hit-{hit["rank"]}">',
            *_seen_and_heard(hit, clip, what),
            f"<p><b>{hit['rank']}.</b> <b>{hit['score']:.4f}</b> {escape(hit['recording'])}</p>",
            f"<p><small>{times}, channel {hit['channel']}{_others(hit)}</small></p>",
            "</li>",
        ]
    )


def _seen_and_heard(hit: dict[str, Any], clip: Clip | str, what: str) -> Iterator[str]:
    if isinstance(clip, str):
        yield f"<p><em>No sound: {escape(clip)}</em></p>"
        return
    length = clip.stop_s - clip.start_s
    left = 100 * (hit["start_s"] - clip.start_s) / length
    width = 100 * (min(hit["end_s"], clip.stop_s) - hit["start_s"]) / length
    slower = f", played {clip.slowed} times slower" if clip.slowed > 1 else ""
    picture = clips.data_uri(clip.picture, "image/webp")
    sound = clips.data_uri(clip.audio, "audio/mpeg")
    yield "<figure>"
    yield f'<div class="view"><img alt="Spectrogram of {escape(what)}" src="{picture}">'
    yield f'<span style="left:{left:.2f}%;width:{width:.2f}%"></span></div>'
    yield f'<audio controls preload="none" aria-label="{escape(what)}" src="{sound}"></audio>'
    yield (
        f"<figcaption><small>{clip.start_s:.4g} to {clip.stop_s:.4g} s, "
        f"0 to {clip.top_hz / 1000:.4g} kHz{slower}</small></figcaption>"
    )
    yield "</figure>"


def _others(hit: dict[str, Any]) -> str:
    """Return the columns that were joined, those with a value."""
    found = (
        f", {escape(name)} {escape(str(value))}"
        for name, value in hit.items()
        if name not in SCHEMA.names and value is not None
    )
    return "".join(found)
