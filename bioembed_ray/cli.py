"""The commands. Results go to stdout, talk to stderr; heavy imports wait inside each command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bioembed_ray.commands.options import say, takes_job
from bioembed_ray.commands.probing import RESULTS
from bioembed_ray.commands.reading import READING
from bioembed_ray.commands.reporting import REPORTING
from bioembed_ray.commands.searching import search
from bioembed_ray.config import Job, mask_secrets
from bioembed_ray.errors import BioembedError, ConfigError, TooManyFailures

if TYPE_CHECKING:
    from bioembed_ray.run import Goal

NO_CODEBOOKS = "codebooks: none given; add e.g. hubert-500: {encoder: hubert, clusters: 500}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bioembed_ray")
def commands() -> None:
    """Turn an archive of animal sound into embeddings and frames on a Ray cluster."""


@commands.command()
@click.argument("path", default="job.yaml", metavar="[JOB.yaml]")
@click.option("--input", "uri", default=".", help="What to read.")
@click.option("--output", default="embeddings_out", help="Where the tables shall go.")
@click.option(
    "--encoders", default="beats,efficientnet,wav2vec2,hubert,ast", help="Names with commas."
)
@click.option("--force", is_flag=True, help="Overwrite a job file that stands.")
def init(path: str, uri: str, output: str, encoders: str, force: bool) -> None:
    """Look at a few recordings and write a commented job file."""
    from bioembed_ray.config import InputConfig
    from bioembed_ray.look import write_job_file

    if Path(path).exists() and not force:
        raise ConfigError(f"{path}: stands already; give another name, or --force")
    names = tuple(name.strip() for name in encoders.split(",") if name.strip())
    text = write_job_file(InputConfig(uri=uri), output, names)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    click.echo(text)
    say(f"wrote {path}; next: bioembed plan {path}")


@commands.command()
@takes_job
def plan(loaded: Job) -> None:
    """Say what a run would do; nothing is written."""
    from bioembed_ray import probing
    from bioembed_ray.codebooks import wanted
    from bioembed_ray.plan import list_again, make_plan
    from bioembed_ray.plan_text import describe_plan

    found = make_plan(loaded, probing.probe_recordings, probing.list_members)
    codebooks = wanted.wanted_codebooks(loaded, found.encoders)
    applied, missing = wanted.with_tokens(found.encoders, codebooks)
    list_again(found, applied)
    for line in describe_plan(found, missing, codebooks):
        click.echo(mask_secrets(line))


@commands.command()
@takes_job
def run(loaded: Job) -> None:
    """Bring the output up to date with the input; killed anywhere, the next run goes on.

    VQ-VAEs and codebooks of the job file that are missing are trained and fitted first, on some of
    the shards.
    """
    _run(loaded, "all")


@commands.command()
@takes_job
def embed(loaded: Job) -> None:
    """Do what `run` does, but for codebooks and tokens."""
    _run(loaded, "embeddings")


@commands.command("fit-codebook")
@takes_job
def fit_codebook(loaded: Job) -> None:
    """Fit the codebooks of a job that are missing, encoding what they need."""
    if not loaded.codebooks:
        raise ConfigError(NO_CODEBOOKS)
    _run(loaded, "codebooks")


@commands.command("train-vqvae")
@takes_job
def train_vqvae(loaded: Job) -> None:
    """Train the VQ-VAEs of a job that are missing, on a sample of its recordings."""
    if not _vqvaes(loaded):
        raise ConfigError("encoders: none is a VQ-VAE; add vqvae: {}")
    _run(loaded, "models")


@commands.command()
@takes_job
def tokenize(loaded: Job) -> None:
    """Write the tokens of a job's codebooks and VQ-VAEs, fitting and training what is missing."""
    if not loaded.codebooks and not _vqvaes(loaded):
        raise ConfigError(NO_CODEBOOKS)
    _run(loaded, "tokens")


def _vqvaes(loaded: Job) -> list[str]:
    return [name for name, encoder in loaded.encoders.items() if encoder.model == "vqvae"]


def _run(loaded: Job, goal: Goal) -> None:
    from bioembed_ray.report_text import describe_result
    from bioembed_ray.run import run_job

    result = run_job(loaded, say, goal)
    for line in describe_result(result):
        click.echo(mask_secrets(line))
    if result.exit_code == 3:
        raise TooManyFailures(
            f"{result.failed_fraction:.2%} of the input failed, more than max_failed_fraction "
            f"{loaded.max_failed_fraction:.2%}; what is good is committed, the rest is in failures/"
        )
    if result.exit_code:
        first = result.tally.transient[0] if result.tally.transient else "see failures/"
        n_shards, n_waiting = len(result.tally.uncommitted), len(result.tally.waiting)
        what = f"{n_shards} shards stay uncommitted"
        if not n_shards and n_waiting:
            what = f"{n_waiting} recordings or folders could not be read yet"
        raise BioembedError(f"{what} ({first}); run again to finish them")


for command in (*READING, *RESULTS, *REPORTING, search):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 failed, 2 bad usage or config, 3 too many failures, 4 locked."""
    try:
        commands.main(args=arguments, prog_name="bioembed", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        say("stopped; what is committed stays, run again to go on")
        sys.exit(130)
    except BioembedError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
