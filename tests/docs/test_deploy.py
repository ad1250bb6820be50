"""What deploy/ holds is valid: manifests, image, the lab's cluster file, units of systemd."""

from __future__ import annotations

import configparser
import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bioembed_ray import cli
from tests.docs import manifest_schema

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RAY_VERSION = re.search(r"^ray==(\S+)", (ROOT / "requirements/lock.txt").read_text(), re.M)[1]  # type: ignore[index]
IMAGE_ROOT = "/home/ray/bioembed"
BASE = f"rayproject/ray:{RAY_VERSION}-py311-gpu"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))


MANIFESTS = [
    (path.name, number)
    for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))
    for number, _ in enumerate(manifests(path.name))
]


def cluster_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["rayClusterSpec"]


@pytest.fixture
def job() -> dict[str, Any]:
    [manifest] = manifests("rayjob.yaml")
    return manifest


@pytest.fixture
def cron() -> dict[str, Any]:
    [manifest] = manifests("cronjob.yaml")
    return manifest


@pytest.mark.parametrize(("name", "number"), MANIFESTS)
def test_kubernetes_and_kuberay_know_every_field(name: str, number: int) -> None:
    manifest_schema.check(manifests(name)[number])


# What is refused, and the field that is put, or taken away, for it.
GONE = object()
WORKERS = "spec.rayClusterSpec.workerGroupSpecs"
NIGHT = "spec.jobTemplate.spec"
MISTAKES = [
    ("rayjob.yaml", "spec: .*'backofLimit' was unexpected", "spec.backofLimit", 0),
    ("rayjob.yaml", "replicas: '0' is not of type 'integer'", f"{WORKERS}.0.replicas", "0"),
    ("rayjob.yaml", "'minReplicas' is a required property", f"{WORKERS}.0.minReplicas", GONE),
    ("rayjob.yaml", "num-cpus: 4 is not of", f"{WORKERS}.0.rayStartParams.num-cpus", 4),
    ("rayjob.yaml", "'toleration' was", f"{WORKERS}.1.template.spec.toleration", []),
    ("rayjob.yaml", "sizeLimit: '20GiB' does not match",
     f"{WORKERS}.1.template.spec.volumes.0.emptyDir.sizeLimit", "20GiB"),
    ("rayjob.yaml", "'Fast' is not one of",
     "spec.rayClusterSpec.autoscalerOptions.upscalingMode", "Fast"),
    ("rayjob.yaml", "no such kind", "kind", "Rayjob"),
    ("raycronjob.yaml", "'cron' was unexpected", "spec.cron", "0 2 * * *"),
    ("raycronjob.yaml", "'schedule' is a required property", "spec.schedule", GONE),
    ("raycronjob.yaml", "'concurrencyPolicy' was unexpected", "spec.concurrencyPolicy", "Forbid"),
    ("cronjob.yaml", "'schedules' was unexpected", "spec.schedules", "0 2 * * *"),
    ("cronjob.yaml", "'schedule' is a required property", "spec.schedule", GONE),
    ("cronjob.yaml", "'3' is not of type 'integer'", "spec.failedJobsHistoryLimit", "3"),
    ("cronjob.yaml", "values.0: '1' is not",
     f"{NIGHT}.podFailurePolicy.rules.0.onExitCodes.values.0", "1"),
    ("cronjob.yaml", "'arg' was unexpected", f"{NIGHT}.template.spec.containers.0.arg", []),
    ("accounts.yaml", "'verb' was unexpected", "rules.0.verb", ["get"]),
    ("accounts.yaml", "'verbs' is a required property", "rules.0.verbs", GONE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message", "field", "value"), MISTAKES)
def test_a_mistake_in_a_manifest_is_refused(
    name: str, message: str, field: str, value: object
) -> None:
    [manifest] = [one for one in manifests(name) if name != "accounts.yaml" or "rules" in one]
    *path, last = [int(step) if step.isdecimal() else step for step in field.split(".")]
    place: Any = manifest
    for step in path:
        place = place[step]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(jsonschema.ValidationError, match=message):
        manifest_schema.check(manifest)


def test_the_nightly_run_is_the_single_run(job: dict[str, Any]) -> None:
    [nightly] = manifests("raycronjob.yaml")
    assert nightly["spec"]["jobTemplate"] == job["spec"]


def test_the_run_starts_an_entry_point_on_the_ray_of_the_lock(job: dict[str, Any]) -> None:
    python, script, example = job["spec"]["entrypoint"].split()
    assert python == "python"
    for path in (script, example):
        assert (ROOT / path.removeprefix(f"{IMAGE_ROOT}/")).is_file(), path
    assert cluster_of(job["spec"])["rayVersion"] == RAY_VERSION


def test_workers_are_on_spot_nodes_from_none_up_and_the_head_is_not(job: dict[str, Any]) -> None:
    cluster = cluster_of(job["spec"])
    assert cluster["enableInTreeAutoscaling"] is True
    label = "eks.amazonaws.com/capacityType"
    assert cluster["headGroupSpec"]["template"]["spec"]["nodeSelector"][label] == "ON_DEMAND"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for group in groups.values():
        pod = group["template"]["spec"]
        assert pod["nodeSelector"][label] == "SPOT"
        assert (group["replicas"], group["minReplicas"]) == (0, 0) < (group["maxReplicas"],)
        tolerated = {toleration["key"] for toleration in pod["tolerations"]}
        resources = pod["containers"][0]["resources"]
        # The autoscaler reads limits, the scheduler requests.
        assert resources["limits"] == resources["requests"]
        assert ("nvidia.com/gpu" in tolerated) == ("nvidia.com/gpu" in resources["limits"])
    assert "nvidia.com/gpu" in groups["gpu-worker"]["template"]["spec"]["containers"][0][
        "resources"
    ]["limits"]  # fmt: skip


def test_a_pod_outlives_the_stopping_of_its_job(job: dict[str, Any]) -> None:
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in environment.values())
    wait_s = int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    submitted = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"]
    assert wait_s == int(submitted["RAY_JOB_STOP_WAIT_TIME_S"])
    for pod in ray_pods(job):
        assert pod["terminationGracePeriodSeconds"] > wait_s


def ray_pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(job["spec"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_every_pod_has_an_account_and_the_one_image(
    job: dict[str, Any], cron: dict[str, Any]
) -> None:
    accounts = {m["metadata"]["name"] for m in manifests("accounts.yaml") if "Account" in m["kind"]}
    pods = [*ray_pods(job), cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    assert {pod["serviceAccountName"] for pod in pods} == accounts
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert images == {f"registry.example.org/bioembed:{RAY_VERSION}"}
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", ())}
        assert volumes == mounted


def test_the_launcher_holds_its_role_and_nothing_more() -> None:
    of = {m["kind"]: m for m in manifests("accounts.yaml") if m["metadata"]["name"] != "bioembed"}
    binding = of["RoleBinding"]
    assert binding["roleRef"]["name"] == of["Role"]["metadata"]["name"]
    assert binding["roleRef"]["kind"] == "Role"
    assert [s["name"] for s in binding["subjects"]] == [of["ServiceAccount"]["metadata"]["name"]]


def test_the_cron_job_never_overlaps_and_reads_the_manifest_it_is_given(
    cron: dict[str, Any],
) -> None:
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    # A podFailurePolicy is refused with any other.
    assert pod["restartPolicy"] == "Never"
    [launcher] = pod["containers"]
    script = Path(launcher["command"][1])
    assert (ROOT / script.relative_to(IMAGE_ROOT)).is_file()
    manifest, *from_environment = launcher["args"]
    [volume] = pod["volumes"]
    created = re.search(
        r"create configmap (\S+) --from-file=(\S+)", (DEPLOY / "kuberay/cronjob.yaml").read_text()
    )
    assert created
    assert volume["configMap"]["name"] == created[1]
    assert manifest == f"{launcher['volumeMounts'][0]['mountPath']}/{Path(created[2]).name}"
    assert (ROOT / created[2]).is_file()
    assert from_environment == [f"$({variable['name']})" for variable in launcher["env"]]


@pytest.mark.parametrize("name", ["raycronjob.yaml", "cronjob.yaml"])
def test_schedules_are_cron(name: str) -> None:
    [manifest] = manifests(name)
    assert is_cron(manifest["spec"]["schedule"])


def is_cron(text: str) -> bool:
    """Return True for five fields of numbers, lists, ranges and steps within their limits."""
    limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    fields = text.split()
    return len(fields) == len(limits) and all(
        re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?", part)
        and all(low <= int(n) <= high for n in re.findall(r"(?<!/)\b\d+", part))
        for field, (low, high) in zip(fields, limits, strict=True)
        for part in field.split(",")
    )


def test_what_is_no_cron_is_told() -> None:
    assert is_cron("*/10 2-4 * 1,7 0")
    assert not any(map(is_cron, ["0 25 * * *", "0 2 * *", "@nightly", "0 2 0 * *", "0 2 * * mon"]))


# --- the image


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def copied() -> dict[str, str]:
    """Return source and target of every COPY, both relative to the repository and its place."""
    found = {}
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                found[source] = source if target == "./" else target
    return found


def is_sent(path: str) -> bool:
    """Say whether .dockerignore lets a path into the build: the last rule that matches wins."""
    sent = True
    parts = path.split("/")
    parents = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            rule = line.removeprefix("!")
            # `*` stops at a slash, `**/` is any folder or none.
            pattern = re.escape(rule).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, parent) for parent in parents):
                sent = line.startswith("!")
    return sent


def test_the_image_is_the_ray_and_the_python_of_the_lock() -> None:
    of = instructions()
    assert of[0] == ("FROM", BASE)
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text()
    assert ("USER", "ray") in of
    assert "root" not in [rest for word, rest in of if word == "USER"]
    assert not any("://" in rest for _, rest in of)
    installs = [rest for word, rest in of if word == "RUN" and "pip install" in rest]
    assert len(installs) == 1 and "-r requirements/lock.txt" in installs[0]
    # The lock is there before the packages, and the code comes after them.
    order = [word for word, rest in of if word == "RUN" or (word == "COPY" and "lock" in rest)]
    assert order == ["COPY", "RUN"]


def test_the_image_holds_what_its_pods_run(job: dict[str, Any], cron: dict[str, Any]) -> None:
    there = copied()
    for source, target in there.items():
        assert (ROOT / source).exists(), f"COPY {source}: no such path"
        assert source == target
    launcher = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    for path in (*job["spec"]["entrypoint"].split()[1:], launcher["command"][1]):
        own = path.removeprefix(f"{IMAGE_ROOT}/")
        assert any(own == source or own.startswith(f"{source}/") for source in there), own
    settings = dict(
        word.split("=") for key, rest in instructions() if key == "ENV" for word in rest.split()
    )
    assert settings["PYTHONPATH"] == dict(instructions())["WORKDIR"] == IMAGE_ROOT
    mounts = {
        mount["mountPath"]
        for pod in ray_pods(job)
        for container in pod["containers"]
        for mount in container.get("volumeMounts", ())
    }
    assert mounts == {settings["HF_HOME"]}


def test_what_the_image_copies_is_sent_and_nothing_else_is() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = {
        path for path in tracked if any(path == s or path.startswith(f"{s}/") for s in copied())
    }
    sent = {path for path in tracked if is_sent(path)}
    assert wanted <= sent
    assert all(fnmatch(path, "deploy/kuberay/*") for path in sent - wanted), sent - wanted


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", "demo_out/current.json", "demo_audio/a.wav",
        "bioembed_ray/__pycache__/run.pyc", "tests/conftest.py", "requirements/notes.txt", "x.wav",
    ],
)  # fmt: skip
def test_what_is_no_part_of_the_image_stays_out(path: str) -> None:
    assert not is_sent(path)


# --- the lab's cluster


@pytest.fixture
def lab() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "cluster-local.yaml").read_text())


def check(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_labs_cluster_and_every_machine_joins(lab: dict[str, Any]) -> None:
    [node] = check(lab)["available_node_types"].values()
    n_workers = len(lab["provider"]["worker_ips"])
    assert (node["min_workers"], node["max_workers"]) == (n_workers, n_workers)
    assert lab["min_workers"] == lab["max_workers"] == n_workers


def test_the_labs_cluster_is_set_up_as_the_one_on_aws(lab: dict[str, Any]) -> None:
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert lab["docker"]["image"] == BASE
    for key in ("setup_commands", "file_mounts", "head_start_ray_commands"):
        assert lab[key] == aws[key]
    assert lab["worker_start_ray_commands"] == aws["worker_start_ray_commands"]
    missing = set(aws["docker"]["run_options"]) - set(lab["docker"]["run_options"])
    assert missing == set()


def test_mistakes_in_the_labs_cluster_are_refused(lab: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="'idle_timeout' was unexpected"):
        check({**lab, "idle_timeout": 5})
    del lab["provider"]["head_ip"]
    with pytest.raises(click.ClickException):
        check(lab)


# --- systemd

UNITS = sorted((DEPLOY / "systemd").iterdir())
KNOWN = {
    "Unit": "Description Wants After",
    "Service": "Type User ExecStart SuccessExitStatus TimeoutStartSec TimeoutStopSec KillMode Nice "
    "CacheDirectory Environment EnvironmentFile LimitNOFILE NoNewPrivileges PrivateTmp ProtectSystem",
    "Timer": "OnCalendar Persistent RandomizedDelaySec",
    "Install": "WantedBy",
}


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string((DEPLOY / "systemd" / name).read_text())
    return found


def verify(folder: Path, edit: Callable[[str], str] = str) -> str:
    """Return what systemd itself says of the units, with the program put where one is."""
    for path in UNITS:
        text = path.read_text().replace("/opt/bioembed/.venv/bin/bioembed", "/bin/true")
        (folder / path.name).write_text(edit(text))
    answer = subprocess.run(
        ["systemd-analyze", "verify", *(str(folder / path.name) for path in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "\n".join(line for line in answer.stderr.splitlines() if "bioembed." in line)


def test_units_hold_known_keys_and_the_timer_starts_the_service() -> None:
    assert [path.name for path in UNITS] == ["bioembed.service", "bioembed.timer"]
    for path in UNITS:
        found = unit(path.name)
        for section in found.sections():
            assert set(found[section]) <= set(KNOWN[section].split())
    assert unit("bioembed.timer")["Timer"]["OnCalendar"] == "*-*-* 02:00:00"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_accepts_the_units_and_tells_mistakes(tmp_path: Path) -> None:
    assert verify(tmp_path) == ""
    assert "Unknown key" in verify(tmp_path, lambda text: text.replace("KillMode", "KilMode"))
    assert "calendar" in verify(tmp_path, lambda text: text.replace("02:00:00", "25:00:00"))


def test_the_service_runs_a_command_line_that_bioembed_takes() -> None:
    service = unit("bioembed.service")["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "bioembed"
    parse(arguments)
    # 4 is another run's, 130 a stop; the rest is worth a look.
    assert service["SuccessExitStatus"].split() == ["4", "130"]
    with pytest.raises(click.NoSuchOption):
        parse([*arguments, "--nightly"])


def parse(arguments: list[str]) -> click.Context:
    """Have click take a command line apart, and run nothing."""
    name, *rest = arguments
    return cli.commands.commands[name].make_context(name, rest)
