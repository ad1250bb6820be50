"""The demo: a made-up archive through all six systems, and a look at what was written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import duckdb

from bioembed_ray.cli import main
from bioembed_ray.synthetic import write_archive

AUDIO, OUTPUT = Path("demo_audio"), Path("demo_out")
JOB = "jobs/examples/small_local.yaml"
ENCODERS = ("beats", "efficientnet", "wav2vec2", "hubert", "ast")

ROWS = """
SELECT recording, start_s, end_s, valid_s, encoder,
       format('[{{:.4f}}, {{:.4f}}, … {{}} numbers]', embedding[1], embedding[2], len(embedding)) AS embedding
FROM read_parquet('{output}/embeddings/*/*/*.parquet', hive_partitioning = true)
WHERE recording = 'tones/low_00.wav' AND encoder = 'beats' ORDER BY start_s LIMIT 3
"""
SHAPES = """
SELECT encoder, version, count(*) AS windows, count(DISTINCT recording) AS recordings,
       any_value(len(embedding)) AS dimensions,
       count(*) FILTER (recording LIKE 'tones/%') AS windows_of_the_12_tones
FROM read_parquet('{output}/embeddings/*/*/*.parquet', hive_partitioning = true)
GROUP BY ALL ORDER BY encoder
"""
SEQUENCE = """
SELECT recording, codebook, start_s, hop_s, len(tokens) AS n, tokens[1:12] AS first_tokens
FROM read_parquet('{output}/tokens/*/*/*.parquet', hive_partitioning = true)
WHERE recording = 'soundscape/forest_stereo.wav' ORDER BY codebook, start_s LIMIT 4
"""
TIMES = """
SELECT round(start_s + (i - 1) * hop_s, 2) AS second, tokens[i] AS token
FROM (SELECT *, unnest(range(1, 9)) AS i
      FROM read_parquet('{output}/tokens/codebook=hubert-32/*/*.parquet')
      WHERE recording = 'soundscape/forest_stereo.wav')
"""
FAILURES = "SELECT recording, reason, detail FROM '{output}/failures/failures.parquet'"


def run(weights: str) -> None:
    """Make the archive, run the job twice, check it, and show what stands.

    Args:
        weights: `random` or `pretrained`, for every encoder.
    """
    _title(f"1. A made-up archive in {AUDIO}/")
    for name in write_archive(AUDIO):
        print(f"   {name}")
    settings = [
        part for name in ENCODERS for part in ("--set", f"encoders.{name}.weights={weights}")
    ]
    _title(f"2. bioembed run {JOB}   (weights: {weights})")
    _command("run", JOB, *settings)
    _title("3. bioembed run, again: nothing is left to do")
    _command("run", JOB, *settings)
    _title("4. bioembed verify")
    _command("verify", JOB)
    _title("5. bioembed export --level recording --pool mean")
    _command(
        "export", JOB, "--encoder", "beats", "--encoder", "efficientnet", "--level", "recording"
    )
    for title, query in (
        ("6. What stands, by DuckDB", SHAPES),
        ("7. Three rows", ROWS),
        ("8. What failed, and why", FAILURES),
        ("9. Token sequences of one recording", SEQUENCE),
        ("   The first of them with their times", TIMES),
    ):
        _title(title)
        print(duckdb.sql(query.format(output=OUTPUT)))
    _title("What to look at")
    print(
        f"""   {OUTPUT}/embeddings/encoder=beats/    one row per window: plain Parquet for DuckDB, pandas, Polars
   {OUTPUT}/recordings/                  both lengths of every recording, its time and device, what became of it
   {OUTPUT}/failures/                    the text file that calls itself notes.wav, and the half that a flat
                                      battery cost marsh_20240513_043000.wav
   {OUTPUT}/codebooks/hubert-32/         centroids, and a card: inertia, codes in use, perplexity, agreement
   {OUTPUT}/models/vqvae/                the VQ-VAE that was trained on the archive; see its reconstructions.png
   {OUTPUT}/tokens/codebook=hubert-32/   one row of tokens per segment and channel
   {OUTPUT}/export/                      one vector per recording as .npy, with a CSV that names the rows
   {OUTPUT}/runs/                        job, versions, environment and timings of every run
   .venv/bin/bioembed report {JOB}
                                      makes pages of all this in {OUTPUT}/report/, to look at and to listen to
   The tones are the case of the avex example notebook: 12 files of 3 s give 72 windows of 1 s every 0.5 s."""
    )
    if weights == "random":
        print(
            "   The weights were RANDOM, so the vectors mean nothing; `make demo WEIGHTS=pretrained` downloads real ones."
        )


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _command(*arguments: str) -> None:
    _without_exit(lambda: main(arguments))


def _without_exit(call: Callable[[], None]) -> None:
    """Let a command's failure end the demo, and its success not."""
    try:
        call()
    except SystemExit as stop:
        if stop.code:
            raise


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "random")
