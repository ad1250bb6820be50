"""Sections of a codebook page that let tokens be seen and heard: the strip and the galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bioembed_ray.audio.clips import data_uri
from bioembed_ray.report.codebook_charts import hue, token_link
from bioembed_ray.report.frame import Section
from bioembed_ray.report.galleries import Places
from bioembed_ray.report.markup import (
    clock,
    count,
    name,
    notice,
    picture,
    player,
    text,
)
from bioembed_ray.report.token_clips import TokenClip
from bioembed_ray.report.token_strip import Strip

SCRIPT = "codebook.js"
ZOOM = (
    '<div class="zoom" role="group" aria-label="Zoom"><button type="button" data-zoom="1">Whole</button>'
    '<button type="button" data-zoom="4">4×</button><button type="button" data-zoom="12">12×</button></div>'
)


def strip_section(strip: Strip) -> Section:
    """Return the tokens of a stretch under its spectrogram, with a player."""
    where = f"{strip.recording}, {clock(strip.start_s)} to {clock(strip.stop_s)}"
    data = {
        "start": strip.start_s,
        "stop": strip.stop_s,
        "bands": strip.bands,
        "slowed": strip.slowed,
        "hop": strip.hop_s,
        # Milliseconds keep a page small; a frame is 20 of them.
        "runs": [
            [r.token, r.band, round(1000 * (r.start_s - strip.start_s), 1), round(1000 * (r.stop_s - strip.start_s), 1)]
            for r in strip.runs
        ],
    }  # fmt: skip
    shown = ""
    if strip.image:
        image = picture(strip.image, f"Spectrogram of {where}", "spectrogram", "image/webp")
        shown = (
            f'<div class="strip-picture">{image}<span class="top">{strip.top_hz / 1000:g} kHz</span>'
            '<span class="bottom">0</span></div>'
        )
    height = min(260, max(46, 12 * strip.bands)) + 22
    slow = f" The sound is {strip.slowed} times slower." if strip.slowed > 1 else ""
    several = (
        f" A time step has {strip.bands} tokens, one per band of frequency, low ones below."
        if strip.bands > 1
        else ""
    )
    lines = [
        (f"band {band}: " if len(strip.texts) > 1 else "") + line
        for band, line in enumerate(strip.texts)
    ]
    html = [
        f'<p class="quiet">{name(strip.recording)}, channel {strip.channel}</p>',
        notice(text(strip.problem), "warning") if strip.problem else "",
        ZOOM,
        '<div class="scroll strip" tabindex="0"><div class="strip-inner">',
        shown,
        f'<canvas class="strip-tokens" style="height:{height}px" role="img" '
        f'aria-label="Tokens of {text(where)}"></canvas><span class="playhead" hidden></span></div></div>',
        player(strip.sound, f"Sound of {where}") if strip.sound else "",
        f'<p class="quiet">A colour is a token, hatching is a gap; choose a run to see the token\'s gallery.{several}{slow}</p>',
        f"<details><summary>As run lengths</summary><pre class='runs'>{text(chr(10).join(lines))}</pre></details>",
    ]
    summary = f"{clock(strip.start_s)} to {clock(strip.stop_s)} of one recording."
    return Section(
        "strip", "In a recording", "".join(html), {"strip-data": data}, (SCRIPT,), summary
    )


def no_strip(recording: str | None) -> Section:
    """Return what stands in the place of a strip that has no tokens to show."""
    line = "No recording has tokens of this codebook."
    if recording is not None:
        line = f"{recording} has no tokens of this codebook; leave --recording out to see another."
    html = notice(text(line), "note")
    return Section("strip", "In a recording", html)


def gallery_section(
    clips: Sequence[TokenClip],
    shown: Sequence[int],
    places: Places,
    problems: Sequence[str],
    lines: Mapping[int, str],
) -> Section:
    """Return a gallery per token.

    Args:
        clips: By token, the best first.
        shown: Tokens with a gallery, the most used first.
        places: How the places were found.
        problems: What could not be heard.
        lines: HTML that says how each token is used.
    """
    mine: dict[int, list[TokenClip]] = {token: [] for token in shown}
    for clip in clips:
        mine[clip.token].append(clip)
    index = "".join(token_link(token) for token in shown)
    pieces = [notice(text(places.note), "note")]
    if problems:
        told = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        pieces.append(
            notice(f"{count(len(problems))} recordings cannot be heard: {text(told)}", "warning")
        )
    pieces.append(f'<nav class="tokens" aria-label="Tokens with a gallery">{index}</nav>')
    for token in shown:
        body = "".join(_clip(clip) for clip in mine[token]) or (
            '<p class="quiet">No place of this token can be heard.</p>'
        )
        pieces.append(
            f'<article class="gallery" id="token-{token}" style="--hue:{hue(token)}" data-of="{token}">'
            f'<h3><i class="swatch"></i>Token {token}</h3><p class="quiet">{lines[token]}</p>'
            f'<div class="clips">{body}</div></article>'
        )
    found = "nearest its centroid" if places.are_nearest else "of its longest runs"
    summary = f"{count(len(shown))} tokens, each with places {found} from different recordings."
    return Section("galleries", "Galleries", "".join(pieces), {}, (SCRIPT,), summary)


def _clip(clip: TokenClip) -> str:
    length = max(1e-9, clip.to_s - clip.from_s)
    left = 100 * max(0.0, clip.start_s - clip.from_s) / length
    wide = 100 * (min(clip.stop_s, clip.to_s) - max(clip.start_s, clip.from_s)) / length
    low, high, band = _band(clip)
    where, last = f"{clip.recording}, {clock(clip.start_s)}", clip.recording.rpartition("/")[2]
    notes = [clock(clip.start_s), *band]
    notes += [f"channel {clip.channel}"] if clip.channel else []
    notes += [f"{clip.slowed}× slower"] if clip.slowed > 1 else []
    return (
        f'<figure class="clip"><button type="button" aria-label="Play {text(where)}">'
        f'<img src="{data_uri(clip.image, "image/webp")}" alt="" loading="lazy" decoding="async">'
        f'<i class="stretch" style="left:{left:.2f}%;width:{max(wide, 0.6):.2f}%;bottom:{low:.2f}%;'
        f'height:{max(high - low, 3):.2f}%"></i><i class="playhead" hidden></i>'
        f'</button><audio preload="none" src="{data_uri(clip.sound, "audio/mpeg")}"></audio>'
        f'<figcaption><span class="name" title="{text(clip.recording)}">{text(last)}</span>'
        f"<span>{text(', '.join(notes))}</span></figcaption></figure>"
    )


def _band(clip: TokenClip) -> tuple[float, float, list[str]]:
    """Return what a token's band covers of the picture, percent from below, and notes on it."""
    if clip.band_hz is None:
        return 0.0, 100.0, [f"band {clip.band}"] * bool(clip.band)
    below, above = clip.band_hz
    if below >= clip.top_hz:
        # A band of silence: the recording's own rate ends below it.
        return 0.0, 100.0, [f"above {below / 1000:.1f} kHz, beyond its rate"]
    above = min(above, clip.top_hz)
    note = f"{below / 1000:.1f}–{above / 1000:.1f} kHz"
    return 100 * below / clip.top_hz, 100 * above / clip.top_hz, [note]
