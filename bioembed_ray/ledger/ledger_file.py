"""The ledger as two Parquet tables, each put in one step, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bioembed_ray import schema, storage
from bioembed_ray.audio.probe import Header
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import NotFoundError, Reason
from bioembed_ray.inputs.listing import Recording
from bioembed_ray.ledger.at_rest import WANTED_KEY, AtRest
from bioembed_ray.ledger.entries import Entries
from bioembed_ray.ledger.known import Known
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.ledger.states import STATES, state_of, states_of
from bioembed_ray.outcomes import Failure, SpanOutcome

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
        failed = pq.read_table(pa.BufferReader(failures)).to_pylist()
        rows = AtRest(recordings)
        ledger = Ledger(Entries(rows=rows), wanted=rows.wanted)
        found = [_failure(row) for row in failed]
    # ArrowInvalid, a bad date and an unknown reason are ValueErrors; a torn table is an OSError.
    except (ValueError, KeyError, TypeError, OSError):
        return None
    ledger.known.wake([failure.recording for failure in found if failure.shard is None])
    for failure in found:
        entry = ledger.known.active.get(failure.recording)
        if failure.shard is None and entry is not None:
            entry.failure = failure
        else:
            ledger.failures.append(failure)
    return ledger


def save(output: str, ledger: Ledger) -> None:
    """Put both tables, each in one step; recordings/ only where something is another than was read.

    Raises:
        StorageError: writing failed.
    """
    storage.put(storage.join(output, FAILURES_KEY), _parquet(failures_table(ledger.all_failures())))
    if not _is_as_read(ledger):
        storage.put(storage.join(output, RECORDINGS_KEY), _parquet(recordings_table(ledger)))


def _is_as_read(ledger: Ledger) -> bool:
    known, rows = ledger.known, ledger.known.rows
    if rows is None or known.active or not known.rests.all() or ledger.wanted != rows.wanted:
        return False
    if not known.listed:
        return True
    found = [known.listed[name] for name in known.resting_names()]
    labels = {schema.label_of(title): title for title in rows.labels}
    return (
        all(
            pa.array(values, kind := schema.RECORDINGS.field(key).type).equals(
                rows.read(key).cast(kind)
            )
            for key, values in _of_listing(found).items()
        )
        and all(one.labels.keys() <= labels.keys() for one in found)
        and all(
            [one.labels.get(key) for one in found] == rows.read(title).to_pylist()
            for key, title in labels.items()
        )
    )


def _of_listing(found: list[Recording]) -> dict[str, list[Any]]:
    """Return the columns that the input may change without the sound."""
    return {
        "uri": [one.source.uri for one in found],
        "size_bytes": [one.source.size_bytes for one in found],
        "inside": [one.inside for one in found],
    }


def known_rows(table: pa.Table) -> list[Known]:
    """Return some rows of recordings/ as what is known of them, without their failures."""
    return list(AtRest(_parquet(table)).known(np.arange(len(table))))


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
    known = ledger.known
    reasons: dict[str, str] = {}
    for failure in ledger.wanted_failures():
        reasons.setdefault(failure.recording, failure.reason.value)
    rows = [
        {
            **_row(entry),
            "status": state_of(entry, ledger.wanted),
            "reason": reasons.get(name),
        }
        for name, entry in known.active.items()
    ]
    table = pa.Table.from_pylist(rows, schema=schema.RECORDINGS)
    if known.rows is not None:
        table = pa.concat_tables([_resting(ledger, known.rows, reasons), table])
    if known.active:
        table = table.sort_by("recording")
    labels = [recording.labels for recording in known.recordings()]
    keys = list(dict.fromkeys(key for own in labels for key in own))
    for key in keys:
        column = _label_column([own.get(key) for own in labels])
        table = table.append_column(pa.field(schema.label_title(key), column.type), column)
    wanted = json.dumps([[one.table, one.encoder, one.version] for one in ledger.wanted])
    return table.replace_schema_metadata({"bioembed.labels": json.dumps(keys), WANTED_KEY: wanted})


def _resting(ledger: Ledger, rows: AtRest, reasons: dict[str, str]) -> pa.Table:
    """Return the rows that stand as they were read, but where the input now has them, judged anew."""
    known = ledger.known
    columns = [rows.read(key).filter(known.rests) for key in schema.RECORDINGS.names]
    table = pa.table(columns, names=schema.RECORDINGS.names).cast(schema.RECORDINGS)
    place = pc.index_in(table.column("recording"), pa.array(list(reasons), pa.string()))
    now: dict[str, Any] = {
        "status": pa.array(STATES).take(pa.array(states_of(rows, ledger.wanted)[known.rests])),
        "reason": pa.array(list(reasons.values()), pa.string()).take(place.combine_chunks()),
    }
    if known.listed:
        now |= _of_listing([known.listed[name] for name in known.resting_names()])
    for key, values in now.items():
        field = schema.RECORDINGS.field(key)
        at = schema.RECORDINGS.get_field_index(key)
        column = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        table = table.set_column(at, field, column)
    return table


def _label_column(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        array = pa.array([None if value is None else str(value) for value in values])
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _row(entry: Known) -> dict[str, Any]:
    source, header, metadata = entry.recording.source, entry.header, entry.metadata
    n_decoded = entry.n_decoded
    row: dict[str, Any] = {
        "recording": entry.recording.name,
        **asdict(source),
        "inside": entry.recording.inside,
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
            "n_samples_promised": header.n_promised,
            "header": _header_text(header),
        }
        n_samples = header.n_samples if entry.n_extent is None else entry.n_extent
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
        "n_extent": outcome.n_extent,
        "n_nonfinite": outcome.n_nonfinite,
        "n_rows": outcome.n_rows,
        **asdict(outcome.coverage),
    }


def _header_text(header: Header) -> str:
    """Return what no column of its own says; few headers differ in it."""
    values = {
        "seekable": header.seekable,
        "decoder": header.decoder,
        "patches": [[offset, body.hex()] for offset, body in header.patches],
        "slack": header.slack,
        "flaw": header.flaw,
    }
    return json.dumps(values)


def _failure(row: dict[str, Any]) -> Failure:
    values = {key: value for key, value in row.items() if key != "is_transient"}
    return Failure(**{**values, "reason": Reason(values["reason"])})
