"""The ledger as two Parquet tables, each put in one step, and back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import NotFoundError, Reason
from bioembed_ray.inputs import Recording, Source
from bioembed_ray.ledger import Known, Ledger, Piece
from bioembed_ray.metadata import Metadata
from bioembed_ray.outcomes import Failure, SpanOutcome
from bioembed_ray.probe import Header
from bioembed_ray.windows import Coverage

RECORDINGS_KEY = "recordings/recordings.parquet"


FAILURES_KEY = "failures/failures.parquet"


def load(output: str) -> Ledger | None:
    """Return the ledger of an output, None where it has none (or one of another layout).

    Raises:
        StorageError: reading failed.
    """
    try:
        recordings = storage.read(storage.join(output, RECORDINGS_KEY))
        failures = storage.read(storage.join(output, FAILURES_KEY))
    except NotFoundError:
        return None
    try:
        table = pq.read_table(io.BytesIO(recordings))
        rows = table.to_pylist()
        failed = pq.read_table(io.BytesIO(failures)).to_pylist()
        ledger = Ledger({row["recording"]: _known(row) for row in rows})
        for row in failed:
            failure = _failure(row)
            entry = ledger.known.get(failure.recording)
            if failure.shard is None and entry is not None:
                entry.failure = failure
            else:
                ledger.failures.append(failure)
    # ArrowInvalid, a bad date and an unknown reason are ValueErrors; a torn table is an OSError.
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return ledger


def save(output: str, ledger: Ledger) -> None:
    """Put both tables, each in one step.

    Raises:
        StorageError: writing failed.
    """
    storage.put(storage.join(output, FAILURES_KEY), _parquet(failures_table(ledger.all_failures())))
    storage.put(storage.join(output, RECORDINGS_KEY), _parquet(recordings_table(ledger)))


def known_rows(table: pa.Table) -> list[Known]:
    """Return some rows of recordings/ as what is known of them, without their failures."""
    return [_known(row) for row in table.to_pylist()]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def failures_table(failures: Iterable[Failure]) -> pa.Table:
    """Return failures as a table."""
    rows = [
        {
            **asdict(failure),
            "reason": failure.reason.value,
            "is_transient": failure.reason.is_transient,
        }
        for failure in failures
    ]
    return pa.Table.from_pylist(rows, schema=schema.FAILURES)


def recordings_table(ledger: Ledger) -> pa.Table:
    """Return one row per recording, in name order, the manifest's columns last."""
    names = sorted(ledger.known)
    reasons = {failure.recording: failure.reason.value for failure in reversed(ledger.failures)}
    rows = [_row(ledger.known[name], reasons.get(name)) for name in names]
    table = pa.Table.from_pylist(rows, schema=schema.RECORDINGS)
    keys: dict[str, None] = {}
    for name in names:
        keys.update(dict.fromkeys(ledger.known[name].recording.labels))
    for key in keys:
        values = [ledger.known[name].recording.labels.get(key) for name in names]
        column = _label_column(values)
        table = table.append_column(pa.field(_title(key), column.type), column)
    return table.replace_schema_metadata({"bioembed.labels": json.dumps(list(keys))})


def _title(key: str) -> str:
    """Return the column of a label: its own name, or one more `label_` where that is taken."""
    return f"label_{key}" if _is_ours(key) else key


def _is_ours(title: str) -> bool:
    while title not in schema.RECORDINGS.names and title.startswith("label_"):
        title = title.removeprefix("label_")
    return title in schema.RECORDINGS.names


def _label_column(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        array = pa.array([None if value is None else str(value) for value in values])
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _row(entry: Known, reason: str | None) -> dict[str, Any]:
    source, header, metadata = entry.recording.source, entry.header, entry.metadata
    n_decoded = entry.n_decoded
    row: dict[str, Any] = {
        "recording": entry.recording.name,
        "status": entry.status,
        "reason": entry.failure.reason.value if entry.failure is not None else reason,
        **asdict(source),
        "n_samples_decoded": n_decoded,
        "n_nonfinite": entry.n_nonfinite,
        "spans": [asdict(piece) for piece in entry.pieces],
        "outcomes": [_outcome_row(key, outcome) for key, outcome in entry.outcomes.items()],
    }
    if header is not None:
        row |= {
            "container": header.container,
            "subtype": header.subtype,
            "rate_hz": header.rate_hz,
            "channels": header.channels,
            "n_samples_header": header.n_samples,
            "header": _header_text(header),
        }
        n_samples = header.n_samples if n_decoded is None else n_decoded
        row["duration_s"] = None if n_samples is None else n_samples / header.rate_hz
    if metadata is not None:
        at = metadata.recorded_at
        row |= {
            "recorded_at": None if at is None else at.isoformat(),
            "recorded_at_has_zone": None if at is None else at.tzinfo is not None,
            "device": metadata.device,
            "site": metadata.site,
            "latitude": metadata.latitude,
            "longitude": metadata.longitude,
            "time_expansion": metadata.time_expansion,
        }
    # Manifest columns are read back by name, so that a run without the manifest keeps them apart.
    return row


def _outcome_row(key: tuple[Dataset, str], outcome: SpanOutcome) -> dict[str, Any]:
    dataset, shard = key
    return {
        "shard": shard,
        **asdict(dataset),
        "n_decoded": outcome.n_decoded,
        "n_nonfinite": outcome.n_nonfinite,
        "n_rows": outcome.n_rows,
        **asdict(outcome.coverage),
    }


def _header_text(header: Header) -> str:
    values = asdict(header)
    values["patches"] = [[offset, body.hex()] for offset, body in header.patches]
    return json.dumps(values)


def _header(text: str) -> Header:
    values = json.loads(text)
    values["patches"] = tuple((offset, bytes.fromhex(body)) for offset, body in values["patches"])
    return Header(**values)


def _known(row: dict[str, Any]) -> Known:
    source = Source(
        row["uri"], row["stamp"], row["size_bytes"], row["offset"], row["row"], row["column"]
    )
    extra = {
        title.removeprefix("label_") if _is_ours(title) else title: value
        for title, value in row.items()
        if title not in schema.RECORDINGS.names
    }
    at = row["recorded_at"]
    known = Known(Recording(row["recording"], source, extra))
    if row["header"] is not None:
        known.header = _header(row["header"])
        known.metadata = Metadata(
            recorded_at=None if at is None else datetime.fromisoformat(at),
            device=row["device"],
            site=row["site"],
            latitude=row["latitude"],
            longitude=row["longitude"],
            time_expansion=row["time_expansion"],
        )
    known.pieces = [Piece(**piece) for piece in row["spans"] or []]
    for outcome in row["outcomes"] or []:
        dataset = Dataset(outcome["table"], outcome["encoder"], outcome["version"])
        known.outcomes[dataset, outcome["shard"]] = SpanOutcome(
            row["recording"],
            outcome["n_decoded"],
            outcome["n_nonfinite"],
            outcome["n_rows"],
            Coverage(outcome["embedded"], outcome["padded"], outcome["failed"], outcome["skipped"]),
        )
    return known


def _failure(row: dict[str, Any]) -> Failure:
    values = {key: value for key, value in row.items() if key != "is_transient"}
    return Failure(**{**values, "reason": Reason(values["reason"])})
