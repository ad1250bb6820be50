"""The report of an output: one pass over each encoder's windows, then a page and its pictures."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray import storage
from bioembed_ray.config import mask_secrets
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.report import colours
from bioembed_ray.report.frame import Link, Page, Section, render
from bioembed_ray.report.listening import choose_stretches, cut_clips, room
from bioembed_ray.report.map_section import map_section
from bioembed_ray.report.maps import SoundMap, clip_payload, draw, lay_out, payload
from bioembed_ray.report.markup import is_random, notice, text
from bioembed_ray.report.overview import overview
from bioembed_ray.report.panel import choose_recording, panel_section, shown_from
from bioembed_ray.report.sampling import Sampled, sample_windows
from bioembed_ray.report.vectors import vector_section
from bioembed_ray.results import Results, open_output
from bioembed_ray.summary import last_record

MAX_WINDOWS, MOST_WINDOWS = 20_000, 100_000
MAX_CLIPS = 240


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report is made of.

    Attributes:
        max_windows: Most windows of an encoder on its map.
        max_clips: Most stretches of sound in the page.
        recording: The recording shown in full; None lets the report choose.
        min_valid_s: Least seconds of sound of a window on a map; None for half a window.
    """

    max_windows: int = MAX_WINDOWS
    max_clips: int = MAX_CLIPS
    recording: str | None = None
    min_valid_s: float | None = None


def write_report(
    output: str,
    options: ReportOptions,
    folder: str,
    say: Callable[[str], None] = lambda line: None,
    more: Callable[[Results], Iterable[Page]] = lambda results: (),
) -> Iterator[str]:
    """Put the report; yield what was written, line by line.

    Args:
        output: The output.
        options: What it is made of.
        folder: Where it goes; `index.html` and `maps/`.
        say: Is told what is being done.
        more: Gives further pages; all pages link to each other.

    Raises:
        InputError: nothing stands there, or no such recording.
        StorageError: reading or writing failed.
    """
    results = open_output(output)
    followed = choose_recording(results, options.recording)
    shown = shown_from(results, followed)
    names: list[str] = results.recordings().column("recording").to_pylist()
    samples = []
    for encoder in results.encoders:
        try:
            rows = results.windows(encoder)
        except InputError as error:
            # Of several versions none is current yet: the run that makes one is not over.
            say(f"{error}; left out")
            continue
        say(f"{encoder}: reading {rows.count():,} windows")
        found = sample_windows(
            rows, names, options.max_windows, shown, min_valid_s=options.min_valid_s
        )
        samples.append(found)
    # What has most windows is shown first.
    samples.sort(key=lambda one: (-one.n_windows, one.encoder))
    page, pictures = make_index(results, samples, options, followed, say)
    pages = [page, *more(results)]
    links = [Link("index", "Overview"), *(Link(one.slug, one.title) for one in pages[1:])]
    files = {f"{one.slug}.html": render(one, links) for one in pages} | pictures
    for name, body in files.items():
        storage.put(storage.join(folder, name), body)
    for one in pages:
        name = f"{one.slug}.html"
        yield f"{storage.join(folder, name)}: {len(files[name]) / 1e6:.3g} MB, needs no network"
    yield f"{storage.join(folder, 'maps')}: {len(pictures)} maps as PNG"


def make_index(
    results: Results,
    samples: Sequence[Sampled],
    options: ReportOptions,
    followed: str | None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Page, dict[str, bytes]]:
    """Return the first page and the pictures beside it.

    Args:
        results: The output.
        samples: What one pass over each encoder left.
        options: What it is made of.
        followed: The recording shown in full.
        say: Is told what is being done.
    """
    ledger = ledger_file.load(results.output)
    if ledger is None:
        raise InputError(
            f"{results.output}: recordings/ is of another layout; run `bioembed run` to write it anew"
        )
    channels = channels_of(results)
    datasets = [Dataset("embeddings", one.encoder, one.version) for one in samples]
    sections = [overview(results, ledger, datasets)]
    maps, pictures = _maps_section(results, samples, options, channels, say)
    sections += [*maps, vector_section(results, samples, channels)]
    sections.append(panel_section(results, samples, followed, channels))
    untrained = ", ".join(one.encoder for one in samples if is_random(one.weights))
    lead = f'<p class="quiet">{text(mask_secrets(results.output))} · written {_now()}</p>'
    if untrained:
        lead += notice(
            f'<strong class="random">RANDOM weights: {text(untrained)}.</strong> Their vectors mean '
            "nothing; the report shows that the machinery works.",
            "warning",
        )
    title = storage.join(results.output).rstrip("/").rpartition("/")[2] or results.output
    return Page("index", f"Sound archive {title}", lead, sections), pictures


def channels_of(results: Results) -> Literal["mix", "first", "each"]:
    """Return which channels the last run embedded."""
    record = last_record(results.output) or {}
    found: Literal["mix", "first", "each"] = (
        record.get("job", {}).get("input", {}).get("channels", "mix")
    )
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _maps_section(
    results: Results,
    samples: Sequence[Sampled],
    options: ReportOptions,
    channels: Literal["mix", "first", "each"],
    say: Callable[[str], None],
) -> tuple[list[Section], dict[str, bytes]]:
    shown = [one for one in samples if len(one.windows)]
    if not shown:
        return [], {}
    page_names = sorted({n for o in shown for p in (o.windows, o.recordings) for n in p.names})
    known = colours.about(results.recordings(), page_names)
    books = results.current.get("codebooks", {})
    maps: list[SoundMap] = []
    for one in shown:
        say(f"{one.encoder}: laying out {len(one.windows):,} windows")
        own = [
            name for name in results.codebooks if books.get(name, {}).get("encoder") == one.encoder
        ]
        tokens = {name: colours.window_tokens(results, name, one.windows) for name in own}
        per_point = colours.of_points(one.windows, known, tokens)
        whole = colours.of_points(one.recordings, known, {})
        maps.append(lay_out(one, "windows", one.n_windows, per_point))
        maps.append(lay_out(one, "recordings", len(results.recordings()), whole))
    say("cutting out sounds")
    stretches = choose_stretches(
        [(one.points, one.coordinates) for one in maps if one.level == "windows"], options.max_clips
    )
    shared = colours.of_recordings(known)
    first = colours.choose(shared)
    data = payload(maps, known, shared, first.title, _listen(results.output))
    clips, problems = cut_clips(results, stretches, channels, room(data))
    data |= clip_payload(clips, known)
    files = {f"maps/{one.key}.png": _picture(one, known, first) for one in maps}
    links = {one.key: f"maps/{one.key}.png" for one in maps}
    lacking = {one.encoder: one.n_lacking for one in shown if one.n_lacking}
    return [map_section(maps, data, links, len(clips), problems, lacking)], files


def _picture(one: SoundMap, known: colours.About, first: colours.Colouring) -> bytes:
    """Return the PNG of a map, coloured by what the page colours it by at first."""
    number = {name: index for index, name in enumerate(known.names)}
    own = np.array([number[name] for name in one.points.names], np.int64)
    values: npt.NDArray[np.uint16] = first.values[own[one.points.recording]]
    return draw(one, first, values)


def _listen(output: str) -> str:
    return (
        f"bioembed listen --output {shlex.quote(mask_secrets(output))} --recording {{recording}} "
        "--channel {channel} --start {start} --seconds {length} --to listen.wav"
    )
