"""An index of window vectors: searching without reading all of them, at the price of missing a few.

    <output>/indexes/encoder=<e>/version=<v>/windows.usearch   HNSW graph of usearch, float16, cosine
                                             rows.parquet      row k: part, row in it and place of key k
                                             index.json        what it was built from

The graph only proposes. Proposed windows are read from their parts and scored as an exact scan scores
them, so that a hit has the same score either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bioembed_ray import parts, storage
from bioembed_ray.enough_sound import enough_sound
from bioembed_ray.errors import BrokenOutput, ConfigError, InputError, NotFoundError
from bioembed_ray.rows import Rows, vectors_of
from bioembed_ray.search.exact import (
    PLACE,
    Found,
    Vectors,
    Wanted,
    best,
    check_queries,
    scan,
)
from bioembed_ray.search.part_rows import part_batches, read_places
from bioembed_ray.unit_rows import unit_rows

GRAPH_KEY, ROWS_KEY, ABOUT_KEY = "windows.usearch", "rows.parquet", "index.json"
# Neighbours per node and candidates looked at while adding, as usearch has them; more while
# searching, since vectors of one archive lie close together (tests/unit/test_search_index.py).
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 256
# Proposals per hit, so that what float16 and the graph's order cost is made good.
PROPOSALS_PER_HIT, MORE_PROPOSALS = 4, 64
# Threads that add to a small graph at once cut some of it off: 9 of 1,500 graphs of 480 vectors missed
# a nearest one, none where one thread added. Later on, all cores (0) lose about one in a thousand.
ADDED_ALONE = 10_000
SCORED = (*PLACE, "embedding")
COLUMNS = (*PLACE, "valid_s", "embedding")
# A cosine of two vectors whose numbers, and so whose lengths too, are each off by 2^-11.
FLOAT16_OFF = 4 * 2.0**-11
# Beyond this share of the windows, reading all of them in order is quicker.
MOST_PROPOSED = 0.05

ROWS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.int32()),
        pa.field("recording", pa.dictionary(pa.int32(), pa.string())),
        pa.field("channel", pa.int16()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("valid_s", pa.float64()),
    ]
)


def folder_of(rows: Rows) -> str:
    """Return where the index of some windows stands."""
    one = rows.partition
    return storage.join(rows.output, "indexes", f"encoder={one.encoder}", f"version={one.version}")


def listing_digest(shards: Iterable[str]) -> str:
    """Return what names the parts that an index was built from; a part's name says what is in it."""
    return hashlib.sha256("\n".join(sorted(shards)).encode()).hexdigest()[:20]


def build(rows: Rows) -> Iterator[str]:
    """Build the index of some windows, part by part, and put it; yields a line at its end.

    Memory holds the graph, two bytes per number of a vector and some 300 bytes per window, and one
    part at a time.

    Raises:
        StorageError: reading or writing failed.
    """
    from usearch.index import Index

    dim = rows.arrow.schema.field("embedding").type.list_size
    # Its distances are in float16 too, so that memory holds vectors once.
    graph = Index(
        ndim=dim,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
    shards = sorted(parts.list_parts(rows.output, rows.partition))
    n_rows = n_left_out = 0
    with tempfile.TemporaryDirectory(prefix="bioembed-index-") as scratch:
        table = Path(scratch, ROWS_KEY)
        with pq.ParquetWriter(table, ROWS_SCHEMA, compression="zstd") as writer:
            for shard in shards:
                for first, batch in part_batches(rows, shard, COLUMNS):
                    vectors = vectors_of(batch.column("embedding"))
                    keys = np.flatnonzero(_indexable(vectors))
                    n_left_out += len(vectors) - len(keys)
                    threads = 1 if n_rows < ADDED_ALONE else 0
                    graph.add(n_rows + keys, _units(vectors[keys]), threads=threads)
                    writer.write_table(_row_table(batch, shard, first))
                    n_rows += len(vectors)
        about = {
            "listing": listing_digest(shards),
            "parts": len(shards),
            "rows": n_rows,
            "left_out": n_left_out,
            "dim": dim,
        }
        folder = folder_of(rows)
        saved = Path(scratch, GRAPH_KEY)
        graph.save(str(saved))
        del graph
        # The description goes last: without it there is no index.
        with contextlib.suppress(NotFoundError):
            storage.delete(storage.join(folder, ABOUT_KEY))
        for file in (saved, table):
            with storage.writing(storage.join(folder, file.name)) as path:
                shutil.copyfile(file, path)
        storage.put(storage.join(folder, ABOUT_KEY), json.dumps(about, indent=2).encode())
        size = saved.stat().st_size + table.stat().st_size
    yield f"{folder}: {n_rows - n_left_out:,} windows of {len(shards)} parts, {size / 1e6:.3g} MB"


def look_up(rows: Rows, wanted: Wanted) -> Found:
    """Search through the index; an exact scan where conditions leave too little of its proposals.

    Conditions are applied to what the graph proposes, and it is asked for more until enough is left.

    Raises:
        ConfigError: the metric is not `cosine`.
        InputError: no index, or one that was built from other parts.
        StorageError: reading failed.
    """
    from usearch.index import Index

    if wanted.metric != "cosine":
        raise ConfigError("--metric dot: the index knows cosines only; search without --index")
    about = _about(rows)
    check_queries(wanted.queries, about["dim"], wanted.metric)
    folder = folder_of(rows)
    places = pq.read_table(io.BytesIO(storage.read(storage.join(folder, ROWS_KEY))))
    if "valid_s" not in places.column_names:
        raise InputError(f"{folder}: an index of an earlier kind; build it anew with --build-index")
    n_proposed = min(about["rows"], wanted.top * PROPOSALS_PER_HIT + MORE_PROPOSALS)
    most = max(10 * n_proposed, MOST_PROPOSED * about["rows"])
    enough = enough_sound(places, rows.recordings(), wanted.min_valid_s)
    with _local(storage.join(folder, GRAPH_KEY)) as path:
        graph = Index.restore(path, view=True)
        if graph is None:
            raise BrokenOutput(f"{folder}/{GRAPH_KEY}: no index; build it anew with --build-index")
        graph.expansion_search = EXPANSION_SEARCH
        while n_proposed <= most:
            keys, near = _proposals(graph, wanted, n_proposed)
            proposed = places.take(pa.array(keys)).append_column("near", pa.array(near))
            passing = _passing(rows, proposed.filter(enough.condition), wanted)
            hits = best(read_places(rows, _hopeful(passing, wanted), SCORED), wanted)
            if len(hits.hits) == wanted.top or n_proposed == about["rows"]:
                return replace(
                    hits, n_left_out=len(_passing(rows, places.filter(~enough.condition), wanted))
                )
            n_proposed = min(about["rows"], 4 * n_proposed)
    return scan(rows, wanted)


def _proposals(
    graph: Any, wanted: Wanted, n_proposed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the keys that the graph finds near any of the queries, and how near it takes them to be."""
    found = [graph.search(query, n_proposed) for query in _units(wanted.queries)]
    keys, places = np.unique(np.concatenate([one.keys for one in found]), return_inverse=True)
    near = np.full(len(keys), -np.inf, np.float32)
    np.maximum.at(near, places, 1 - np.concatenate([one.distances for one in found]))
    return keys.astype(np.int64), near


def _hopeful(places: pa.Table, wanted: Wanted) -> pa.Table:
    """Return the places that may be among the best, given what float16 may have cost them.

    Their parts have to be read, which is what takes time.
    """
    if wanted.per_recording is not None or wanted.besides is not None or len(places) <= wanted.top:
        return places
    near = places.column("near").to_numpy()
    last = np.partition(near, -wanted.top)[-wanted.top]
    return places.filter(pa.array(near >= last - 2 * FLOAT16_OFF))


def _passing(rows: Rows, places: pa.Table, wanted: Wanted) -> pa.Table:
    """Return the places that pass the conditions."""
    at = places.schema.get_field_index("recording")
    places = places.set_column(at, "recording", places.column("recording").cast(pa.string()))
    if wanted.where is not None:
        places = places.filter(wanted.where)
    if wanted.among is not None:
        names = rows.recordings().filter(wanted.among).column("recording")
        places = places.filter(pc.is_in(places.column("recording"), names.combine_chunks()))
    return places


def _row_table(batch: pa.RecordBatch, shard: str, first: int) -> pa.Table:
    n_rows = batch.num_rows
    columns = {
        "shard": pa.repeat(shard, n_rows).dictionary_encode(),
        "row": pa.array(np.arange(first, first + n_rows), pa.int32()),
        "recording": batch.column("recording").dictionary_encode(),
        **{name: batch.column(name) for name in ("channel", "start_s", "end_s", "valid_s")},
    }
    return pa.table(columns).cast(ROWS_SCHEMA)


def _units(vectors: Vectors) -> Vectors:
    """Return vectors scaled to length 1, since float16 ends at 65504."""
    return unit_rows(vectors, np.float32)


def _indexable(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Return (n,): whether a vector has a direction."""
    found: npt.NDArray[np.bool_] = np.logical_and(
        np.isfinite(vectors).all(axis=1), (vectors != 0).any(axis=1)
    )
    return found


@contextlib.contextmanager
def _local(uri: str) -> Iterator[str]:
    """Give an object as a local file, which the graph is read from as far as a search needs it."""
    if storage.is_local(uri):
        yield storage.arrow_paths([uri])[1][0]
        return
    with tempfile.TemporaryDirectory(prefix="bioembed-index-") as scratch:
        path = Path(scratch, GRAPH_KEY)
        path.write_bytes(storage.read(uri))
        yield str(path)


def _about(rows: Rows) -> dict[str, Any]:
    folder = folder_of(rows)
    try:
        about: dict[str, Any] = json.loads(storage.read(storage.join(folder, ABOUT_KEY)))
    except NotFoundError:
        raise InputError(
            f"{rows.partition.encoder}: no index of version {rows.version}; build it with --build-index"
        ) from None
    standing = list(parts.list_parts(rows.output, rows.partition))
    if about["listing"] != listing_digest(standing):
        raise InputError(
            f"{rows.partition.encoder}: its index is of {about['parts']} parts, now other "
            f"{len(standing)} stand; build it anew with --build-index, or search without --index"
        )
    return about
