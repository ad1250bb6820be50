"""Old versions leave only here: what is neither current nor wanted by the job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bioembed_ray import storage
from bioembed_ray.codebooks.wanted import folder_of, wanted_codebooks, with_tokens
from bioembed_ray.config import Job
from bioembed_ray.current import read_current
from bioembed_ray.errors import InputError, NotFoundError
from bioembed_ray.ledger import ledger_file
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.versions import model_folder, plan_encoder, plan_patches, trained_here

TABLES = ("embeddings", "frames", "fit_frames", "tokens", "codebooks", "models", "indexes")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A version that nobody needs.

    Attributes:
        prefix: Folder below the output, e.g. `embeddings/encoder=beats/version=…`.
        uris: Its objects.
        n_bytes: Their bytes.
    """

    prefix: str
    uris: tuple[str, ...]
    n_bytes: int


def leftovers(job: Job) -> list[Leftover]:
    """Return the versions in a job's output that are neither current nor wanted, by prefix.

    Raises:
        InputError: nothing is current yet, so that nothing can be told to be old.
        ConfigError, WeightsError: what the job wants cannot be settled.
    """
    if not read_current(job.output):
        raise InputError(f"{job.output}: no version is current yet; finish `bioembed run` first")
    kept = set(_current(job)) | set(_wanted(job))
    # An index goes with its windows.
    kept |= {prefix.replace("embeddings/", "indexes/", 1) for prefix in kept}
    found = []
    for table in TABLES:
        for prefix, entries in sorted(_versions(job.output, table).items()):
            if prefix not in kept:
                size = sum(entry.size_bytes for entry in entries)
                found.append(Leftover(prefix, tuple(entry.uri for entry in entries), size))
    return found


def _versions(output: str, table: str) -> dict[str, list[storage.ObjectInfo]]:
    """Return prefix -> objects of every version in a table."""
    found: dict[str, list[storage.ObjectInfo]] = {}
    try:
        for entry in storage.list_objects(storage.join(output, table)):
            folders = entry.key.split("/")
            if len(folders) > 2 and folders[1].startswith("version="):
                found.setdefault("/".join([table, *folders[:2]]), []).append(entry)
    except NotFoundError:
        pass
    return found


def _current(job: Job) -> Iterator[str]:
    current = read_current(job.output)
    for name, one in current.get("encoders", {}).items():
        for table in ("embeddings", "frames"):
            yield f"{table}/encoder={name}/version={one[table]}"
    for name, one in current.get("codebooks", {}).items():
        yield f"tokens/codebook={name}/version={one['tokens']}"
        # A VQ-VAE's own codes stand with its model.
        for table in ("codebooks", "models"):
            yield f"{table}/{name}/version={one['codebook']}"


def _wanted(job: Job) -> Iterator[str]:
    encoders = tuple(plan_encoder(name, job) for name in job.encoders)
    codebooks = wanted_codebooks(job, encoders)
    for encoder in with_tokens(encoders, codebooks)[0]:
        for dataset in encoder.all_datasets:
            yield dataset.prefix
    folders = [folder_of(job.output, one.fit.name, one.fit.version) for one in codebooks]
    for name in trained_here(job):
        folders.append(model_folder(name, job))
        # What a training that goes on stands on.
        yield plan_patches(name, job).outputs[0].embeddings.prefix
    root = storage.join(job.output, "")
    for folder in folders:
        yield folder.removeprefix(root)


def delete(output: str, found: Iterable[Leftover]) -> int:
    """Delete versions, and what the ledger holds of them; return how many objects went."""
    n_deleted = 0
    pruned = set()
    for one in found:
        for uri in one.uris:
            storage.delete(uri)
            n_deleted += 1
        table, name, version = (part.rpartition("=")[2] for part in one.prefix.split("/"))
        storage.delete(storage.join(output, "versions", table, name, f"{version}.json"))
        pruned.add((table, name, version))
    ledger = ledger_file.load(output)
    if ledger is not None and _forget(ledger, pruned):
        ledger_file.save(output, ledger)
    return n_deleted


def _forget(ledger: Ledger, pruned: set[tuple[str, str, str]]) -> bool:
    """Drop outcomes and failures of versions that are gone; return whether there were any."""
    n_before = len(ledger.failures)
    gone = {
        key
        for key in ledger.accounted()
        if (key[0].table, key[0].encoder, key[0].version) in pruned
    }
    ledger.forget(gone)
    names = {(name, version) for _, name, version in pruned}
    ledger.failures = [one for one in ledger.failures if (one.encoder, one.version) not in names]
    return bool(gone) or len(ledger.failures) < n_before
