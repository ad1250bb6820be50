"""An output as views for DuckDB: `duckdb -init views.sql`, then plain names in queries.

Views read the files that stand when a query runs, so new parts of the same version are seen; a new
version needs a new file.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

from bioembed_ray import storage
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError
from bioembed_ray.exports.rows import Chosen
from bioembed_ray.ledger import ledger_file
from bioembed_ray.results import Results, open_output

FILE = "views.sql"


def export_views(output: str, folder: str, is_relative: bool) -> Iterator[str]:
    """Write `<folder>/views.sql`; yield its line.

    Args:
        output: The output.
        folder: Where.
        is_relative: Paths below the output, for a DuckDB that is started there.

    Raises:
        InputError: nothing stands.
        StorageError: reading or writing failed.
    """
    results = open_output(output)
    uri = storage.join(folder, FILE)
    views = dict(_views(results, "" if is_relative else results.output))
    lines = _heading(results, is_relative)
    for name, query in views.items():
        lines += [f"CREATE OR REPLACE VIEW {_quoted(name)} AS", f"{query};", ""]
    storage.put(uri, "\n".join(lines).encode())
    yield f"{uri}  {', '.join(views)}"


def _heading(results: Results, is_relative: bool) -> list[str]:
    lines = [f"-- {_comment(results.output)}"]
    if is_relative:
        lines.append("-- Paths are relative: start duckdb in that folder.")
    elif not storage.is_local(results.output):
        lines.append("-- First: INSTALL httpfs; LOAD httpfs;")
        lines.append("-- CREATE SECRET (TYPE s3, PROVIDER credential_chain);  -- or gcs, azure")
    return [*lines, ""]


def _views(results: Results, root: str) -> Iterator[tuple[str, str]]:
    """Yield names and queries, each using only views before it."""
    known = results.recordings()
    yield "recordings", f"SELECT * FROM {_read(root, ledger_file.RECORDINGS_KEY)}"
    yield "failures", f"SELECT * FROM {_read(root, ledger_file.FAILURES_KEY)}"
    encoders = _plain_names(results.encoders)
    for encoder in results.encoders:
        try:
            chosen = Chosen(encoder, results.windows(encoder))
        except InputError:
            # Nothing of it is current yet, and several versions stand.
            continue
        name, rows = f"windows_{encoders[encoder]}", chosen.rows
        dim = rows.arrow.schema.field("embedding").type.list_size
        # DuckDB reads a list of any length, and its distances want an array of a fixed one.
        vector = (
            f"SELECT * REPLACE (embedding::FLOAT[{dim}] AS embedding, valid_s::DOUBLE AS valid_s)"
        )
        yield name, f"{vector}\nFROM {_read_parts(root, rows.partition)}"
        names = [c for c in chosen.describing() if c in known.column_names]
        own = set(rows.arrow.schema.names)
        told = [f"r.{_quoted(c)}" + (f" AS recording_{c}" if c in own else "") for c in names]
        yield (
            f"{name}_described",
            f"SELECT {', '.join(['w.*', *told])}\nFROM {_quoted(name)} w "
            f"LEFT JOIN recordings r USING (recording)",
        )
    codebooks = _plain_names(results.codebooks)
    for codebook in results.codebooks:
        try:
            rows = results.tokens(codebook)
        except InputError:
            # Its tokens are not complete yet.
            continue
        name = f"tokens_{codebooks[codebook]}"
        yield name, f"SELECT * FROM {_read_parts(root, rows.partition)}"
        yield f"{name}_timed", _timed(name)


def _timed(name: str) -> str:
    """Return a query with one row per token; null where a stretch failed."""
    return (
        "SELECT recording, channel, start_s + (i // per_step) * hop_s AS start_s,\n"
        "       start_s + (i // per_step + 1) * hop_s AS end_s, i % per_step AS place, token\n"
        "FROM (SELECT * EXCLUDE (tokens), unnest(tokens) AS token,\n"
        f"             generate_subscripts(tokens, 1) - 1 AS i FROM {_quoted(name)})"
    )


def _plain_names(names: list[str]) -> dict[str, str]:
    """Return names that need no quotes in SQL; a name stays as it is where two would be the same.

    >>> _plain_names(["hubert.9", "beats"])
    {'hubert.9': 'hubert_9', 'beats': 'beats'}
    """
    plain = {name: re.sub(r"\W", "_", name).lower() for name in names}
    counts = collections.Counter(plain.values())
    return {name: one if counts[one] == 1 else name for name, one in plain.items()}


def _read_parts(root: str, partition: Dataset) -> str:
    return _read(root, f"{partition.prefix}/*.parquet", ", hive_partitioning = false")


def _read(root: str, key: str, options: str = "") -> str:
    path = storage.join(root, key) if root else key
    # DuckDB globs: a bracket of a folder's own name has to be said as a set of one.
    head = re.sub(r"[\[*?]", r"[\g<0>]", path[: len(path) - len(key)])
    text = (head + key).replace("'", "''")
    return f"read_parquet('{text}'{options})"


def _quoted(name: str) -> str:
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def _comment(text: str) -> str:
    return re.sub(r"\s", " ", text)
