"""Which partitions stand in an output, and which one a name means."""

from __future__ import annotations

from bioembed_ray import storage
from bioembed_ray.current import read_current
from bioembed_ray.datasets import Dataset
from bioembed_ray.errors import InputError, NotFoundError


def list_datasets(output: str, table: str) -> list[Dataset]:
    """Return every partition of a table that holds a part."""
    found = set()
    try:
        for entry in storage.list_objects(storage.join(output, table)):
            folders = entry.key.split("/")
            if len(folders) == 3 and folders[2].endswith(".parquet"):
                values = [folder.partition("=")[2] for folder in folders[:2]]
                found.add(Dataset(table, values[0], values[1]))
    except NotFoundError:
        return []
    return sorted(found)


def find_dataset(output: str, encoder: str, version: str | None) -> Dataset:
    """Return the partition of window vectors to read: the current version, or the one named.

    Raises:
        InputError: no such encoder or version; names what there is.
    """
    standing = list_datasets(output, "embeddings")
    names = sorted({dataset.encoder for dataset in standing})
    if not names:
        raise InputError(f"{output}: no embeddings; run `bioembed run` first")
    if encoder not in names:
        raise InputError(f"{output}: no encoder {encoder!r}; there is {', '.join(names)}")
    versions = sorted(d.version for d in standing if d.encoder == encoder)
    if version is None:
        current = read_current(output).get("encoders", {}).get(encoder, {}).get("embeddings")
        if current is None and len(versions) > 1:
            raise InputError(
                f"{encoder}: no version is current yet; give --version, one of {', '.join(versions)}"
            )
        version = current or versions[0]
    if version not in versions:
        raise InputError(f"{encoder}: no version {version!r}; there is {', '.join(versions)}")
    return Dataset("embeddings", encoder, version)


def find_tokens(output: str, codebook: str) -> Dataset:
    """Return the current tokens of a codebook.

    Raises:
        InputError: no such codebook, or its tokens are not complete yet; names what there is.
    """
    names = sorted({dataset.encoder for dataset in list_datasets(output, "tokens")})
    if codebook not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"{output}: no tokens of codebook {codebook!r}; there is {known}")
    current = read_current(output).get("codebooks", {}).get(codebook)
    if current is None:
        raise InputError(f"{codebook}: its tokens are not complete yet; run `bioembed run` again")
    return Dataset("tokens", codebook, current["tokens"])
