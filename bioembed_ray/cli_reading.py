"""The commands that read what stands: status, verify, export, compare, prune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bioembed_ray.cli_options import JOB, OUTPUT, SET, output_of, takes_job
from bioembed_ray.config import Job, mask_secrets
from bioembed_ray.errors import BrokenOutput, ConfigError


@click.command()
@JOB
@OUTPUT
@SET
def status(job: str | None, output: str | None, overrides: Sequence[str]) -> None:
    """Say what stands: parts, hours, failures, and whether a run is going on."""
    from bioembed_ray.report_text import describe_status

    for line in describe_status(output_of(job, output, overrides)):
        click.echo(mask_secrets(line))


@click.command()
@JOB
@OUTPUT
@SET
def verify(job: str | None, output: str | None, overrides: Sequence[str]) -> None:
    """Check that every window stands once and every second is accounted for."""
    from bioembed_ray.verify import verify as check

    where = output_of(job, output, overrides)
    problems = list(check(where))
    for line in problems[:50]:
        click.echo(mask_secrets(line))
    if problems:
        raise BrokenOutput(f"{where}: {len(problems)} problems")
    click.echo(f"{where}: every window stands once, every second is accounted for")


@click.command()
@JOB
@OUTPUT
@SET
@click.option("--encoder", multiple=True, help="Which encoders; all without it.")
@click.option("--version", help="Which version; the current one without it.")
@click.option("--level", type=click.Choice(["window", "recording"]), default="window")
@click.option("--pool", type=click.Choice(["mean", "max", "concat"]), default="mean")
@click.option("--codebook", multiple=True, help="Tokens of these codebooks instead of vectors.")
@click.option("--format", "formats", help="npy, pt (vectors); text, runs (tokens); or several.")
@click.option("--to", "target", help="Folder or prefix; <output>/export without it.")
def export(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    encoder: tuple[str, ...],
    version: str | None,
    level: Any,
    pool: Any,
    codebook: tuple[str, ...],
    formats: str | None,
    target: str | None,
) -> None:
    """Write vectors as .npy and .pt, or tokens as text and run lengths, with a CSV that names the rows."""
    from bioembed_ray.export import export_all
    from bioembed_ray.storage import absolute, join
    from bioembed_ray.token_export import export_tokens

    known = {"text", "runs"} if codebook else {"npy", "pt"}
    chosen = formats or ("text" if codebook else "npy")
    kinds = tuple(dict.fromkeys(kind.strip() for kind in chosen.split(",")))
    for kind in kinds:
        if kind not in known:
            hint = "" if codebook else "; text and runs need --codebook"
            raise ConfigError(f"--format: got {kind!r}; use {' or '.join(sorted(known))}{hint}")
    where = output_of(job, output, overrides)
    folder = absolute(target) if target else join(where, "export")
    if codebook:
        lines = export_tokens(where, codebook, kinds, folder)
    else:
        lines = export_all(where, encoder, version, level, pool, kinds, folder)
    for line in lines:
        click.echo(line)


@click.command()
@JOB
@OUTPUT
@SET
@click.option("--name", required=True, help="An encoder, or a codebook for its tokens.")
@click.option("--versions", help="OLD,NEW; without it, the two that stand.")
@click.option("--to", "target", help="Folder or prefix; <output>/comparisons/… without it.")
def compare(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    name: str,
    versions: str | None,
    target: str | None,
) -> None:
    """Say how two versions differ on the same windows, or two codebooks on the same frames."""
    from bioembed_ray.comparison import pick, write_comparison
    from bioembed_ray.storage import absolute, join

    chosen = None if versions is None else tuple(one.strip() for one in versions.split(","))
    if chosen is not None and len(chosen) != 2:
        raise ConfigError(f"--versions: got {versions!r}; use two with a comma, the old one first")
    where = output_of(job, output, overrides)
    old, new = pick(where, name, None if chosen is None else (chosen[0], chosen[1]))
    folder = join(where, "comparisons", name, f"{old.version}-{new.version}")
    for line in write_comparison(where, old, new, absolute(target) if target else folder):
        click.echo(mask_secrets(line))


@click.command()
@takes_job
@click.option("--delete", "is_meant", is_flag=True, help="Delete them; without it, only say which.")
def prune(loaded: Job, is_meant: bool) -> None:
    """Delete versions that are neither current nor wanted by the job; a dry run by default."""
    from bioembed_ray import lease
    from bioembed_ray.prune import delete, leftovers

    found = leftovers(loaded)
    for one in found:
        click.echo(f"{one.prefix}: {len(one.uris)} objects, {one.n_bytes / 1e6:.3g} MB")
    total = sum(one.n_bytes for one in found) / 1e6
    if not is_meant:
        click.echo(f"{len(found)} old versions, {total:.3g} MB; --delete deletes them")
        return
    with lease.hold(loaded.output, "bioembed prune"):
        n_deleted = delete(loaded.output, leftovers(loaded))
    click.echo(f"{n_deleted} objects deleted, {total:.3g} MB")


READING = (status, verify, export, compare, prune)
