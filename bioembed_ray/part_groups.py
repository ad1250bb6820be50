"""Parts of a partition a few at a time, so that no more is read than is soon taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow.dataset as pad

# As they are stored; a part of an hour of frames alone has more.
GROUP_BYTES = 64 << 20


def in_groups(whole: pad.FileSystemDataset, sizes: Mapping[str, int]) -> Iterator[pad.Dataset]:
    """Yield the parts of a dataset in their order, some at a time, each at least one.

    A scanner of Arrow reads on while its batches wait to be taken, until they are a gigabyte, and no
    option says less: whoever is slower than the disk would hold as much.

    Args:
        whole: The dataset.
        sizes: Path -> bytes of every part.
    """
    some: list[pad.ParquetFileFragment] = []
    n_bytes = 0
    for part in whole.get_fragments():
        if some and n_bytes + sizes[part.path] > GROUP_BYTES:
            yield _dataset(whole, some)
            some, n_bytes = [], 0
        some.append(part)
        n_bytes += sizes[part.path]
    if some:
        yield _dataset(whole, some)


def _dataset(whole: pad.FileSystemDataset, some: list[pad.ParquetFileFragment]) -> pad.Dataset:
    return pad.FileSystemDataset(some, whole.schema, whole.format, whole.filesystem)
