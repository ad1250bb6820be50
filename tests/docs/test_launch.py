"""The two programs of deploy/ that start runs elsewhere, each against a server that it really asks.

`launch_rayjob.py` meets an API server of Kubernetes, `submit.py` Ray's own client and a job server.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.docs import manifest_schema

ROOT = Path(__file__).parents[2]
Answer = tuple[int, Any]


@dataclass
class Server:
    """A server on the loopback address: what it was asked, and what it answers."""

    answer: Callable[[str, str, Any], Answer]
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, str, Any], Answer]], Server]]:
    """Start servers that answer by a function of method, path and body."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str, str, Any], Answer]) -> Server:
        known = Server(answer)

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_json = self.headers.get("Content-Type") == "application/json"
                body = json.loads(raw) if raw and is_json else raw or None
                known.asked.append((self.command, self.path, body))
                known.tokens.add(self.headers.get("Authorization"))
                status, content = known.answer(self.command, self.path, body)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            # The names are http.server's.
            do_GET = do_POST = do_PUT = reply  # noqa: N815

            def log_message(self, *words: object) -> None:
                return None

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        known.url = f"http://127.0.0.1:{server.server_address[1]}"
        return known

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def load(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- Kubernetes

launcher = load("deploy/kuberay/launch_rayjob.py")
MANIFEST = yaml.safe_load((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
JOBS = "/apis/ray.io/v1/namespaces/lab/rayjobs"
NAME = "bioembed-nightly-29384920"


def ended(state: str, job: str, message: str = "") -> dict[str, Any]:
    return {"status": {"jobDeploymentStatus": state, "jobStatus": job, "message": message}}


RUNNING = ended("Running", "RUNNING")
DONE = ended("Complete", "SUCCEEDED", "Job finished successfully.")


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("lab\n")
    return tmp_path


def launch(server: Server, account: Path, patience_s: float = 5.0) -> int:
    known = launcher.Server(server.url, account, pause_s=0.01, patience_s=patience_s)
    return launcher.launch(known, MANIFEST, NAME, "uid-1")


def answers(*states: Any, created: Answer = (201, {})) -> Callable[[str, str, Any], Answer]:
    """Answer POST with `created`, and GET with one state after the other, the last for ever."""
    left = list(states)

    def answer(method: str, path: str, body: Any) -> Answer:
        if method == "POST":
            return created
        state = left.pop(0) if len(left) > 1 else left[0]
        return state if isinstance(state, tuple) else (200, state)

    return answer


def test_a_ray_job_is_made_waited_for_and_done(serve: Any, account: Path) -> None:
    server = serve(answers({}, RUNNING, RUNNING, DONE))
    assert launch(server, account) == 0
    assert [(method, path) for method, path, _ in server.asked] == [
        ("POST", JOBS),
        *[("GET", f"{JOBS}/{NAME}")] * 4,
    ]
    assert server.tokens == {"Bearer secret"}
    made = server.asked[0][2]
    manifest_schema.check(made)
    assert made["spec"] == MANIFEST["spec"]
    assert made["metadata"]["name"] == NAME and "generateName" not in made["metadata"]
    # The controller manager removes it with the night's Job.
    [owner] = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": NAME, "uid": "uid-1"}


def test_the_role_allows_what_the_launcher_asks_and_no_more(serve: Any, account: Path) -> None:
    server = serve(answers(DONE))
    launch(server, account)
    verbs = {{"POST": "create", "GET": "get"}[method] for method, _, _ in server.asked}
    accounts = yaml.safe_load_all((ROOT / "deploy/kuberay/accounts.yaml").read_text())
    [role] = [one for one in accounts if one["kind"] == "Role"]
    [rule] = role["rules"]
    assert set(rule["verbs"]) == verbs
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended("Failed", "FAILED", "Job entrypoint command failed with exit code 4, last"), 0),
        (ended("Failed", "FAILED", "Job entrypoint command failed with exit code 1, last"), 1),
        (ended("Failed", "FAILED", "Job entrypoint command failed with exit code 40"), 1),
        (ended("Failed", "", "DeadlineExceeded"), 1),
        (ended("Complete", "STOPPED", "Job was intentionally stopped."), 1),
    ],
)
def test_the_launcher_ends_as_the_run_ended(
    end: dict[str, Any], code: int, serve: Any, account: Path
) -> None:
    assert launch(serve(answers(RUNNING, end)), account) == code


def test_a_second_pod_waits_for_the_run_of_the_first(serve: Any, account: Path) -> None:
    server = serve(answers(RUNNING, DONE, created=(409, {"reason": "AlreadyExists"})))
    assert launch(server, account) == 0


def test_a_refusal_ends_the_launcher_at_once(
    serve: Any, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(answers(DONE, created=(403, {"message": "rayjobs is forbidden"})))
    assert launch(server, account) == 1
    assert len(server.asked) == 1
    assert "rayjobs is forbidden" in capsys.readouterr().err
    gone = serve(answers(RUNNING, (404, {"message": "not found"})))
    assert launch(gone, account) == 1


def test_an_api_server_that_restarts_is_waited_for(serve: Any, account: Path) -> None:
    server = serve(answers((503, {}), (429, {}), RUNNING, (500, {}), DONE))
    assert launch(server, account) == 0


def test_an_api_server_that_is_gone_leaves_it_to_another_pod(account: Path) -> None:
    gone = Server(lambda *asked: (200, {}), url="http://127.0.0.1:9")
    assert launch(gone, account, patience_s=0.05) == 75
    policy = yaml.safe_load((ROOT / "deploy/kuberay/cronjob.yaml").read_text())["spec"][
        "jobTemplate"
    ]["spec"]["podFailurePolicy"]
    final = [rule for rule in policy["rules"] if rule["action"] == "FailJob"]
    assert [rule["onExitCodes"]["values"] for rule in final] == [[launcher.FAILED]]


# --- Ray's job server

SUBMIT = [sys.executable, str(ROOT / "deploy/submit.py")]


class JobServer:
    """What `ray.job_submission` asks of a head, for one job that goes through given states."""

    def __init__(self, *states: dict[str, Any], stopped: dict[str, Any] | None = None) -> None:
        self.states, self.stopped = list(states), stopped
        self.submitted: dict[str, Any] = {}
        self.stops = 0

    def __call__(self, method: str, path: str, body: Any) -> Answer:
        if path == "/api/version":
            return 200, {
                "version": "4",
                "ray_version": "2.60.0",
                "ray_commit": "",
                "session_name": "",
            }
        if path.startswith("/api/packages/"):
            return 200, {}
        if (method, path) == ("POST", "/api/jobs/"):
            self.submitted = body
            return 200, {"job_id": "raysubmit_1", "submission_id": "raysubmit_1"}
        if path.endswith("/stop"):
            self.stops += 1
            self.states = [self.stopped or {}]
            return 200, {"stopped": True}
        if path.endswith("/logs"):
            return 200, {"logs": "planned\n" if len(self.states) > 1 else "planned\nembedded\n"}
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return 200, {
            "type": "SUBMISSION",
            "entrypoint": "",
            "submission_id": "raysubmit_1",
            **state,
        }


WORKING = {"status": "RUNNING"}


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], int]:
    """Submit in this process, without long pauses."""
    module = load("deploy/submit.py")
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    (tmp_path / "small.py").write_text("")
    return lambda server: module.main(arguments(server, tmp_path))


def arguments(server: Server, working_dir: Path) -> list[str]:
    where = ["--address", server.url, "--working-dir", str(working_dir)]
    return [*where, "--", "python", "jobs/run.py", "a job.yaml"]


def start(server: Server, working_dir: Path) -> subprocess.Popen[str]:
    (working_dir / "small.py").write_text("")
    return subprocess.Popen(
        [*SUBMIT, *arguments(server, working_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 4}, 4),
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": -9}, 1),
        ({"status": "FAILED", "message": "the head died"}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_a_submission_ends_with_the_drivers_own_code_and_shows_its_log_once(
    end: dict[str, Any], code: int, serve: Any, submit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobServer(WORKING, WORKING, end)
    assert submit(serve(job)) == code
    said = capsys.readouterr()
    assert said.out == "planned\nembedded\n"
    assert end["status"] in said.err and end.get("message", "") in said.err
    assert job.submitted["entrypoint"] == "python jobs/run.py 'a job.yaml'"
    environment = job.submitted["runtime_env"]
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30"
    assert environment["working_dir"].startswith("gcs://")
    assert job.stops == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_submission_that_is_stopped_stops_its_job(
    number: signal.Signals, serve: Any, tmp_path: Path
) -> None:
    job = JobServer(WORKING, WORKING, stopped={"status": "STOPPED"})
    job.states = [WORKING]
    server = serve(job)
    process = start(server, tmp_path)
    until = time.monotonic() + 60
    while not any(path.endswith("/logs") for _, path, _ in server.asked):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert job.stops == 1


def test_a_head_that_is_not_there_is_one_line(
    submit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = Server(lambda *asked: (200, {}), url="http://127.0.0.1:9")
    assert submit(nobody) == 1
    assert capsys.readouterr().err == (
        "error: Failed to connect to Ray at address: http://127.0.0.1:9.\n"
    )


def test_a_head_that_is_silent_for_a_while_is_waited_for(serve: Any, submit: Any) -> None:
    job = JobServer(WORKING, {"status": "SUCCEEDED"})
    n_asked = 0

    def sometimes(method: str, path: str, body: Any) -> Answer:
        nonlocal n_asked
        n_asked += path == "/api/jobs/raysubmit_1"
        if path == "/api/jobs/raysubmit_1" and n_asked < 3:
            return 500, {}
        return job(method, path, body)

    assert submit(serve(sometimes)) == 0
    assert n_asked > 3


def test_a_head_that_stays_silent_is_given_up(
    serve: Any, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JobServer(WORKING)
    monkeypatch.setattr(sys.modules["submit"], "PATIENCE_S", 0.05)

    def lost(method: str, path: str, body: Any) -> Answer:
        return (500, {}) if path == "/api/jobs/raysubmit_1" else job(method, path, body)

    assert submit(serve(lost)) == 1
