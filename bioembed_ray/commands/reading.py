"""The commands that read what stands: status, verify, export, compare, prune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bioembed_ray.commands.options import JOB, OUTPUT, SET, output_of, takes_job
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
    """Check that every window, frame and token stands once and every second is accounted for."""
    from bioembed_ray.verify import verify as check

    where = output_of(job, output, overrides)
    problems = list(check(where))
    for line in problems[:50]:
        click.echo(mask_secrets(line))
    if problems:
        raise BrokenOutput(f"{where}: {len(problems)} problems")
    click.echo(f"{where}: every row stands once, every second is accounted for")


@click.command()
@JOB
@OUTPUT
@SET
@click.option("--encoder", multiple=True, help="Which encoders; all without it.")
@click.option("--version", help="Which version; the current one without it.")
@click.option("--level", type=click.Choice(["window", "recording"]), default="window")
@click.option("--pool", type=click.Choice(["mean", "max", "concat"]), default="mean")
@click.option("--codebook", multiple=True, help="Tokens of these codebooks instead of vectors.")
@click.option(
    "--format",
    "formats",
    help="npy, pt, csv, datasets, hoplite, atlas (vectors); text, runs, raven, audacity (tokens); "
    "views (DuckDB); or several with commas.",
)
@click.option("--labels", metavar="COLUMN", help="hoplite: this manifest column as annotations.")
@click.option("--keep-vectors", is_flag=True, help="atlas: write the vectors too.")
@click.option("--relative", "is_relative", is_flag=True, help="views: paths below the output.")
@click.option("--to", "folder", help="Folder or prefix; <output>/export without it.")
def export(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    encoder: tuple[str, ...],
    codebook: tuple[str, ...],
    formats: str | None,
    folder: str | None,
    **more: Any,
) -> None:
    """Write vectors, tokens or views for other programs."""
    from bioembed_ray.exports.formats import Request, export_all, formats_of
    from bioembed_ray.storage import absolute, join

    kinds = formats_of(formats, codebook)
    where = output_of(job, output, overrides)
    to = absolute(folder) if folder else join(where, "export")
    request = Request(where, to, kinds, encoders=encoder, codebooks=codebook, **more)
    for line in export_all(request):
        click.echo(mask_secrets(line))


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
    from bioembed_ray.compare.comparison import pick, write_comparison
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
