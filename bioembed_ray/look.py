"""`init` for people: what is in an archive, and a job file for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bioembed_ray.audio.probe import Header, probe
from bioembed_ray.config import DEFAULT_MODELS, InputConfig
from bioembed_ray.errors import (
    ConfigError,
    InputError,
    NoBucketError,
    NotFoundError,
    RecordingError,
    StorageError,
)
from bioembed_ray.inputs.listing import Recording, list_input

LOOKED_AT = 40
# Above this, most of the band is ultrasound and no encoder at 16 kHz hears the animal.
ULTRASOUND_HZ = 96_000


def write_job_file(config: InputConfig, output: str, encoders: tuple[str, ...]) -> str:
    """Return a commented job file for an archive, after looking at a few recordings.

    Raises:
        ConfigError: an encoder that it has no defaults for.
        InputError, StorageError: nothing to read, or not reachable.
    """
    unknown = [name for name in encoders if name not in DEFAULT_MODELS]
    if unknown:
        known = ", ".join(DEFAULT_MODELS)
        raise ConfigError(f"--encoders: got {unknown[0]!r}; init knows {known}")
    try:
        listing = list_input(config)
    except (NotFoundError, NoBucketError) as error:
        raise InputError(f"--input: {error}") from error
    recordings = listing.recordings
    step = max(1, math.ceil(len(recordings) / LOOKED_AT))
    looked = recordings[::step]
    with ThreadPoolExecutor(8) as pool:
        headers = [header for header in pool.map(_header, looked) if header is not None]
    rates = Counter(header.rate_hz for header in headers)
    expansion = _suggested_expansion(headers)
    lines = [
        f"# Written by `bioembed init` after looking at {len(looked)} of {len(recordings)} recordings"
        + (
            f" (and {len(listing.containers)} tar or Parquet files unopened)."
            if listing.containers
            else "."
        ),
        *(f"#   {line}" for line in _found(headers, len(looked))),
        "",
        "input:",
        f"  uri: {_quoted(config.uri if isinstance(config.uri, str) else list(config.uri))}",
        "  # Globs on the path below uri; empty takes every audio extension.",
        '  # include: ["**/*.wav"]',
        "  # A CSV or Parquet table with a uri column; its other columns (site, label) ride along.",
        "  # manifest: recordings.csv",
        "  # mix: mean of all channels; first: channel 0; each: every channel on its own.",
        f"  channels: {config.channels}",
    ]
    if expansion > 1:
        top = max(rates) / 2000
        lines += [
            f"  # The fastest recordings hold up to {top:g} kHz; the encoders hear up to 8 kHz. Played {expansion} times",
            f"  # slower, they hear up to {8 * expansion} kHz. Positions stay in real time.",
        ]
    else:
        lines.append(
            "  # For ultrasound: 10 plays a recording ten times slower before it is heard."
        )
    lines += [
        f"  time_expansion: {expansion}",
        "",
        f"output: {_quoted(output)}",
        "",
        "# Object stores other than the cloud's own, public ones and slow ones; credentials never stand here.",
        "# storage:",
        "#   input:  {requester_pays: true}   # or anonymous: true, region: us-west-2",
        '#   output: {endpoint: "http://minio.lab:9000", timeout_s: 120, retries: 5, retry_s: 60}',
        "",
        "# Each encoder's weights are `pretrained`; a path to a checkpoint, or `random` for a dry run.",
        "encoders:",
    ]
    for name in encoders:
        lines += _encoder_lines(name)
    lines += [
        "",
        "# Longest piece that is read at once, and audio per committed part.",
        "segment_s: 300",
        "shard_minutes: 30",
        "# Above this share of failed input the run ends with exit code 3; what is good stays.",
        "max_failed_fraction: 0.01",
        "",
    ]
    return "\n".join(lines)


def _encoder_lines(name: str) -> list[str]:
    settings = {
        "beats": "window_s: 1.0, hop_s: 0.5",
        "efficientnet": "window_s: 1.0, hop_s: 0.5",
        "wav2vec2": "window_s: 1.0, hop_s: 0.5  # layer: 6, or several: [6, 9]",
        "hubert": "window_s: 1.0, hop_s: 0.5  # layer: 6, or several: [6, 9]",
        "ast": "window_s: 10.24, hop_s: 10.24",
        "vqvae": "window_s: 1.0, hop_s: 0.5  # trained on this archive; see training",
    }.get(name, "")
    values, _, comment = settings.partition("  # ")
    line = (
        f"  {name}: {{model: {DEFAULT_MODELS.get(name, name)}"
        + (f", {values}" if values else "")
        + "}"
    )
    return [line + (f"  # {comment}" if comment else "")]


def _quoted(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _header(recording: Recording) -> Header | None:
    try:
        return probe(recording.source)[0]
    except (RecordingError, StorageError):
        return None


def _found(headers: list[Header], n_looked: int) -> Iterator[str]:
    if len(headers) < n_looked:
        yield f"{n_looked - len(headers)} could not be read"
    for title, counts in (
        ("formats", Counter(f"{header.container} {header.subtype}" for header in headers)),
        ("rates", Counter(f"{header.rate_hz} Hz" for header in headers)),
        ("channels", Counter(str(header.channels) for header in headers)),
    ):
        yield f"{title}: " + ", ".join(f"{value} ({n})" for value, n in counts.most_common(6))
    lengths = sorted(h.n_samples / h.rate_hz for h in headers if h.n_samples is not None)
    if lengths:
        middle = lengths[len(lengths) // 2]
        yield f"lengths: {lengths[0]:.3g} s to {lengths[-1]:.3g} s, median {middle:.3g} s"


def _suggested_expansion(headers: list[Header]) -> int:
    """Return 10, as bat detectors do, where most recordings hold ultrasound; else 1."""
    fast = [header for header in headers if header.rate_hz > ULTRASOUND_HZ]
    return 10 if len(fast) * 2 > len(headers) else 1
