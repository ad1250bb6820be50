"""The notebook runs from top to bottom, and finds in the tones what is in them."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"


@pytest.mark.slow
@pytest.mark.ray
def test_the_walkthrough_runs_and_tells_the_pitches_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    asked = "print(max(scores.values()), *[len(results.windows(e).table()) for e in scores])"
    notebook.cells.append(nbformat.v4.new_code_cell(asked))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=dict(os.environ))
    best, *windows = notebook.cells[-1].outputs[0].text.split()
    assert float(best) >= 0.95
    assert windows == ["72", "72"]
    said = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "nothing to do: all 2 shards stand" in said


def test_the_notebook_holds_nothing_of_the_machine_it_was_made_on() -> None:
    body = NOTEBOOK.read_text()
    assert len(body) < 500_000
    assert "/home/" not in body
    assert "/tmp/" not in body
