"""The commands for eyes and ears: report, listen."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bioembed_ray.commands.options import JOB, MIN_VALID, OUTPUT, SET, output_of, say
from bioembed_ray.config import mask_secrets


@click.command()
@JOB
@OUTPUT
@SET
@click.option(
    "--max-windows",
    type=click.IntRange(1, 100_000),
    default=20_000,
    show_default=True,
    help="Most windows of an encoder on its map.",
)
@click.option(
    "--max-clips",
    type=click.IntRange(0, 1000),
    default=240,
    show_default=True,
    help="Most stretches of sound in the page.",
)
@click.option(
    "--recording", help="The recording shown in full; the longest one short enough without it."
)
@MIN_VALID
@click.option(
    "--galleries",
    type=click.IntRange(0, 500),
    default=64,
    show_default=True,
    help="Most tokens of a codebook with a gallery of places.",
)
@click.option("--to", "target", help="Folder or prefix; <output>/report without it.")
def report(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    max_windows: int,
    max_clips: int,
    recording: str | None,
    min_valid_s: float | None,
    galleries: int,
    target: str | None,
) -> None:
    """Write pages to look at and listen to: what ran, what failed, maps of sounds, codebooks."""
    from functools import partial

    from bioembed_ray.report.build import ReportOptions, write_report
    from bioembed_ray.report.codebook_page import CodebookOptions, codebook_pages
    from bioembed_ray.storage import absolute, join

    where = output_of(job, output, overrides)
    folder = absolute(target) if target else join(where, "report")
    options = ReportOptions(max_windows, max_clips, recording, min_valid_s)
    shown = CodebookOptions(recording=recording, galleries=galleries)
    pages = partial(codebook_pages, options=shown, say=say)
    for line in write_report(where, options, folder, say, pages):
        click.echo(mask_secrets(line))


@click.command()
@JOB
@OUTPUT
@SET
@click.option("--recording", required=True, help="Its name in recordings/.")
@click.option("--channel", type=click.IntRange(0), default=0, show_default=True)
@click.option("--start", "start_s", type=click.FloatRange(0), default=0.0, help="First second.")
@click.option(
    "--seconds",
    "length_s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
)
@click.option(
    "--slowed",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Play it so many times slower, for ultrasound.",
)
@click.option("--to", "target", default="listen.wav", show_default=True, help="The WAV file.")
def listen(
    job: str | None,
    output: str | None,
    overrides: Sequence[str],
    recording: str,
    channel: int,
    start_s: float,
    length_s: float,
    slowed: int,
    target: str,
) -> None:
    """Write a stretch of a recording as WAV, from wherever the recording is."""
    from bioembed_ray.audio.listen import write_stretch
    from bioembed_ray.results import open_output
    from bioembed_ray.storage import absolute

    results = open_output(output_of(job, output, overrides))
    line = write_stretch(results, recording, channel, start_s, length_s, slowed, absolute(target))
    click.echo(mask_secrets(line))


REPORTING = (report, listen)
