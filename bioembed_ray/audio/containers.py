"""What tar and Parquet objects hold: their members as recordings, labels from beside them.

Part of an object that cannot be listed (a tar cut off or damaged, a Parquet that is none, a link
to nowhere) is returned as a recording with the object's own name. It fails when it is read, and so lands in
failures/ with its reason instead of being lost in silence.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from bioembed_ray.audio.bytefile import ByteFile
from bioembed_ray.audio.compressed import DAMAGE, is_compressed, open_stream
from bioembed_ray.errors import InputError
from bioembed_ray.inputs.inside import Opened, as_opened
from bioembed_ray.inputs.left_out import Kind, LeftOut
from bioembed_ray.inputs.listing import Container, Recording, Source
from bioembed_ray.inputs.manifest import Label, as_label, is_label_type
from bioembed_ray.inputs.names import PARQUET_EXTENSION, extension_of, is_audio, is_hidden
from bioembed_ray.storage import ABSENT, DANGLING
from bioembed_ray.store.uris import text_of

# WebDataset: files that share their name up to the extension describe one sample.
SIDECARS = frozenset({"json", "txt", "cls"})
LARGEST_SIDECAR_BYTES = 1 << 20
# What a Parquet column of whole audio files is called where it is no Hugging Face `Audio` struct.
BYTES_COLUMNS = ("audio", "bytes", "audio_bytes", "wav", "flac", "mp3", "ogg", "opus")

# (path inside, "" for the whole object; the recording, with no labels but its own)
Found = list[tuple[str, Recording]]


def members(container: Container) -> Opened:
    """Return the recordings inside a tar or Parquet object, sorted by name, and what it holds besides.

    Tar members are named `<tar>/<path>`; hidden ones are left out, of two with one path the later
    holds, as in `tar -x`. A WebDataset sample's `.json` (its scalars), `.txt` and `.cls` become
    labels. Parquet rows are named `<parquet>/<row, 9 digits>`; their other flat columns become
    labels, and so does the `path` beside the bytes.

    Raises:
        InputError: a Parquet that was asked for by name holds no audio column; a sparse tar.
        StorageError: the store refused, or the object was replaced.
    """
    left_out = LeftOut()
    if container.stamp in {ABSENT, DANGLING}:
        found = _whole(container)
    elif extension_of(container.name) == PARQUET_EXTENSION:
        found = _parquet_rows(container, left_out)
    else:
        found = _tar_members(container, left_out)
    return as_opened(container, found, left_out)


def _whole(container: Container) -> Found:
    whole = Source(container.uri, container.stamp, container.size_bytes)
    return [("", Recording(container.name, whole))]


# ---- tar -------------------------------------------------------------------------------------


class _TarFound:
    """What one pass over the headers found: (offset, size in bytes) of files, labels by path."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.files: dict[str, tuple[int, int]] = {}
        self.labels: dict[str, dict[str, Label]] = {}
        self.end = 0
        self.is_whole = False


def _tar_members(container: Container, left_out: LeftOut) -> Found:
    found = _TarFound(left_out)
    if is_compressed(container.uri):
        with open_stream(container.uri, container.stamp) as stream:
            _read_headers(cast(IO[bytes], stream), found, container.name)
    else:
        whole = Source(container.uri, container.stamp, container.size_bytes)
        with ByteFile(whole) as file:
            _read_headers(cast(IO[bytes], file), found, container.name)
            # A store that failed looks like an early end until it is asked.
            file.check()
    return _tar_recordings(container, found)


def _read_headers(file: IO[bytes], found: _TarFound, name: str) -> None:
    try:
        # Closing would close `file`, whose errors are still to be asked for.
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
        while (member := tar.next()) is not None:
            # Or it keeps the headers of a million members.
            tar.members = []  # type: ignore[attr-defined]
            found.end = tar.offset
            path = _member_path(member.name)
            if member.islnk():
                place = found.files.get(_member_path(member.linkname))
            else:
                place = (member.offset_data, member.size) if member.isreg() else None
            if place is None or is_hidden(path):
                _leave_out(found.left_out, f"{name}/{path}", member)
                continue
            if member.issparse() and is_audio(path):
                raise InputError(f"{name}/{path}: stored sparse; pack the tar without --sparse")
            found.files[path] = place
            if _is_sidecar(path, place[1]):
                file.seek(place[0])
                _add_label(found.labels, path, file.read(place[1]))
        found.end = tar.offset
        file.seek(found.end)
        # A block of zeros or nothing ends a tar; anything else is a header that is none.
        found.is_whole = not file.read(tarfile.BLOCKSIZE).strip(b"\0")
    except (tarfile.TarError, *DAMAGE):
        found.is_whole = False


def _leave_out(left_out: LeftOut, name: str, member: tarfile.TarInfo) -> None:
    if member.isreg():
        left_out.add_unheard(name)
    elif not member.isdir() and is_audio(name):
        left_out.add(Kind.LINK, name)


def _member_path(name: str) -> str:
    """Return the path inside the tar without `./` and a leading `/`."""
    return text_of(posixpath.normpath(name).lstrip("/"))


def _is_sidecar(path: str, size_bytes: int) -> bool:
    return extension_of(path) in SIDECARS and size_bytes <= LARGEST_SIDECAR_BYTES


def _add_label(labels: dict[str, dict[str, Label]], path: str, body: bytes) -> None:
    """Add what a sidecar says to the sample it belongs to; one that cannot be read says nothing."""
    stem, _, extension = path.rpartition(".")
    try:
        text = body.decode("utf-8").strip()
        if extension.lower() != "json":
            is_class = extension.lower() == "cls" and text.lstrip("-").isdecimal()
            labels.setdefault(stem, {})[extension.lower()] = int(text) if is_class else text
            return
        values = json.loads(text)
    except ValueError:
        return
    if isinstance(values, dict):
        labels.setdefault(stem, {}).update(
            (key, as_label(value))
            for key, value in values.items()
            if value is None or isinstance(value, str | int | float)
        )


def _tar_recordings(container: Container, found: _TarFound) -> Found:
    recordings: Found = []
    is_plain = not is_compressed(container.uri)
    is_cut = False
    heard = [path for path in found.files if is_audio(path)]
    samples = {stem for path in heard for stem in _stems(path)}
    for path, (_, size_bytes) in found.files.items():
        # What became a label is not left out.
        if not is_audio(path) and not (
            _is_sidecar(path, size_bytes) and path.rpartition(".")[0] in samples
        ):
            found.left_out.add_unheard(f"{container.name}/{path}")
    for path in heard:
        offset, size_bytes = found.files[path]
        if is_plain and offset + size_bytes > container.size_bytes:
            is_cut, size_bytes = True, max(0, container.size_bytes - offset)
        source = Source(container.uri, container.stamp, size_bytes, offset)
        first, last = _stems(path)
        labels = found.labels.get(first, {}) | found.labels.get(last, {})
        recordings.append((path, Recording(f"{container.name}/{path}", source, labels)))
    if not found.is_whole and not is_cut:
        # The bytes where a header should be: no decoder takes them for audio.
        size_bytes, offset = tarfile.BLOCKSIZE, found.end
        if is_plain:
            offset = max(0, min(offset, container.size_bytes - tarfile.BLOCKSIZE))
            size_bytes = container.size_bytes - offset
        rest = Source(container.uri, container.stamp, size_bytes, offset)
        recordings.append(("", Recording(container.name, rest)))
    return recordings


def _stems(path: str) -> tuple[str, str]:
    """Return what a sample goes by: the path up to the first dot of its name, and up to its last."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}", path.rpartition(".")[0]


# ---- Parquet ---------------------------------------------------------------------------------


def _parquet_rows(container: Container, left_out: LeftOut) -> Found:
    with ByteFile(Source(container.uri, container.stamp, container.size_bytes)) as file:
        try:
            table = pq.ParquetFile(cast(IO[bytes], file), pre_buffer=False)
            return _read_rows(container, table, left_out)
        except (pa.ArrowInvalid, OSError):
            file.check()
            return _whole(container)


def _read_rows(container: Container, table: pq.ParquetFile, left_out: LeftOut) -> Found:
    schema = table.schema_arrow
    column = _audio_column(schema)
    if column is None:
        if not container.is_named:
            left_out.add(Kind.NOT_AUDIO, container.name)
            return []
        names = ", ".join(schema.names) or "none"
        raise InputError(
            f"{container.name}: no column holds audio files; its columns are {names}; expected a "
            f"struct with bytes (Hugging Face Audio), or bytes in one of {', '.join(BYTES_COLUMNS)}"
        )
    flat = [field.name for field in schema if is_label_type(field.type)]
    top, _, leaf = column.partition(".")
    beside = [f"{top}.path"] if leaf and _has_path(schema.field(top).type) else []
    recordings: Found = []
    for group in range(table.num_row_groups):
        n_rows = table.metadata.row_group(group).num_rows
        mean_bytes = _column_bytes(table, group, column) // max(1, n_rows)
        rows = table.read_row_group(group, columns=[*flat, *beside]).to_pylist() if n_rows else []
        for values in rows:
            row = len(recordings)
            source = Source(container.uri, container.stamp, mean_bytes, row=row, column=column)
            labels = {name: as_label(values[name]) for name in flat}
            if beside:
                labels["path"] = (values[top] or {}).get("path")
            path = f"{row:09d}"
            recordings.append((path, Recording(f"{container.name}/{path}", source, labels)))
    return recordings


def _column_bytes(table: pq.ParquetFile, group: int, column: str) -> int:
    meta = table.metadata.row_group(group)
    sizes = [meta.column(place) for place in range(meta.num_columns)]
    return sum(one.total_uncompressed_size for one in sizes if one.path_in_schema == column)


def _audio_column(schema: pa.Schema) -> str | None:
    """Return the Parquet column with whole audio files: what Hugging Face calls Audio, or by name.

    Raises:
        InputError: several could be meant.
    """
    structs = [field.name for field in schema if _is_bytes_struct(field.type)]
    features = _features(schema)
    # An Image has the same layout, and only these metadata tell.
    known = [name for name in structs if features.get(name, "Audio") == "Audio" and name != "image"]
    if "audio" in known:
        return "audio.bytes"
    if len(known) > 1:
        raise InputError(f"audio could be in any of {', '.join(known)}; name the one to use audio")
    if known:
        return f"{known[0]}.bytes"
    flat = {field.name for field in schema if _is_bytes(field.type)}
    return next((name for name in BYTES_COLUMNS if name in flat), None)


def _features(schema: pa.Schema) -> dict[str, str]:
    """Return Hugging Face's feature type by column, where the file tells."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {name: str(kind["_type"]) for name, kind in features.items() if "_type" in kind}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_bytes_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    return any(field.name == "bytes" and _is_bytes(field.type) for field in kind.fields)


def _has_path(kind: pa.StructType) -> bool:
    return any(field.name == "path" and is_label_type(field.type) for field in kind.fields)
