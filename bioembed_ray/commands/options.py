"""What the commands share: options of a job, and talk on stderr."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from bioembed_ray.config import Job, mask_secrets
from bioembed_ray.errors import ConfigError
from bioembed_ray.job_file import load_job

SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job file."
)
INPUT = click.option("--input", "uri", help="What to read: folder, prefix, glob, file or list.")
OUTPUT = click.option("--output", help="Folder or bucket prefix of the tables.")
ENCODERS = click.option(
    "--encoders", help="Names with commas: beats,efficientnet,wav2vec2,hubert,ast,vqvae."
)
MIN_VALID = click.option(
    "--min-valid-s",
    type=click.FloatRange(0),
    help="Least seconds of sound in a window; half of its length without it, 0 takes all. A shorter "
    "recording keeps its first window.",
)
JOB = click.argument("job", required=False, metavar="[JOB.yaml]")


def say(text: str) -> None:
    """Write a line to stderr."""
    click.echo(mask_secrets(text), err=True)


def load(
    job: str | None,
    overrides: Sequence[str],
    uri: str | None = None,
    output: str | None = None,
    encoders: str | None = None,
) -> Job:
    """Return the job that a file and options describe, its paths absolute."""
    from bioembed_ray.storage import absolute
    from bioembed_ray.store import stores

    if job is None and output is None and not any(o.startswith("output=") for o in overrides):
        raise ConfigError("no job file and no --output; `bioembed init` writes a job file")
    direct: dict[str, Any] = {"output": output, "input": None if uri is None else {"uri": uri}}
    if encoders is not None:
        direct["encoders"] = {name.strip(): None for name in encoders.split(",") if name.strip()}
    loaded = load_job(job, tuple(overrides), **direct)
    where = loaded.input.uri
    paths = absolute(where) if isinstance(where, str) else tuple(absolute(path) for path in where)
    stores.announce(loaded.storage, absolute(loaded.output))
    return loaded.model_copy(
        update={
            "output": absolute(loaded.output),
            "input": loaded.input.model_copy(update={"uri": paths}),
        }
    )


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
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
        **more: Any,
    ) -> None:
        command(load(job, overrides, uri, output, encoders), **more)

    return load_first


def output_of(job: str | None, output: str | None, overrides: Sequence[str]) -> str:
    """Return the output that a command reads."""
    from bioembed_ray.storage import absolute

    if output and job is None:
        return absolute(output)
    return load(job, overrides, output=output).output
