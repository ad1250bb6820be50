"""What is launched is valid: cluster.yaml, the job files, the entry points."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bioembed_ray.job_file import load_job

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements/lock.txt").read_text()
RAY_VERSION = re.search(r"^ray==(\S+)", LOCK, re.MULTILINE)[1]  # type: ignore[index]
EXAMPLES = sorted((ROOT / "jobs/examples").glob("*.yaml"))
ENTRY_POINTS = sorted((ROOT / "jobs").glob("*.py"))


def read_yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return read_yaml("cluster.yaml")


def check(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def check_nodes(cluster: dict[str, Any]) -> None:
    """Hold every node_config against EC2's own description of RunInstances."""
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for name, node in cluster["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        report = botocore.validate.ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    types = check(cluster)["available_node_types"]
    assert list(types) == ["head", "cpu_worker", "gpu_worker"]
    workers = [types["cpu_worker"], types["gpu_worker"]]
    assert [node["min_workers"] for node in workers] == [0, 0]
    assert sum(node["max_workers"] for node in workers) == cluster["max_workers"]


def test_ec2_accepts_every_node(cluster: dict[str, Any]) -> None:
    check_nodes(cluster)


def test_a_misspelt_top_level_key_is_refused(cluster: dict[str, Any]) -> None:
    cluster["max_worker"] = cluster.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="'max_worker' was unexpected"):
        check(cluster)


def test_a_misspelt_key_of_a_node_type_is_refused(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu_worker"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'min_worker' was unexpected"):
        check(cluster)


def test_a_misspelt_head_node_type_is_refused(cluster: dict[str, Any]) -> None:
    cluster["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="must be one of `available_node_types`"):
        check(cluster)


def test_a_misspelt_key_of_a_node_is_refused(cluster: dict[str, Any]) -> None:
    node = cluster["available_node_types"]["gpu_worker"]["node_config"]
    node["InstanceTyp"] = node.pop("InstanceType")
    with pytest.raises(AssertionError, match=r'gpu_worker: Unknown parameter .*"InstanceTyp"'):
        check_nodes(cluster)


def test_cluster_runs_the_ray_of_the_lock_and_installs_the_lock(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["image"] == f"rayproject/ray:{RAY_VERSION}-py311-gpu"
    (target, source) = next(iter(cluster["file_mounts"].items()))
    assert (ROOT / source / "lock.txt").is_file()
    assert any(f"{target}/lock.txt" in command for command in cluster["setup_commands"])


def test_lock_names_no_index_and_no_address() -> None:
    assert not re.search(r"://|--index|--extra|--find-links", LOCK)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_valid_job(path: Path) -> None:
    job = load_job(str(path))
    assert job.encoders


def test_examples_cover_every_known_encoder_and_ultrasound() -> None:
    jobs = {path.stem: load_job(str(path)) for path in EXAMPLES}
    assert set(jobs) == {"bats", "birds", "small_local", "wav2vec_tokens", "whales"}
    assert set(jobs["birds"].encoders) == {"beats", "efficientnet", "wav2vec2", "hubert", "ast"}
    assert jobs["bats"].input.time_expansion == 10


def test_every_line_of_a_command_in_an_example_names_a_file_that_exists() -> None:
    deployed = [path for path in (ROOT / "deploy").rglob("*.*") if path.suffix != ".pyc"]
    pages = [ROOT / "README.md", ROOT / "docs/schedules.md"]
    for path in [*EXAMPLES, ROOT / "cluster.yaml", *deployed, *pages]:
        found = r"\b(?:jobs|deploy)/[\w/-]+\.(?:py|yaml|service)\b|\bdeploy/Containerfile\b"
        for name in re.findall(found, path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name}: {name} is not there"


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=lambda path: path.stem)
def test_entry_point_is_its_command(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 15
    answer = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    # No file may be called tokenize.py: it would hide Python's own module.
    command = {"assign_tokens": "tokenize"}.get(path.stem, path.stem.replace("_", "-"))
    assert re.search(rf"^Usage: .*\b{command} ", answer.stdout), answer.stdout


def test_entry_point_passes_the_exit_code_of_a_usage_error_on(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "jobs/run.py"), str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2
    assert "none.yaml: no such job file" in answer.stderr


def test_job_stop_leaves_time_to_finish_shards() -> None:
    environment = read_yaml("jobs/runtime_env.yaml")["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
