"""Fits on a real Ray: the same bytes whoever computes, whoever dies, and in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bioembed_ray import storage
from bioembed_ray.codebooks import fit as fit_module
from bioembed_ray.codebooks import fit_steps
from bioembed_ray.codebooks.fit import Workers, fit_codebook, plan_workers
from bioembed_ray.codebooks.rule import Fit, LloydRule
from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.errors import ConfigError, InputError
from tests.unit.kmeans_fixtures import a_fit, pseudo_frames, put_parts, put_sample

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
CPUS = 0.4
"""Of two cores, so that four workers have room."""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty recordings in seven parts."""
    folder = tmp_path_factory.mktemp("frames")
    put_parts(folder, pseudo_frames(15_000, 24).astype(np.float16), 7)
    return folder


def wanted(folder: Path | str, second_seed: bool = False) -> Fit:
    rule, sample = LloydRule(32, tolerance=0.0, max_iterations=15), SampleRule(13_000)
    name = "birds-500"
    return Fit(name, "v1", "hubert", "e1", 6, str(folder), rule, sample, second_seed=second_seed)


def sha_of(fit: Fit) -> str:
    return hashlib.sha256((Path(fit.folder) / "codebook.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def fitted(
    ray_cluster: None, frames: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The codebook by one worker."""
    fit = wanted(tmp_path_factory.mktemp("one") / "cb", second_seed=True)
    said = io.StringIO()
    parts = list(storage.list_objects(str(frames)))
    with mock.patch.object(fit_steps, "TELL_S", 0.0):
        card = fit_codebook(fit, parts, workers=Workers(1, cpus=CPUS), stream=said)
    return {"fit": fit, "card": card, "said": said.getvalue(), "parts": parts, "sha": sha_of(fit)}


@pytest.mark.parametrize("n_workers", [2, 4])
def test_any_number_of_workers_and_any_order_of_parts_give_the_same_bytes(
    fitted: dict[str, Any], n_workers: int, tmp_path: Path
) -> None:
    fit = wanted(tmp_path / "cb")
    workers = Workers(n_workers, cpus=CPUS)
    fit_codebook(fit, fitted["parts"][::-1], workers=workers, stream=io.StringIO())
    assert sha_of(fit) == fitted["sha"]


def test_only_codebook_and_card_are_left_and_a_second_call_does_nothing(
    fitted: dict[str, Any],
) -> None:
    folder = Path(fitted["fit"].folder)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "card.json",
        "codebook.safetensors",
    ]
    said = io.StringIO()
    card = fit_codebook(fitted["fit"], [], stream=said)
    assert card == json.loads((folder / "card.json").read_text())
    assert said.getvalue() == ""


def test_progress_has_a_line_per_iteration_and_the_second_seed_its_own(
    fitted: dict[str, Any],
) -> None:
    lines = fitted["said"].splitlines()
    first = [line for line in lines if line.startswith("codebook birds-500: ")]
    assert [int(re.search(r"iteration (\d+)", line)[1]) for line in first] == list(range(1, 16))  # type: ignore[index]
    assert any(line.startswith("codebook birds-500 with seed 1: ") for line in lines)
    assert 0 < fitted["card"]["held_out"]["seeds"]["adjusted_rand_index"] < 1


def children_of_this_cluster() -> list[int]:
    """Return the pids of this session's k-means workers."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes()
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            boss = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::Worker") and session.encode() in boss:
            found.append(int(entry.name))
    return found


def test_a_fit_of_a_moment_tells_its_first_and_last_iteration(
    fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_steps, "TELL_S", 3600.0)
    said = io.StringIO()
    fit_codebook(wanted(tmp_path / "cb"), fitted["parts"], stream=said)
    assert sha_of(wanted(tmp_path / "cb")) == fitted["sha"]
    assert re.findall(r"birds-500: iteration (\d+),", said.getvalue()) == ["1", "15"]


def test_a_small_sample_is_fitted_in_this_process_with_the_bytes_of_an_actor(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_parts(tmp_path / "frames", pseudo_frames(4000, 24), 3)
    parts = list(storage.list_objects(str(tmp_path / "frames")))
    here, there = wanted(tmp_path / "here", second_seed=True), wanted(tmp_path / "there", True)
    fit_codebook(there, parts, workers=Workers(1, cpus=CPUS), stream=io.StringIO())
    threads = torch.get_num_threads()
    monkeypatch.delattr(fit_module, "ActorPool")
    fit_codebook(here, parts, stream=io.StringIO())
    assert torch.get_num_threads() == threads
    assert sha_of(here) == sha_of(there)


def test_death_of_a_worker_in_mid_fit_changes_no_bit(
    fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_steps, "TELL_S", 0.0)

    class Killer(io.StringIO):
        killed = 0

        def write(self, text: str) -> int:
            if re.search(r"birds-500: iteration (3|7),", text):
                for pid in children_of_this_cluster()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1
            return super().write(text)

    fit, stream = wanted(tmp_path / "cb"), Killer()
    fit_codebook(fit, fitted["parts"], workers=Workers(2, cpus=CPUS), stream=stream)
    assert stream.killed == 2
    assert sha_of(fit) == fitted["sha"]


@pytest.mark.slow
def test_driver_killed_in_mid_fit_goes_on_with_the_same_bytes(
    fitted: dict[str, Any], frames: Path, tmp_path: Path
) -> None:
    fit = wanted(tmp_path / "cb")
    code = (
        "import sys, io, ray, time\n"
        "from tests.integration.test_fit import *\n"
        "fit_steps.TELL_S = 0.0\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[3])\n"
        "class Slow(io.StringIO):\n"
        "    def write(self, text):\n"
        "        print(text, end='', flush=True); time.sleep(0.3)\n"
        "parts = list(storage.list_objects(sys.argv[1]))\n"
        "fit_codebook(wanted(Path(sys.argv[2])), parts, workers=Workers(2, cpus=CPUS), stream=Slow())\n"
    )
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as ray_folder:
        driver = subprocess.Popen(
            [sys.executable, "-c", code, str(frames), fit.folder, ray_folder],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        assert driver.stdout is not None
        for line in driver.stdout:
            if "iteration 5," in line:
                os.killpg(driver.pid, signal.SIGKILL)
                break
        driver.wait()
        time.sleep(1)
    assert (Path(fit.folder) / "fit-seed-0.safetensors").exists()
    said = io.StringIO()
    fit_codebook(fit, fitted["parts"], workers=Workers(1, cpus=CPUS), stream=said)
    began = int(re.search(r"iteration (\d+)", said.getvalue())[1])  # type: ignore[index]
    assert began >= 6
    assert sha_of(fit) == fitted["sha"]


def test_fit_on_s3_leaves_the_same_bytes(fitted: dict[str, Any], frames: Path, s3: Any) -> None:
    for path in sorted(frames.glob("*.parquet")):
        s3.put(f"frames/{path.name}", path.read_bytes())
    fit = wanted(f"{s3.uri}/cb")
    parts = list(storage.list_objects(f"{s3.uri}/frames"))
    fit_codebook(fit, parts, workers=Workers(2, cpus=CPUS), stream=io.StringIO())
    assert hashlib.sha256(s3.get("cb/codebook.safetensors")).hexdigest() == fitted["sha"]
    assert sorted(s3.listing()) == sorted(
        ["cb/card.json", "cb/codebook.safetensors", *(f"frames/{i:03d}.parquet" for i in range(7))]
    )


def test_errors_of_workers_reach_the_caller_as_one_line(ray_cluster: None, tmp_path: Path) -> None:
    rows = pseudo_frames(3000, 6)
    rows[77, 2] = np.inf
    parts = put_parts(tmp_path / "f", rows, 2)
    with pytest.raises(
        InputError, match=r"1 of .* sampled frames hold NaN.*first: r0000\.wav, channel 0"
    ) as caught:
        fit_codebook(wanted(tmp_path / "cb"), parts, workers=Workers(2, cpus=CPUS))
    assert "\n" not in str(caught.value)
    (tmp_path / "f" / "000.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"000\.parquet: not a part of frames/ or embeddings/"):
        fit_codebook(wanted(tmp_path / "cb2"), parts, workers=Workers(2, cpus=CPUS))
    with pytest.raises(InputError, match="birds-500: no frames of hubert"):
        fit_codebook(wanted(tmp_path / "cb3"), [])


def test_more_workers_than_the_cluster_has_room_for_are_an_error_before_anything_starts(
    fitted: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"3 k-means workers need 3 CPUs, the cluster has 2"):
        fit_codebook(wanted(tmp_path / "cb"), fitted["parts"], workers=Workers(3))
    assert not (tmp_path / "cb").exists()
    with pytest.raises(ConfigError, match=r"need 1 GPUs, the cluster has 0"):
        plan_workers(Workers(1, gpus=1), {"CPU": 8})
    assert plan_workers(Workers(), {"CPU": 8, "GPU": 4}).n_workers == 4
    assert plan_workers(Workers(), {"CPU": 8}).n_workers == 8


MEASURE = """
import json, sys
from pathlib import Path
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import read_info
from bioembed_ray.codebooks.fit_worker import Share, Worker
from bioembed_ray.codebooks.rule import LloydRule
def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(key)[2].split()[0]) << 10
folder, memory = sys.argv[1], int(sys.argv[2])
info = read_info(folder)
worker = Worker(Share(folder, info, 0, info.n_groups, memory), LloydRule(16), "cpu")
# The libraries' own memory: one pass over a single group.
Worker(Share(folder, info, 0, 1, 0), LloydRule(16), "cpu").check(None)
before = status("VmRSS:")
worker.check(None)
first = blocks.read_vectors(folder, "00000")[:16]
after = []
for _ in range(4):
    worker.step(first, None)
    after.append(status("VmRSS:") - before)
peak = status("VmHWM:") - before
worker.seed(worker.head().centre, 0)
worker.step(first, None)
print(json.dumps({"peak": peak, "after": after, "seeding": status("VmHWM:") - before}))
"""


def test_data_of_four_times_the_memory_allowed_fits_with_flat_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((200_000, 256), dtype=np.float32)
    fit = a_fit(tmp_path, 16)
    put_sample(fit, rows)
    allowed = rows.nbytes // 4
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "sample"), str(allowed)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["peak"] <= 1.5 * allowed
    assert found["after"][-1] <= found["after"][1] + (4 << 20)
    # Seeding reads its 32,768 rows, 34 MB, at once, as a fit of any size does.
    assert found["seeding"] <= allowed + (96 << 20) < rows.nbytes


def test_streamed_fit_on_ray_is_the_one_from_memory(
    fitted: dict[str, Any], frames: Path, tmp_path: Path
) -> None:
    fit = wanted(tmp_path / "cb")
    workers = Workers(2, cpus=CPUS, memory_bytes=0)
    fit_codebook(fit, fitted["parts"], workers=workers, stream=io.StringIO())
    assert sha_of(fit) == fitted["sha"]
