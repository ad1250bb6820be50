"""A tensor as a file of torch, its numbers copied from another file and never held at once.

A .pt file is a ZIP archive of stored members (https://pytorch.org/docs/stable/notes/serialization.html). torch
writes all of it but the numbers, for which it leaves room; then they are put there, and their checksum.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

COPY_BYTES = 1 << 20
# Sizes of fixed parts of a ZIP archive (APPNOTE 6.3.10, 4.3.7 and 4.3.12), and where in them a field is.
LOCAL_BYTES, LOCAL_LENGTHS_AT = 30, 26
DESCRIPTOR_SUM_AT = 4
DIRECTORY_BYTES, DIRECTORY_SUM_AT = 46, 16


def write_tensor(path: Path, shape: tuple[int, int], numbers: BinaryIO) -> None:
    """Write a .pt file of a float32 tensor whose numbers stand in another file, row after row."""
    import torch

    # Memory that is never written to is never taken.
    with torch.serialization.skip_data():
        torch.save(torch.empty(shape, dtype=torch.float32), path)
    with zipfile.ZipFile(path) as archive:
        members, directory_at = archive.infolist(), archive.start_dir
    (member,) = (one for one in members if one.filename.endswith("/data/0"))
    for one in members[: members.index(member)]:
        names = len(one.filename.encode()) + len(one.extra) + len(one.comment)
        directory_at += DIRECTORY_BYTES + names
    with open(path, "r+b") as file:
        file.seek(member.header_offset + LOCAL_LENGTHS_AT)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        start = member.header_offset + LOCAL_BYTES + name_bytes + extra_bytes
        file.seek(start)
        checksum = 0
        while block := numbers.read(COPY_BYTES):
            file.write(block)
            checksum = zlib.crc32(block, checksum)
        descriptor_at = start + member.file_size
        for at in (descriptor_at + DESCRIPTOR_SUM_AT, directory_at + DIRECTORY_SUM_AT):
            file.seek(at)
            file.write(struct.pack("<I", checksum))
