"""A folder that `datasets.load_dataset` opens: Parquet files of every encoder, and a card.

    from datasets import load_dataset
    windows = load_dataset("birds/export/datasets", "beats", split="train")

The card is a README.md with the YAML header of the Hugging Face hub
(https://huggingface.co/docs/hub/datasets-manual-configuration): one configuration per encoder, with
its features. It describes whatever stands in the folder, so encoders can be added one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bioembed_ray import storage
from bioembed_ray.errors import NotFoundError
from bioembed_ray.exports.rows import Chosen

# At 768 float32 numbers a row, 150 MB: a size the hub's viewer likes.
ROWS_PER_FILE = 50_000
FOLDER = "datasets"
# What Arrow calls a type, where the name differs from that of `datasets.Value`.
VALUE_NAMES = {"float": "float32", "double": "float64", "halffloat": "float16"}
META = "bioembed."


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration of the folder.

    Attributes:
        name: Folder, and name for `load_dataset`.
        n_rows: Rows in all files.
        n_bytes: Bytes of all files.
        schema: Of the files, with what is said of the vectors as metadata.
    """

    name: str
    n_rows: int
    n_bytes: int
    schema: pa.Schema


def export_dataset(chosen: Chosen, folder: str) -> Iterator[str]:
    """Write the vectors of one encoder below `<folder>/datasets`; yield a line per file.

    Rows carry what recordings/ says of their recording: site, time, place, and the manifest's columns.

    Raises:
        InputError, StorageError: see `Chosen.batches`.
    """
    root = storage.join(folder, FOLDER)
    name = chosen.name if chosen.level == "window" else chosen.title
    place = storage.join(root, name)
    # What a longer export left would be read along with this one.
    stale = {entry.uri for entry in _listed(place) if entry.key.endswith(".parquet")}
    batches = chosen.batches(is_described=True)
    batch = next(batches, None)
    number = 0
    while batch is not None:
        uri = storage.join(place, f"part-{number:05}.parquet")
        n_rows, batch = _write_file(uri, batch, batches, chosen.facts)
        number += 1
        stale.discard(uri)
        yield f"{uri}  {n_rows} rows"
    for uri in stale:
        storage.delete(uri)


def write_card(folder: str) -> str:
    """Put the card of `<folder>/datasets`, which says what stands there; return its URI.

    Raises:
        StorageError: reading or writing failed.
    """
    root = storage.join(folder, FOLDER)
    card = storage.join(root, "README.md")
    storage.put(card, card_text(_configs(root)).encode())
    return card


def card_text(configs: list[Config]) -> str:
    """Return the card: a YAML header for programs, then a few lines for people."""
    header = {
        "pretty_name": "Audio embeddings",
        "tags": ["audio", "bioacoustics", "embeddings"],
        "configs": [
            {
                "config_name": config.name,
                **({"default": True} if config is configs[0] else {}),
                "data_files": [{"split": "train", "path": f"{config.name}/*.parquet"}],
            }
            for config in configs
        ],
        "dataset_info": [
            {
                "config_name": config.name,
                "features": [_feature(field) for field in config.schema],
                "splits": [
                    {"name": "train", "num_examples": config.n_rows, "num_bytes": config.n_bytes}
                ],
            }
            for config in configs
        ],
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [
        "# Audio embeddings",
        "",
        "Made with bioembed_ray. Times are seconds of the recording.",
        "",
    ]
    lines += [
        "| configuration | one row per | rows | numbers | version | weights |",
        "|" + "---|" * 6,
    ]
    for config in configs:
        said = {
            k.decode().removeprefix(META): v.decode() for k, v in config.schema.metadata.items()
        }
        width = config.schema.field("embedding").type.list_size
        pool = f" ({said['pool']})" if "pool" in said else ""
        lines.append(
            f"| `{config.name}` | {said['level']}{pool} | {config.n_rows} | {width} "
            f"| {said['version']} | {said['weights']} |"
        )
    lines += ["", "```python", "from datasets import load_dataset", ""]
    lines += [f'windows = load_dataset(PATH, "{configs[0].name}", split="train")', "```", ""]
    return "\n".join(lines)


def _write_file(
    uri: str, first: pa.RecordBatch, more: Iterator[pa.RecordBatch], facts: dict[str, str]
) -> tuple[int, pa.RecordBatch | None]:
    """Write batches to a file until it is full; return its rows, and the batch that is left over."""
    kind = first.schema.with_metadata({META + key: value for key, value in facts.items()})
    n_rows = 0
    batch: pa.RecordBatch | None = first
    with (
        storage.writing(uri) as path,
        pq.ParquetWriter(path, kind, compression="zstd") as writer,
    ):
        while batch is not None and (not n_rows or n_rows + len(batch) <= ROWS_PER_FILE):
            writer.write_batch(batch)
            n_rows += len(batch)
            batch = next(more, None)
    return n_rows, batch


def _feature(field: pa.Field) -> dict[str, Any]:
    """Return a column as the card's YAML names it."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        return {"name": field.name, "list": _value(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"name": field.name, "list": _value(kind.value_type)}
    return {"name": field.name, "dtype": _value(kind)}


def _value(kind: pa.DataType) -> str:
    return VALUE_NAMES.get(str(kind), str(kind))


def _configs(root: str) -> list[Config]:
    """Return the configurations that stand in the folder, by name."""
    files: dict[str, list[storage.ObjectInfo]] = {}
    for entry in _listed(root):
        name, _, file = entry.key.rpartition("/")
        if name and file.endswith(".parquet") and not file.startswith("."):
            files.setdefault(name, []).append(entry)
    found = []
    for name, entries in sorted(files.items()):
        filesystem, paths = storage.arrow_paths([entry.uri for entry in entries])
        footers = [pq.read_metadata(path, filesystem=filesystem) for path in paths]
        n_rows = sum(footer.num_rows for footer in footers)
        n_bytes = sum(entry.size_bytes for entry in entries)
        found.append(Config(name, n_rows, n_bytes, footers[0].schema.to_arrow_schema()))
    return found


def _listed(folder: str) -> list[storage.ObjectInfo]:
    try:
        return list(storage.list_objects(folder))
    except NotFoundError:
        return []
