"""The commands. Results go to stdout, talk to stderr; heavy imports wait inside each command."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bioembed_ray.config import Job, mask_secrets
from bioembed_ray.errors import BioembedError, BrokenOutput, ConfigError, TooManyFailures
from bioembed_ray.job_file import load_job

if TYPE_CHECKING:
    from bioembed_ray.run import Goal

SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job file."
)
INPUT = click.option("--input", "uri", help="What to read: folder, prefix, glob, file or list.")
OUTPUT = click.option("--output", help="Folder or bucket prefix of the tables.")
ENCODERS = click.option(
    "--encoders", help="Names with commas: beats,efficientnet,wav2vec2,hubert,ast,vqvae."
)
NO_CODEBOOKS = "codebooks: none given; add e.g. hubert-500: {encoder: hubert, clusters: 500}"
JOB = click.argument("job", required=False, metavar="[JOB.yaml]")


def _say(text: str) -> None:
    click.echo(mask_secrets(text), err=True)


def _load(
    job: str | None,
    overrides: Sequence[str],
    uri: str | None = None,
    output: str | None = None,
    encoders: str | None = None,
) -> Job:
    from bioembed_ray.storage import absolute

    if job is None and output is None and not any(o.startswith("output=") for o in overrides):
        raise ConfigError("no job file and no --output; `bioembed init` writes a job file")
    direct: dict[str, Any] = {"output": output, "input": None if uri is None else {"uri": uri}}
    if encoders is not None:
        direct["encoders"] = {name.strip(): None for name in encoders.split(",") if name.strip()}
    loaded = load_job(job, tuple(overrides), **direct)
    where = loaded.input.uri
    paths = absolute(where) if isinstance(where, str) else tuple(absolute(path) for path in where)
    return loaded.model_copy(
        update={
            "output": absolute(loaded.output),
            "input": loaded.input.model_copy(update={"uri": paths}),
        }
    )


def _takes_job(command: Callable[[Job], None]) -> Callable[..., None]:
    """Give a command the options of a job, and call it with the job."""

    @JOB
    @INPUT
    @OUTPUT
    @ENCODERS
    @SET
    @functools.wraps(command)
    def load_first(
        job: str | None,
        uri: str | None,
        output: str | None,
        encoders: str | None,
        overrides: Sequence[str],
    ) -> None:
        command(_load(job, overrides, uri, output, encoders))

    return load_first


def _output_of(job: str | None, output: str | None, overrides: Sequence[str]) -> str:
    from bioembed_ray.storage import absolute

    if output:
        return absolute(output)
    return _load(job, overrides).output


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
    _say(f"wrote {path}; next: bioembed plan {path}")


@commands.command()
@_takes_job
def plan(loaded: Job) -> None:
    """Say what a run would do; nothing is written."""
    from bioembed_ray import cluster
    from bioembed_ray.codebooks import wanted
    from bioembed_ray.look import describe_plan
    from bioembed_ray.plan import list_again, make_plan

    found = make_plan(loaded, cluster.probe_recordings, cluster.list_members)
    codebooks = wanted.wanted_codebooks(loaded, found.encoders)
    applied, missing = wanted.with_tokens(found.encoders, codebooks)
    list_again(found, applied)
    for line in describe_plan(found, missing):
        click.echo(mask_secrets(line))


@commands.command()
@_takes_job
def run(loaded: Job) -> None:
    """Bring the output up to date with the input; killed anywhere, the next run goes on.

    VQ-VAEs and codebooks of the job file that are missing are trained and fitted first, on some of
    the shards.
    """
    _run(loaded, "all")


@commands.command()
@_takes_job
def embed(loaded: Job) -> None:
    """Do what `run` does, but for codebooks and tokens."""
    _run(loaded.model_copy(update={"codebooks": {}}), "all")


@commands.command("fit-codebook")
@_takes_job
def fit_codebook(loaded: Job) -> None:
    """Fit the codebooks of a job that are missing, encoding what they need."""
    if not loaded.codebooks:
        raise ConfigError(NO_CODEBOOKS)
    _run(loaded, "codebooks")


@commands.command("train-vqvae")
@_takes_job
def train_vqvae(loaded: Job) -> None:
    """Train the VQ-VAEs of a job that are missing, on a sample of its recordings."""
    if not _vqvaes(loaded):
        raise ConfigError("encoders: none is a VQ-VAE; add vqvae: {}")
    _run(loaded, "models")


@commands.command()
@_takes_job
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

    result = run_job(loaded, _say, goal)
    for line in describe_result(result):
        click.echo(mask_secrets(line))
    if result.exit_code == 3:
        raise TooManyFailures(
            f"{result.failed_fraction:.2%} of the input failed, more than max_failed_fraction "
            f"{loaded.max_failed_fraction:.2%}; what is good is committed, the rest is in failures/"
        )
    if result.exit_code:
        first = result.tally.transient[0] if result.tally.transient else "see failures/"
        raise BioembedError(
            f"{len(result.tally.uncommitted)} shards stay uncommitted ({first}); run again to finish them"
        )


@commands.command()
@JOB
@OUTPUT
@SET
def status(job: str | None, output: str | None, overrides: Sequence[str]) -> None:
    """Say what stands: parts, hours, failures, and whether a run is going on."""
    from bioembed_ray.report_text import describe_status

    for line in describe_status(_output_of(job, output, overrides)):
        click.echo(mask_secrets(line))


@commands.command()
@JOB
@OUTPUT
@SET
def verify(job: str | None, output: str | None, overrides: Sequence[str]) -> None:
    """Check that every window stands once and every second is accounted for."""
    from bioembed_ray.verify import verify as check

    where = _output_of(job, output, overrides)
    problems = list(check(where))
    for line in problems[:50]:
        click.echo(mask_secrets(line))
    if problems:
        raise BrokenOutput(f"{where}: {len(problems)} problems")
    click.echo(f"{where}: every window stands once, every second is accounted for")


@commands.command()
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
    where = _output_of(job, output, overrides)
    folder = absolute(target) if target else join(where, "export")
    if codebook:
        lines = export_tokens(where, codebook, kinds, folder)
    else:
        lines = export_all(where, encoder, version, level, pool, kinds, folder)
    for line in lines:
        click.echo(line)


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
        _say("stopped; what is committed stays, run again to go on")
        sys.exit(130)
    except BioembedError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
