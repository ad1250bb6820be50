"""The section with the maps: what the reader sees before the script draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bioembed_ray.report.frame import Section
from bioembed_ray.report.maps import SoundMap
from bioembed_ray.report.markup import count, is_random, notice, text


def map_section(
    maps: Sequence[SoundMap],
    data: Mapping[str, object],
    files: Mapping[str, str],
    n_clips: int,
    problems: Sequence[str],
    lacking: Mapping[str, int],
) -> Section:
    """Return the section.

    Args:
        maps: All maps.
        data: See `maps.payload`.
        files: Key of a map -> its PNG, relative to the page.
        n_clips: Stretches that can be heard.
        problems: Why others cannot.
        lacking: Encoder -> windows left out, since they hold too little sound; none without any.
    """
    encoders = list(dict.fromkeys(one.encoder for one in maps))
    tabs = "".join(
        f'<button type="button" data-encoder="{text(name)}" aria-pressed="false">{text(name)}</button>'
        for name in encoders
    )
    pictures = " · ".join(
        f'<a href="{text(files[one.key])}">{text(one.key)}.png</a>'
        for one in maps
        if one.key in files
    )
    first = maps[0]
    listed = "".join(f"<li>{text(problem)}</li>" for problem in problems[:20])
    silent = (
        f"<details><summary>{count(len(problems))} recordings could not be read for sound</summary>"
        f"<ul>{listed}</ul></details>"
        if problems
        else ""
    )
    padding = ", ".join(f"{count(number)} of {text(name)}" for name, number in lacking.items())
    left_out = (
        f"<p>Windows that are padding for the most part, at the ends of recordings, are left out: {padding}.</p>"
        if padding
        else ""
    )
    html = f"""
<div class="map" id="map">
  <div class="map-controls">
    <div class="choices" role="group" aria-label="Encoder">{tabs}</div>
    <div class="choices" role="group" aria-label="Level">
      <button type="button" data-level="windows" aria-pressed="true">windows</button>
      <button type="button" data-level="recordings" aria-pressed="false">recordings</button>
    </div>
    <label class="choices">colour by <select id="map-colour"></select></label>
    <button type="button" id="map-reset">whole map</button>
  </div>
  <p class="quiet" id="map-caption" aria-live="polite">{count(len(first.points))} of {count(first.n_all)} windows</p>
  <div class="map-body">
    <div><div class="map-stage">
      <canvas id="map-canvas" tabindex="0" role="application"
        aria-label="Map of sounds. Arrow keys go from point to point, plus and minus zoom, space plays."></canvas>
      <div id="map-tip" class="map-tip" hidden></div>
    </div>
    <div id="map-legend" class="map-legend"></div>
    <p class="quiet" id="map-note"></p></div>
    <aside class="card map-detail" id="map-detail" aria-live="polite">
      <p class="quiet">Point at a dot to see where it is from; choose it to see and hear it.</p>
    </aside>
  </div>
</div>
<noscript>{notice("The maps need JavaScript; as pictures they stand beside this page.")}</noscript>
{silent}
<details><summary>How to read these maps</summary>
<p>Each dot is the vector of one window, or the mean vector of one recording. UMAP (cosine, 15 neighbours,
minimum distance 0.1, a fixed seed) puts dots near each other whose vectors are near. Who is near whom means something; how
far apart two groups are, and how dense they are, does not. Windows are the ones with the smallest hashes of
recording, channel and start, so a rebuilt report shows the same. {count(n_clips)} stretches of sound stand in this page,
chosen to spread over all maps (dots with a rim, where few of them are in view), each with 2 s of context on both sides and made equally loud.
Recordings above 50 kHz also have a slowed copy of the window, a derived copy for people's ears; encoders heard the original.</p>
{left_out}
<p>As pictures: {pictures}</p></details>
"""
    untrained = dict.fromkeys(one.encoder for one in maps if is_random(one.weights))
    warning = notice(
        f'<strong class="random">RANDOM weights: {text(", ".join(untrained))}.</strong> '
        "Who is near whom means nothing on their maps.",
        "warning",
    )
    return Section(
        "maps",
        "Maps",
        (warning if untrained else "") + html,
        data,
        ("map.js", "map_detail.js"),
        "Sounds whose vectors are alike lie together.",
    )
