"""docs/schedules.md: its exit codes are ours, its commands are taken, its DAG and asset do as it says."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bioembed_ray import cli, errors
from tests.docs.test_deploy import is_cron

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/schedules.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CRONTAB = re.findall(r"```crontab\n(.*?)\n```", PAGE, re.DOTALL)
HOME = "/opt/bioembed"


def submit_parser() -> Any:
    spec = importlib.util.spec_from_file_location("submit", ROOT / "deploy/submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the checkout: its python writes down how it was called, and ends with $CODE."""
    program = tmp_path / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > called\nexit "$CODE"\n')
    program.chmod(0o755)
    monkeypatch.setenv("CODE", "0")
    return tmp_path


def run_snippet(number: int, home: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "snippet"}
    code = PYTHON[number]
    assert HOME in code
    exec(compile(code.replace(HOME, str(home)), f"snippet {number}", "exec"), names)
    return names


def check_called(home: Path) -> None:
    """Hold the command line that was run against the parser of the script that it names."""
    script, *arguments = (home / "called").read_text().splitlines()
    assert script == "deploy/submit.py"
    given = submit_parser().parse_args(arguments)
    assert given.command[0] == "python"
    assert all((ROOT / path).is_file() for path in given.command[1:])


def test_exit_codes_are_those_of_the_errors() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (\w+)", PAGE, re.MULTILINE))
    codes = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.BioembedError)
    }
    assert {int(code) for code in table} == codes | {0, 130}
    assert "sys.exit(130)" in (ROOT / "bioembed_ray/cli.py").read_text()


def test_the_crontab_lines_are_cron_and_their_commands_are_taken() -> None:
    assert len(CRONTAB) == 2
    here, submitted = CRONTAB
    for line in CRONTAB:
        assert is_cron(" ".join(line.split()[:5]))
        # cron ends a command at a percent sign.
        assert "%" not in line
    command = here.partition("&& ")[2].partition(" >>")[0]
    program, name, *rest = shlex.split(command)
    assert program.endswith("/bioembed")
    cli.commands.commands[name].make_context(name, rest)
    _, script, *arguments = shlex.split(submitted.partition("&& ")[2])
    assert script == "deploy/submit.py"
    assert submit_parser().parse_args(arguments).command[1] == "jobs/run.py"


class Skipped(Exception):
    """As airflow.sdk.exceptions.AirflowSkipException."""


class Bash:
    """BashOperator as Airflow documents it: bash -c, and one exit code that skips."""

    made: list[Bash]

    def __init__(self, *, task_id: str, bash_command: str, skip_on_exit_code: int = 99) -> None:
        self.task_id, self.command, self.skip = task_id, bash_command, skip_on_exit_code
        self.made.append(self)

    def execute(self) -> None:
        code = subprocess.run(["bash", "-c", self.command]).returncode
        if code == self.skip:
            raise Skipped(code)
        if code:
            raise RuntimeError(f"exit code {code}")


class Dag:
    """As airflow.sdk.DAG, as far as a `with` goes."""

    def __init__(self, dag_id: str, **settings: Any) -> None:
        self.settings = settings

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *error: object) -> None:
        return None


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, Any]:
    Bash.made = []
    for name, content in {
        "airflow": {},
        "airflow.sdk": {"DAG": Dag},
        "airflow.providers": {},
        "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.bash": {"BashOperator": Bash},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return run_snippet(0, home)


def test_airflow_runs_one_night_at_a_time(airflow: dict[str, Any], home: Path) -> None:
    settings = airflow["dag"].settings
    assert is_cron(settings["schedule"])
    assert (settings["catchup"], settings["max_active_runs"]) == (False, 1)
    [embed] = Bash.made
    embed.execute()
    check_called(home)


def test_airflow_skips_on_4_and_fails_on_the_others(
    airflow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    [embed] = Bash.made
    monkeypatch.setenv("CODE", str(errors.LockedError.exit_code))
    with pytest.raises(Skipped):
        embed.execute()
    for code in ("1", "2", "3", "130"):
        monkeypatch.setenv("CODE", code)
        with pytest.raises(RuntimeError, match=f"exit code {code}"):
            embed.execute()


class Failure(Exception):
    """As dagster.Failure."""

    def __init__(self, description: str, allow_retries: bool = True) -> None:
        super().__init__(description)
        self.allow_retries = allow_retries


@pytest.fixture
def dagster(monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, Any]:
    module = ModuleType("dagster")
    vars(module).update(
        AssetExecutionContext=object,
        Failure=Failure,
        MaterializeResult=lambda: "materialised",
        Definitions=SimpleNamespace,
        ScheduleDefinition=SimpleNamespace,
        # An asset whose output is required may not end without one.
        asset=lambda *, output_required: (
            lambda body: SimpleNamespace(body=body, output_required=output_required)
        ),
    )
    monkeypatch.setitem(sys.modules, "dagster", module)
    return run_snippet(1, home)


def materialize(dagster: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what the asset yields, and what it logs."""
    said: list[str] = []
    context = SimpleNamespace(log=SimpleNamespace(info=said.append))
    return list(dagster["embeddings"].body(context)), said


def test_dagster_materialises_on_0(dagster: dict[str, Any], home: Path) -> None:
    assert materialize(dagster) == (["materialised"], [])
    check_called(home)
    [schedule] = dagster["defs"].schedules
    assert is_cron(schedule.cron_schedule)
    assert schedule.target == dagster["defs"].assets == [dagster["embeddings"]]


def test_dagster_skips_on_4_and_fails_on_the_others(
    dagster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dagster["embeddings"].output_required is False
    monkeypatch.setenv("CODE", str(errors.LockedError.exit_code))
    assert materialize(dagster) == ([], ["another run holds the output"])
    for code, may_try_again in (("1", True), ("2", False), ("3", True)):
        monkeypatch.setenv("CODE", code)
        with pytest.raises(Failure, match=f"exit code {code}") as raised:
            materialize(dagster)
        assert raised.value.allow_retries is may_try_again


def test_dagster_ends_the_submission_when_it_is_terminated(
    dagster: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".venv/bin/python").write_text(
        "#!/bin/sh\ntrap 'touch terminated; exit 130' TERM\ntouch started\nsleep 30 & wait\n"
    )
    real = subprocess.Popen.wait

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not (home / "terminated").exists() and not interrupted:
            while not (home / "started").exists():
                os.sched_yield()
            interrupted.append(process.pid)
            raise KeyboardInterrupt
        return real(process, timeout)

    interrupted: list[int] = []
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        materialize(dagster)
    for _ in range(200):
        if (home / "terminated").exists():
            break
        subprocess.run(["sleep", "0.05"])
    assert (home / "terminated").exists()
