"""The Arrow schema of every table that a run writes."""

from __future__ import annotations

import pyarrow as pa

TEXT = pa.string()


def vector(dim: int, dtype: str) -> pa.DataType:
    """Return the type of a vector column: a plain fixed-size list, no extension type."""
    return pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)


def embeddings(dim: int, dtype: str) -> pa.Schema:
    """Return the schema of embeddings/: one row per window."""
    return pa.schema(
        [
            pa.field("recording", TEXT, nullable=False),
            pa.field("channel", pa.int16(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("valid_s", pa.float32(), nullable=False),
            pa.field("embedding", vector(dim, dtype), nullable=False),
        ]
    )


def frames(dim: int, dtype: str) -> pa.Schema:
    """Return the schema of frames/: one row per frame.

    `sample` is the first sample the frame sees, at the encoder's rate, from the recording's start.
    """
    return pa.schema(
        [
            pa.field("recording", TEXT, nullable=False),
            pa.field("channel", pa.int16(), nullable=False),
            pa.field("sample", pa.int64(), nullable=False),
            pa.field("patch", pa.int16(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("embedding", vector(dim, dtype), nullable=False),
        ]
    )


def tokens(token_type: str) -> pa.Schema:
    """Return the schema of tokens/: one row per segment and channel; a null token is a gap.

    Token i starts at `start_s + (i // per_step) * hop_s`.
    """
    item = pa.int16() if token_type == "int16" else pa.int32()
    return pa.schema(
        [
            pa.field("recording", TEXT, nullable=False),
            pa.field("channel", pa.int16(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("hop_s", pa.float64(), nullable=False),
            pa.field("per_step", pa.int16(), nullable=False),
            pa.field("tokens", pa.list_(item), nullable=False),
        ]
    )


SPAN = pa.struct(
    [
        pa.field("shard", TEXT),
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
    ]
)
"""Where a piece of a recording is; native samples, `stop` null to the end."""

OUTCOME = pa.struct(
    [
        pa.field("shard", TEXT),
        pa.field("table", TEXT),
        pa.field("encoder", TEXT),
        pa.field("version", TEXT),
        pa.field("n_decoded", pa.int64()),
        pa.field("n_extent", pa.int64()),
        pa.field("n_nonfinite", pa.int64()),
        pa.field("n_rows", pa.int64()),
        pa.field("embedded", pa.int64()),
        pa.field("padded", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("skipped", pa.int64()),
    ]
)
"""What became of one span in one part; samples of all channels encoded."""

RECORDINGS = pa.schema(
    [
        pa.field("recording", TEXT, nullable=False),
        pa.field("status", TEXT, nullable=False),
        pa.field("reason", TEXT),
        pa.field("uri", TEXT, nullable=False),
        pa.field("stamp", TEXT, nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("column", TEXT),
        pa.field("inside", TEXT),
        pa.field("container", TEXT),
        pa.field("subtype", TEXT),
        pa.field("rate_hz", pa.int32()),
        pa.field("channels", pa.int16()),
        pa.field("n_samples_header", pa.int64()),
        pa.field("n_samples_promised", pa.int64()),
        pa.field("n_samples_decoded", pa.int64()),
        pa.field("duration_s", pa.float64()),
        pa.field("n_nonfinite", pa.int64()),
        pa.field("recorded_at", TEXT),
        pa.field("recorded_at_has_zone", pa.bool_()),
        pa.field("device", TEXT),
        pa.field("site", TEXT),
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
        pa.field("time_expansion", pa.float64()),
        pa.field("spans", pa.list_(SPAN)),
        pa.field("outcomes", pa.list_(OUTCOME)),
        pa.field("header", TEXT),
    ]
)
"""recordings/: one row per recording; the manifest's columns follow as they came."""

FAILURES = pa.schema(
    [
        pa.field("recording", TEXT, nullable=False),
        pa.field("encoder", TEXT),
        pa.field("version", TEXT),
        pa.field("channel", pa.int16()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("n_samples", pa.int64()),
        pa.field("reason", TEXT, nullable=False),
        pa.field("detail", TEXT, nullable=False),
        pa.field("is_transient", pa.bool_(), nullable=False),
        pa.field("shard", TEXT),
        pa.field("reader_version", pa.int32(), nullable=False),
    ]
)
"""failures/: one row per failure; `encoder` is null where it holds for all of them."""


def label_title(key: str) -> str:
    """Return the column of a label: its own name, or one more `label_` where that is taken."""
    return f"label_{key}" if _is_ours(key) else key


def label_of(title: str) -> str:
    """Return the label that stands in a column.

    >>> label_title("site"), label_of(label_title("site"))
    ('label_site', 'site')
    """
    return title.removeprefix("label_") if _is_ours(title) else title


def _is_ours(title: str) -> bool:
    while title not in RECORDINGS.names and title.startswith("label_"):
        title = title.removeprefix("label_")
    return title in RECORDINGS.names
