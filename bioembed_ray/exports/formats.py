"""What `export` can write, for whom, and what each format needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from bioembed_ray.errors import ConfigError
from bioembed_ray.exports.pooling import Pool
from bioembed_ray.exports.rows import Level

VECTORS = ("npy", "pt", "csv", "datasets", "hoplite", "atlas")
TOKENS = ("text", "runs", "raven", "audacity")
OUTPUT = ("views",)


@dataclass(frozen=True, slots=True)
class Request:
    """What is exported, and how.

    Attributes:
        output: The output that is read.
        folder: Where files go.
        formats: Of `VECTORS`, `TOKENS` and `OUTPUT`.
        encoders: Encoders; all where none is named.
        version: Of one encoder; None for the current one.
        level: One row per window or per recording.
        pool: How a recording's windows become one vector.
        codebooks: Codebooks whose tokens are exported, instead of vectors.
        labels: Column of recordings/ whose values become hoplite's annotations.
        keep_vectors: Whether `atlas` writes vectors too.
        min_valid_s: Least seconds of sound in a window; 0 takes all.
        is_relative: Whether `views` has paths relative to the output.
    """

    output: str
    folder: str
    formats: tuple[str, ...]
    encoders: tuple[str, ...] = ()
    version: str | None = None
    level: Level = "window"
    pool: Pool = "mean"
    codebooks: tuple[str, ...] = ()
    labels: str | None = None
    keep_vectors: bool = False
    min_valid_s: float = 0.0
    is_relative: bool = False


def formats_of(text: str | None, codebooks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats that an option names; the usual one without it.

    Raises:
        ConfigError: no such format.
    """
    named = text or ("text" if codebooks else "npy")
    kinds = tuple(dict.fromkeys(kind.strip() for kind in named.split(",")))
    known = (*VECTORS, *TOKENS, *OUTPUT)
    for kind in kinds:
        if kind not in known:
            near = difflib.get_close_matches(kind, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"--format: got {kind!r}; {hint}there is {', '.join(known)}")
    return kinds


def check(request: Request) -> None:
    """Refuse what does not go together, in one line that says what does.

    Raises:
        ConfigError: an option that no format here reads, or one that a format needs.
    """
    vectors = [kind for kind in request.formats if kind in VECTORS]
    tokens = [kind for kind in request.formats if kind in TOKENS]
    if tokens and not request.codebooks:
        raise ConfigError(f"--format {tokens[0]}: is for tokens; name a codebook with --codebook")
    if vectors and request.codebooks:
        raise ConfigError(
            f"--format {vectors[0]}: is for vectors; with --codebook use {', '.join(TOKENS)}"
        )
    if not tokens and request.codebooks:
        raise ConfigError(f"--codebook: nothing to write; use --format {', '.join(TOKENS)}")
    for option, value in (("--encoder", request.encoders), ("--version", request.version)):
        if value and not vectors:
            raise ConfigError(f"{option}: is for {', '.join(VECTORS)}")
    if request.level == "recording" and not vectors:
        raise ConfigError(f"--level recording: is for {', '.join(VECTORS)}")
    if request.level == "recording" and "hoplite" in vectors:
        raise ConfigError("--format hoplite: holds windows; leave --level recording away")
    if request.labels is not None and "hoplite" not in vectors:
        raise ConfigError("--labels: only hoplite holds annotations; add --format hoplite")
    if request.keep_vectors and "atlas" not in vectors:
        raise ConfigError("--keep-vectors: is for --format atlas; the others hold vectors anyway")
    if request.min_valid_s and not vectors:
        raise ConfigError(f"--min-valid-s: is for {', '.join(VECTORS)}")
    if request.is_relative and "views" not in request.formats:
        raise ConfigError("--relative: is for --format views")


def export_all(request: Request) -> Iterator[str]:
    """Write every format; yield one line per file or folder.

    Raises:
        ConfigError: see `check`.
        InputError: nothing stands there, or not what was asked for.
        StorageError: reading or writing failed.
    """
    check(request)
    if request.codebooks:
        yield from _export_tokens(request)
    elif any(kind in VECTORS for kind in request.formats):
        yield from _export_vectors(request)
    if "views" in request.formats:
        from bioembed_ray.exports.views import export_views

        yield from export_views(request.output, request.folder, request.is_relative)


def _export_tokens(request: Request) -> Iterator[str]:
    from bioembed_ray.exports.token_annotations import export_annotations
    from bioembed_ray.exports.tokens import export_tokens

    rows = tuple(kind for kind in request.formats if kind in {"text", "runs"})
    if rows:
        yield from export_tokens(request.output, request.codebooks, rows, request.folder)
    for kind in request.formats:
        if kind in {"raven", "audacity"}:
            for codebook in request.codebooks:
                yield from export_annotations(request.output, codebook, kind, request.folder)


def _export_vectors(request: Request) -> Iterator[str]:
    from bioembed_ray.exports.atlas import export_atlas
    from bioembed_ray.exports.datasets import export_dataset, write_card
    from bioembed_ray.exports.hoplite import export_hoplite
    from bioembed_ray.exports.rows import Chosen
    from bioembed_ray.exports.vectors import export_arrays, export_csv
    from bioembed_ray.results import open_output

    results = open_output(request.output)
    arrays = tuple(kind for kind in request.formats if kind in {"npy", "pt"})
    settings = (request.level, request.pool, request.min_valid_s, request.folder)
    # All are found before the first is written.
    every = [
        Chosen(name, results.windows(name, request.version), *settings)
        for name in request.encoders or tuple(results.encoders)
    ]
    for chosen in every:
        if arrays:
            yield from export_arrays(chosen, arrays, request.folder)
        if "csv" in request.formats:
            yield from export_csv(chosen, request.folder)
        if "datasets" in request.formats:
            yield from export_dataset(chosen, request.folder)
        if "hoplite" in request.formats:
            yield from export_hoplite(chosen, request.folder, request.labels)
        if "atlas" in request.formats:
            yield from export_atlas(chosen, request.folder, request.keep_vectors)
    if "datasets" in request.formats:
        yield write_card(request.folder)
