"""Which codebooks a job wants, which of them stand, and which shards a fit draws on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bioembed_ray import storage
from bioembed_ray.codebooks.card import CODEBOOK_KEY
from bioembed_ray.codebooks.rule import FIT_VERSION, Fit, LloydRule
from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.config import Job
from bioembed_ray.current import read_current, read_description, shown
from bioembed_ray.datasets import Dataset, Output, PlannedEncoder, Tokens, dataset_of, digest
from bioembed_ray.draw import drawn_shards, groups_of
from bioembed_ray.errors import NotFoundError
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.plan import Plan, Work


@dataclass(frozen=True, slots=True)
class Wanted:
    """A codebook of the job.

    Attributes:
        fit: What decides it, and where it goes.
        encoder: The encoder.
        source: Whose parts are fitted on: all frames of some shards, or window vectors.
        content: What its version is the digest of.
    """

    fit: Fit
    encoder: PlannedEncoder
    source: Dataset
    content: dict[str, Any]

    def groups(self, ledger: Ledger) -> dict[str, str] | None:
        """Return recording -> group that shares the sample, None where all are alike.

        Raises:
            ConfigError: the manifest has no such column.
        """
        key = f"codebooks.{self.fit.name}.balance"
        return groups_of(ledger, self.fit.sample.balance, key)


def wanted_codebooks(job: Job, encoders: tuple[PlannedEncoder, ...]) -> list[Wanted]:
    """Return the job's codebooks with versions settled."""
    if not job.codebooks:
        return []
    current = read_current(job.output).get("codebooks", {})
    outputs = {output.name: (encoder, output) for encoder in encoders for output in encoder.outputs}
    found = []
    for name, config in job.codebooks.items():
        encoder, output = outputs[config.encoder]
        source = output.embeddings if output.fit_frames is None else output.fit_frames
        content = {**config.model_dump(), "source": source.version, "fit": FIT_VERSION}
        version = digest(content)
        last = current.get(name, {}).get("codebook")
        fit = Fit(
            name=name,
            version=version,
            encoder=output.name,
            encoder_version=source.version,
            layer=output.layer,
            folder=folder_of(job.output, name, version),
            rule=LloydRule(
                config.clusters, config.metric, config.seed, config.tolerance, config.max_iterations
            ),
            sample=SampleRule(config.fit_frames, config.held_out, balance=config.balance),
            previous=None if last in {None, version} else folder_of(job.output, name, last),
        )
        found.append(Wanted(fit, encoder, source, content))
    return found


def folder_of(output: str, name: str, version: str) -> str:
    """Return where a codebook stands."""
    return storage.join(output, "codebooks", name, f"version={version}")


def token_dataset(wanted: Wanted) -> Dataset | None:
    """Return where a codebook's tokens go, None where the codebook does not stand.

    The version covers the centroids' bytes: tokens of two fits never mix.
    """
    try:
        body = storage.read(storage.join(wanted.fit.folder, CODEBOOK_KEY))
    except NotFoundError:
        return None
    content = {"codebook": wanted.fit.version, "centroids": hashlib.sha256(body).hexdigest()}
    return dataset_of("tokens", wanted.fit.name, content)


def with_tokens(
    encoders: tuple[PlannedEncoder, ...], codebooks: list[Wanted]
) -> tuple[tuple[PlannedEncoder, ...], list[Wanted]]:
    """Return the encoders with every standing codebook applied, and the codebooks that are missing.

    What an encoder brings along itself, a VQ-VAE's codes, stays.
    """
    names = {wanted.fit.name for wanted in codebooks}
    applied: dict[str, list[Tokens]] = {}
    missing = []
    for wanted in codebooks:
        dataset = token_dataset(wanted)
        if dataset is None:
            missing.append(wanted)
            continue
        tokens = Tokens(wanted.fit.name, wanted.fit.folder, dataset, wanted.content)
        applied.setdefault(wanted.fit.encoder, []).append(tokens)

    def fill(output: Output) -> Output:
        own = (tokens for tokens in output.tokens if tokens.name not in names)
        return replace(output, tokens=(*own, *applied.get(output.name, ())))

    filled = (replace(e, outputs=tuple(fill(output) for output in e.outputs)) for e in encoders)
    return tuple(filled), missing


def fit_work(plan: Plan, missing: list[Wanted]) -> list[Work]:
    """Return what must be encoded before the missing codebooks can be fitted.

    All that the shards of a fit owe is done on the way.
    """
    owed = {work.shard.id: list(work.datasets) for work in plan.todo}
    added: dict[str, list[Dataset]] = {}
    for wanted in missing:
        for shard in shards_of(plan, wanted):
            if shard not in plan.standing(wanted.source):
                added.setdefault(shard, []).append(wanted.source)
    return [
        Work(plan.shards[shard], tuple(dict.fromkeys([*sources, *owed.get(shard, [])])))
        for shard, sources in added.items()
    ]


def shards_of(plan: Plan, wanted: Wanted) -> list[str]:
    """Return the ids of the shards that a fit draws on, ascending."""
    return drawn_shards(plan, wanted.encoder, wanted.fit.sample, wanted.groups(plan.ledger))


def codebook_reasons(
    output: str, codebooks: Sequence[Wanted], encoders: Iterable[PlannedEncoder]
) -> Iterator[tuple[str, str]]:
    """Yield (name of a codebook, why the current one is not the one wanted)."""
    if not codebooks:
        return
    current = read_current(output)
    now = {one.name: one.embeddings.version for encoder in encoders for one in encoder.outputs}
    for wanted in codebooks:
        name = wanted.fit.name
        last = current.get("codebooks", {}).get(name)
        if last is None or last["codebook"] == wanted.fit.version:
            continue
        about = read_description(output, Dataset("tokens", name, last["tokens"])) or {}
        was = about.get("fit")
        if was is None:
            yield name, f"version {last['codebook']} is another one"
            continue
        followed = wanted.fit.encoder
        before = current["encoders"].get(followed, {}).get("embeddings")
        for text in fit_differences(was, wanted.content, before, now[followed]):
            yield name, text


def fit_differences(
    was: dict[str, Any], now: dict[str, Any], before: str | None, after: str
) -> list[str]:
    """Return how what decides two codebooks differs, one text each.

    Args:
        was: What decided the current one.
        now: What decides the one wanted.
        before: Current version of the encoder's vectors.
        after: Wanted version of the encoder's vectors.

    >>> one = {"encoder": "hubert", "clusters": 500, "source": "s1"}
    >>> fit_differences(one, {**one, "clusters": 1000, "source": "s2"}, "a1b2", "c3d4")
    ['clusters moved from 500 to 1000', 'follows hubert (version a1b2 to c3d4)']
    """
    found = []
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) == now.get(key) or (key == "source" and was["encoder"] != now["encoder"]):
            continue
        if key != "source":
            title = "the way of fitting" if key == "fit" else key
            found.append(f"{title} moved from {shown(was.get(key))} to {shown(now.get(key))}")
        elif before is None or before == after:
            found.append(f"follows {now['encoder']}, whose frames are others")
        else:
            found.append(f"follows {now['encoder']} (version {before} to {after})")
    return found
