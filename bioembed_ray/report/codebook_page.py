"""One page per codebook: how healthy it is, and what its tokens look and sound like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bioembed_ray import storage
from bioembed_ray.codebooks.card import Codebook
from bioembed_ray.errors import NotFoundError
from bioembed_ray.report.census import COLUMNS, Census, take_census
from bioembed_ray.report.centroid_map import centroid_map, directions
from bioembed_ray.report.codebook_charts import MOST_POINTS, length, map_chart, share
from bioembed_ray.report.codebook_health import health_section, training_section
from bioembed_ray.report.codebook_sections import (
    SCRIPT,
    gallery_section,
    no_strip,
    strip_section,
)
from bioembed_ray.report.codebook_transitions import token_lines, transition_section
from bioembed_ray.report.frame import Page, Section, read_file
from bioembed_ray.report.galleries import find_places, shown_tokens
from bioembed_ray.report.markup import count, is_random, notice, text, weights_mark
from bioembed_ray.report.token_clips import cut_token_clips, hearing_of
from bioembed_ray.report.token_strip import first_row, make_strip
from bioembed_ray.results import Results
from bioembed_ray.vqvae.model_file import PICTURE_KEY

# Rows of a batch, a segment each: a hundred of VQ-VAE tokens are some 20 million.
BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class CodebookOptions:
    """What a codebook page shows.

    Attributes:
        recording: Recording on the strip; None takes the row with most different tokens per second.
        galleries: Most tokens with a gallery.
        per_token: Most places in a gallery, each of another recording.
        strip_s: Longest strip, seconds.
        most_vectors: Most vectors read to find the places nearest centroids, about.
    """

    recording: str | None = None
    galleries: int = 64
    per_token: int = 6
    strip_s: float = 30.0
    most_vectors: int = 1_000_000


def page_slug(codebook: str) -> str:
    """Return the name of a codebook's page."""
    return f"codebook-{codebook}"


def codebook_pages(
    results: Results, options: CodebookOptions, say: Callable[[str], None] = lambda line: None
) -> Iterator[Page]:
    """Yield a page for every codebook whose tokens are complete, by name.

    Reads all tokens of each once, a bounded sample of vectors, and a few hundred short stretches of
    sound; what a page holds does not grow with the archive.

    Args:
        results: The output.
        options: What a page shows.
        say: Is told what is being done.

    Raises:
        InputError: a codebook is gone.
        StorageError: the output cannot be read.
    """
    current = results.current.get("codebooks", {})
    for name in results.codebooks:
        if name in current:
            say(f"{name}: counting the tokens of {results.tokens(name).count():,} segments")
            yield codebook_page(results, name, options)


def codebook_page(results: Results, name: str, options: CodebookOptions) -> Page:
    """Return the page of one codebook; see `codebook_pages`."""
    book, card = results.codebook(name), results.card(name)
    census = _census(results, name, len(book.centroids), options)
    shown = shown_tokens(census.counts, options.galleries)
    places = find_places(results, book, census, shown, options.per_token, options.most_vectors)
    hearing = hearing_of(results, book)
    clips, problems = cut_token_clips(results, places, shown, hearing)
    sections = [health_section(card, census), _map_section(book, census)]
    start = census.busiest
    if options.recording is not None:
        start = first_row(results, name, options.recording)
    if start is None:
        sections.append(no_strip(options.recording))
    else:
        strip = make_strip(results, name, start, options.strip_s, hearing)
        sections.append(strip_section(strip))
    sections.append(gallery_section(clips, shown, places, problems, token_lines(census, shown)))
    sections.append(transition_section(census, directions(book)))
    if "curve" in card:
        folder = results.codebook_folder(name)
        sections.append(training_section(card, _picture(storage.join(folder, PICTURE_KEY))))
    return Page(
        page_slug(name), f"Codebook {name}", _lead(results, name, book, card, census), sections
    )


def _census(results: Results, name: str, n_codes: int, options: CodebookOptions) -> Census:
    recordings = results.recordings()
    sites: dict[str, str] = {}
    # The manifest's own column knows better than file names and comments.
    for column in ("site", "label_site"):
        if column not in recordings.column_names:
            continue
        pairs = zip(
            recordings.column("recording").to_pylist(),
            recordings.column(column).to_pylist(),
            strict=True,
        )
        sites |= {recording: str(site) for recording, site in pairs if site is not None}
    batches = results.tokens(name).batches(columns=COLUMNS, batch_rows=BATCH_ROWS)
    return take_census(batches, n_codes, sites, len(recordings), options.per_token)


def _map_section(book: Codebook, census: Census) -> Section:
    placed = centroid_map(book)
    total = max(1, int(census.counts.sum()))
    tips = [
        f"token {code}: {share(n / total)}, runs of {length(run_s)}"
        if n
        else f"token {code}: never used"
        for code, (n, run_s) in enumerate(zip(census.counts.tolist(), census.run_s, strict=True))
    ]
    most = f" The {count(MOST_POINTS)} most used are shown." if len(tips) > MOST_POINTS else ""
    html = map_chart(placed, census.counts, tips)
    summary = f"A dot is a centroid, its area the token's use; choose one to hear it.{most}"
    return Section(
        "map", "Map", f'{html}<p class="quiet">{text(placed.note)}</p>', {}, (SCRIPT,), summary
    )


def _lead(
    results: Results, name: str, book: Codebook, card: Mapping[str, Any], census: Census
) -> str:
    """Return what the codebook is, and a warning where its encoder's weights are random."""
    weights = results.tokens(name).weights
    k, dim = book.centroids.shape
    kind = "VQ-VAE codes" if "curve" in card else f"k-means, {text(book.metric)}"
    grid = f", {census.bands} per time step" if census.bands > 1 else ""
    line = (
        f'<p class="quiet">{count(k)} codes of {count(dim)} numbers over {text(book.encoder)} '
        f"({kind}); a token every {length(census.hop_s)}{grid}. "
        f"Version <code>{text(results.tokens(name).version)}</code>, weights: {weights_mark(weights)}</p>"
    )
    warning = ""
    if is_random(weights):
        warning = notice("The encoder's weights are random: its tokens mean nothing.", "warning")
    return f"<style>{read_file('codebook.css')}</style>{line}{warning}"


def _picture(uri: str) -> bytes:
    try:
        return storage.read(uri)
    except NotFoundError:
        return b""
