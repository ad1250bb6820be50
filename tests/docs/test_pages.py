"""What the pages tell people to type works: commands parse, job files load, queries run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import yaml

from bioembed_ray import parts, schema, storage
from bioembed_ray.cli import commands
from bioembed_ray.codebooks.card import Codebook, codebook_bytes
from bioembed_ray.config import Job
from bioembed_ray.datasets import Dataset
from tests.tables import put_table

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Schedulers' own Python has a test of its own, and packages that are not installed here.
NOT_RUN = {"schedules.md"}


def fenced(page: Path, language: str) -> list[str]:
    """Return the blocks of a language; one marked otherwise, such as `python no-run`, is left out."""
    blocks = re.findall(r"^```(.*?)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [body for kind, body in blocks if kind.strip() == language]


def cases(language: str) -> list[object]:
    return [
        pytest.param(page, id=page.name)
        for page in PAGES
        if page.name not in NOT_RUN and fenced(page, language)
    ]


def typed(page: Path) -> Iterator[list[str]]:
    for block in fenced(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["bioembed"]:
                yield words[1:]


@pytest.mark.parametrize("page", cases("bash"))
def test_commands_are_ones_that_the_program_takes(page: Path) -> None:
    for name, *arguments in typed(page):
        # "bioembed compare, prune" names two.
        command = commands.commands.get(name.rstrip(","))
        assert command is not None, f"{page.name}: no command {name}"
        if not name.endswith(","):
            # Raises on an option that does not exist, a value that is none, a word too many.
            command.make_context(name, list(arguments))


@pytest.mark.parametrize("page", cases("yaml"))
def test_job_files_are_ones_that_load(page: Path) -> None:
    for block in fenced(page, "yaml"):
        found = yaml.safe_load(block)
        if "apiVersion" in found:
            continue
        job = {"output": "out", "encoders": {"hubert": {"weights": "random"}}} | found
        for name, encoder in (job["encoders"] or {}).items():
            job["encoders"][name] = encoder or {}
        Job.model_validate(job)


@pytest.mark.parametrize("page", cases("sql"))
def test_queries_run_and_find_rows(page: Path, demo: None) -> None:
    for block in fenced(page, "sql"):
        assert duckdb.sql(block.rstrip().rstrip(";")).fetchall(), block


@pytest.mark.parametrize("page", cases("python"))
def test_python_runs(page: Path, demo: None) -> None:
    names: dict[str, object] = {}
    for block in fenced(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output such as the demo's, with short vectors, in the folder that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    root = "demo_out"
    rng = np.random.default_rng(0)
    names = ["soundscape/forest_stereo.wav", "tones/low_00.wav"]
    for encoder in ("beats", "hubert"):
        rows = [
            {
                "recording": name,
                "channel": 0,
                "start_s": k / 2,
                "end_s": k / 2 + 1,
                "valid_s": 1.0,
                "embedding": rng.standard_normal(4),
            }
            for name in names
            for k in range(6)
        ]
        table = pa.Table.from_pylist(rows, schema=schema.embeddings(4, "float32"))
        put_table(parts.part_uri(root, Dataset("embeddings", encoder, "v1"), "s1"), table)
    sequence = [
        {
            "recording": name,
            "channel": 0,
            "start_s": 0.0,
            "hop_s": 0.02,
            "per_step": 1,
            "tokens": [1, 1, 0],
        }
        for name in names
    ]
    tokens = pa.Table.from_pylist(sequence, schema=schema.tokens("int16"))
    put_table(parts.part_uri(root, Dataset("tokens", "hubert-32", "t1"), "s1"), tokens)
    book = Codebook("hubert-32", "c1", "hubert", "v1", "euclidean", np.eye(4, dtype=np.float32))
    folder = storage.join(root, "codebooks/hubert-32/version=c1")
    storage.put(storage.join(folder, "codebook.safetensors"), codebook_bytes(book))
    current = {
        "encoders": {name: {"embeddings": "v1", "frames": None} for name in ("beats", "hubert")},
        "codebooks": {"hubert-32": {"encoder": "hubert", "codebook": "c1", "tokens": "t1"}},
    }
    storage.put(storage.join(root, "current.json"), json.dumps(current).encode())
    known = {
        "recording": names,
        "site": ["marsh", None],
        "recorded_at": ["2024-05-12T04:30:00+02:00", None],
    }
    put_table(storage.join(root, "recordings/recordings.parquet"), pa.table(known))
    failed = {"recording": ["soundscape/notes.wav"], "reason": ["unsupported"], "detail": ["text"]}
    put_table(storage.join(root, "failures/failures.parquet"), pa.table(failed))
