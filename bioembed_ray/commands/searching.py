"""`bioembed search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from bioembed_ray.commands.options import JOB, MIN_VALID, OUTPUT, SET, output_of, say
from bioembed_ray.config import mask_secrets
from bioembed_ray.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from bioembed_ray.results import Results
    from bioembed_ray.rows import Rows
    from bioembed_ray.search.exact import Found, Metric
    from bioembed_ray.search.filters import Among
    from bioembed_ray.search.query import Query
    from bioembed_ray.search.tables import Format


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of `search`, by the names that click gives them."""

    encoder: str | None
    version: str | None
    audio: str | None
    start_s: float
    stop_s: float | None
    recording: str | None
    at_s: float | None
    vector: str | None
    each: bool
    weights: str | None
    top: int
    metric: Metric
    where: tuple[str, ...]
    since: str | None
    until: str | None
    channel: int | None
    per_recording: int | None
    exclude_self: bool
    min_valid_s: float | None
    use_index: bool
    build_index: bool
    join: tuple[str, ...]
    named: str | None
    target: str | None

    def __post_init__(self) -> None:
        n_queries = sum(one is not None for one in (self.audio, self.recording, self.vector))
        if n_queries > 1 or (n_queries == 0 and not self.build_index):
            raise ConfigError("search for one thing: --audio, --recording with --at, or --vector")
        if (self.recording is None) != (self.at_s is None):
            raise ConfigError("--recording and --at go together")
        if self.exclude_self and self.recording is None:
            raise ConfigError("--exclude-self: only --recording says where the query lies")
        if self.audio is None and (self.start_s or self.stop_s is not None):
            raise ConfigError("--start and --stop are times of --audio; a window is given by --at")
        if self.metric == "dot" and (self.use_index or self.build_index):
            raise ConfigError("--metric dot: the index knows cosines only; leave it out")

    @property
    def has_query(self) -> bool:
        """False where only an index is to be built."""
        return any(one is not None for one in (self.audio, self.recording, self.vector))


@click.command()
@JOB
@OUTPUT
@SET
@click.option("--encoder", help="Whose windows; may be left out where there is one encoder.")
@click.option("--version", help="Which version; the current one without it.")
@click.option("--audio", help="Search for the sound of this file.")
@click.option("--start", "start_s", type=float, default=0.0, help="First second of it.")
@click.option("--stop", "stop_s", type=float, help="Last second of it; the file's end without it.")
@click.option("--recording", help="Search for a window of the archive, with --at.")
@click.option("--at", "at_s", type=float, help="Second at which that window starts.")
@click.option("--vector", help="Search for the vector in a .npy file.")
@click.option("--each", is_flag=True, help="Near any window of the query, not near their mean.")
@click.option("--weights", help="Where the encoder's weights are now, for --audio.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Most hits.")
@click.option("--metric", type=click.Choice(["cosine", "dot"]), default="cosine", show_default=True)
@click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Only such recordings.")
@click.option("--since", help="Only recordings that began at this time or later.")
@click.option("--until", help="Only recordings that began before; a day counts whole.")
@click.option("--channel", type=int, help="Only this channel, of --recording too.")
@click.option("--per-recording", type=click.IntRange(1), help="Most hits of one recording.")
@click.option("--exclude-self", is_flag=True, help="No hits that overlap --recording's window.")
@MIN_VALID
@click.option("--index", "use_index", is_flag=True, help="Look into the index, not everywhere.")
@click.option("--build-index", is_flag=True, help="Build the index, again where one stands.")
@click.option("--join", multiple=True, metavar="COLUMN", help="Beside the hits, of recordings/.")
@click.option(
    "--format",
    "named",
    type=click.Choice(["table", "csv", "parquet", "raven", "audacity", "html"]),
    help="What to write; the name of --to says it too.",
)
@click.option("--to", "target", help="File for the hits; a folder for Audacity.")
def search(job: str | None, output: str | None, overrides: Sequence[str], **options: Any) -> None:
    """Find the windows most like a sound, a window or a vector, and say where they are."""
    from bioembed_ray.results import open_output
    from bioembed_ray.search.filters import choose_recordings
    from bioembed_ray.search.tables import USUAL, format_of

    asked = Asked(**options)
    kind = format_of(asked.target, asked.named)
    results = open_output(output_of(job, output, overrides))
    rows = results.windows(_one_encoder(results, asked.encoder), asked.version)
    among = choose_recordings(results.recordings(), asked.where, asked.since, asked.until)
    if asked.build_index:
        _build_index(rows)
    if not asked.has_query:
        return
    query = _query(rows, asked)
    found = _found(rows, query, asked, among)
    for line in _remarks(rows, query, found, among, asked):
        say(line)
    known = results.recordings().column_names
    extra = [*USUAL, *(pair.partition("=")[0] for pair in asked.where), *asked.join]
    usual = [name for name in dict.fromkeys(extra) if name in known or name in asked.join]
    hits = rows.with_recordings(found.hits, [name for name in usual if name != "recording"])
    _give(rows, hits, query, kind, asked.target)


def _one_encoder(results: Results, name: str | None) -> str:
    if name is None and len(results.encoders) > 1:
        raise ConfigError(f"--encoder: is missing; give one of {', '.join(results.encoders)}")
    return results.encoders[0] if name is None else name


def _query(rows: Rows, asked: Asked) -> Query:
    from bioembed_ray import storage
    from bioembed_ray.search import query as search_query

    if asked.audio is not None:
        sounding = search_query.Sounding(asked.audio, asked.start_s, asked.stop_s)
        found = search_query.from_sound(rows, sounding, asked.weights)
    elif asked.recording is not None and asked.at_s is not None:
        found = search_query.from_window(rows, asked.recording, asked.at_s, asked.channel)
    else:
        found = search_query.from_vector(storage.absolute(asked.vector or ""))
    return found if asked.each else found.mean()


def _found(rows: Rows, query: Query, asked: Asked, among: Among) -> Found:
    from bioembed_ray.search import index as search_index
    from bioembed_ray.search.exact import Wanted, scan
    from bioembed_ray.search.filters import on_channel

    wanted = Wanted(
        query.vectors,
        asked.top,
        asked.metric,
        asked.per_recording,
        query.own if asked.exclude_self else None,
        on_channel(asked.channel),
        among.condition,
        asked.min_valid_s,
    )
    if asked.use_index or asked.build_index:
        return search_index.look_up(rows, wanted)
    return scan(rows, wanted)


def _build_index(rows: Rows) -> None:
    from bioembed_ray.search import index as search_index

    for line in search_index.build(rows):
        say(line)


def _remarks(rows: Rows, query: Query, found: Found, among: Among, asked: Asked) -> list[str]:
    remarks = [f"{query.title}: compared with {found.n_compared:,} windows"]
    if "RANDOM" in rows.weights:
        name = rows.partition.encoder
        remarks.append(f"{name}: weights are {rows.weights}; that windows are alike means nothing")
    if found.n_left_out:
        remarks.append(
            f"{found.n_left_out:,} windows with less than {rows.enough(asked.min_valid_s).least_s:g} s of "
            f"sound are left out; --min-valid-s 0 takes them in"
        )
    if found.n_unusable:
        remarks.append(f"{found.n_unusable:,} windows are zero or not finite and have no score")
    if among.n_without_zone:
        remarks.append(
            f"{among.n_without_zone:,} recordings are left out, their clocks tell no zone; give "
            f"--since and --until without one to go by the clocks"
        )
    return remarks


def _give(rows: Rows, hits: pa.Table, query: Query, kind: Format, target: str | None) -> None:
    from bioembed_ray.search.page import page
    from bioembed_ray.search.tables import text_of, write
    from bioembed_ray.storage import absolute, put

    if target is None:
        for line in text_of(rows, hits, kind):
            click.echo(line)
        return
    if kind == "html":
        put(absolute(target), page(rows, hits, query.title).encode())
        click.echo(mask_secrets(target))
        return
    for uri in write(rows, hits, kind, absolute(target)):
        click.echo(mask_secrets(uri))
