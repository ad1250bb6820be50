"""The commands that ask what stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bioembed_ray.commands.options import JOB, MIN_VALID, OUTPUT, SET, output_of
from bioembed_ray.config import mask_secrets


@click.command()
@JOB
@OUTPUT
@SET
@click.option(
    "--labels",
    required=True,
    help="COLUMN of recordings/, or TABLE.csv:COLUMN, a table with a column uri.",
)
@click.option(
    "--group",
    help="The same, for what is never trained and tested on at once, e.g. site; the recording without it.",
)
@click.option("--level", type=click.Choice(["recording", "window"]), default="recording")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--name", "names", multiple=True, help="Encoders and codebooks; all without it.")
@click.option(
    "--max-windows",
    type=click.IntRange(1),
    default=50_000,
    show_default=True,
    help="Most windows read of an encoder, evenly over recordings.",
)
@MIN_VALID
@click.option("--against-rest", help="Tell recordings with this label from all others.")
@click.option("--to", "target", help="Folder or prefix; <output>/probe without it.")
def probe(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    target: str | None,
    **asked: Any,
) -> None:
    """Say which encoder, layer and codebook tell the labels of recordings best."""
    from bioembed_ray.labels.probing import Question
    from bioembed_ray.labels.report import write_probe
    from bioembed_ray.storage import absolute, join

    where = output_of(job, output, overrides)
    folder = absolute(target) if target else join(where, "probe")
    for line in write_probe(where, Question(**asked), folder):
        click.echo(mask_secrets(line))


RESULTS = (probe,)
