"""An archive that is made up: names, headers and parts without sound, and plans for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from bioembed_ray import parts, storage
from bioembed_ray.audio.metadata import Metadata
from bioembed_ray.audio.probe import Header
from bioembed_ray.carry_over import carry_part
from bioembed_ray.config import Job
from bioembed_ray.coverage import Coverage
from bioembed_ray.encoders.base import Facts
from bioembed_ray.errors import Reason
from bioembed_ray.inputs.inside import Opened, as_opened
from bioembed_ray.inputs.left_out import LeftOut
from bioembed_ray.inputs.listing import Container, Recording, Source
from bioembed_ray.inputs.manifest import Label
from bioembed_ray.inventory import Probed
from bioembed_ray.ledger import ledger_file
from bioembed_ray.outcomes import Failure, PartOutcome, SpanOutcome
from bioembed_ray.plan import Plan, make_plan
from bioembed_ray.schema import embeddings
from tests.unit.references import FakeRegistry, header_of, job_of

WINDOWS = Facts("fake", 16_000, 1.0, 0.5, None, embeds=True, dim=4)


class Archive:
    """A folder of named objects, and what reading their headers gives."""

    def __init__(self, folder: Path, registry: FakeRegistry) -> None:
        self.input = folder / "archive"
        self.output = folder / "out"
        self.input.mkdir()
        self.registry = registry
        self.headers: dict[str, Header | Reason] = {}
        self.probed: list[str] = []
        self.opened: list[str] = []
        self.silent: set[str] = set()
        self.inside: dict[str, list[str]] = {}
        self.beside: dict[str, dict[str, Label]] = {}

    def add(self, name: str, header: Header | Reason | None = None, body: str = "") -> None:
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body or name)
        self.headers[name] = header_of(16_000 * 60) if header is None else header

    def probe(self, recordings: list[Recording]) -> Iterable[Probed]:
        for recording in reversed(recordings):
            self.probed.append(recording.name)
            found = self.headers[recording.name]
            if recording.name in self.silent:
                continue
            if isinstance(found, Reason):
                yield Probed(recording.name, reason=found, detail="made up")
            else:
                yield Probed(recording.name, found, Metadata())

    def members(self, containers: list[Container]) -> Iterable[Opened]:
        for container in containers:
            self.opened.append(container.name)
            found = []
            for number, member in enumerate(self.inside.get(container.name, [])):
                name = f"{container.name}/{member}"
                self.headers[name] = header_of(16_000 * 60)
                source = Source(container.uri, container.stamp, 10, 512 * (number + 1))
                found.append((member, Recording(name, source, self.beside.get(name, {}))))
            yield as_opened(container, found, LeftOut())

    def job(self, **values: Any) -> Job:
        values.setdefault("input", {})
        values["input"] = {"uri": str(self.input), **values["input"]}
        return job_of(self.output, **values)

    def plan(self, **values: Any) -> Plan:
        self.probed.clear()
        self.opened.clear()
        return make_plan(self.job(**values), self.probe, self.members)

    def run(self, found: Plan, skip: int = 0, save: bool = True, **failure: Any) -> None:
        """Carry over what stands, and put empty parts for all but `skip` shards, as a run would."""
        (planned,) = found.encoders
        for one in found.carries:
            found.ledger.absorb(carry_part(found.job.output, one, spans(found, one.shard)))
        for work in found.todo[skip:]:
            for dataset in work.datasets:
                became = tuple(
                    SpanOutcome(
                        s.recording, s.planned, s.planned, 0, 0, Coverage(embedded=s.planned)
                    )
                    for s in work.shard.spans
                )
                failures: tuple[Failure, ...] = ()
                if failure:
                    first = work.shard.spans[0].recording
                    failures = (Failure(first, shard=work.shard.id, **failure),)
                outcome = PartOutcome(dataset, work.shard.id, became, failures)
                empty = pa.table(
                    [pa.array([], field.type) for field in embeddings(4, "float32")],
                    schema=embeddings(4, "float32"),
                )
                body = parts.part_bytes(empty, planned, work.shard, outcome, found.job)
                storage.put(parts.part_uri(found.job.output, dataset, work.shard.id), body)
                found.ledger.absorb(outcome)
        for entries in found.superseded.values():
            for entry in entries:
                storage.delete(entry.uri)
        if save:
            ledger_file.save(found.job.output, found.ledger)


def names_of(found: Plan) -> set[str]:
    return {span.recording for work in found.todo for span in work.shard.spans}


def tiles(found: Plan) -> None:
    """Every recording with a header lies in shards end to end, once."""
    for name, entry in found.ledger.known.items():
        if entry.header is None:
            assert not entry.pieces
            continue
        at: int | None = 0
        for piece in entry.pieces:
            assert piece.start == at, name
            at = piece.stop
        assert at is None
        assert all(piece.shard in found.shards for piece in entry.pieces)
    assert all(shard.id == name for name, shard in found.shards.items())


def spans(found: Plan, shard: str) -> set[str]:
    return {span.recording for span in found.shards[shard].spans}


def long_and_short(archive: Archive) -> Plan:
    """Return a plan in which one shard holds the end of `long.wav` and all of the two after it."""
    # Sixteen shards at least would else be too short for that.
    archive.add("first.wav", header_of(16_000 * 6000))
    archive.add("long.wav", header_of(16_000 * 450))
    archive.add("short.wav", header_of(16_000 * 60))
    archive.add("z.wav", header_of(16_000 * 60))
    return archive.plan(shard_minutes=5.5)
