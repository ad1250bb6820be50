"""The reading order of the README holds: it names every module, and imports only point upwards."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from bioembed_ray import config

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bioembed_ray"
# All that computes numbers is imported and tested without Ray.
MAY_IMPORT_RAY = {
    "cluster.py",
    "tasks.py",
    "encode_actor.py",
    "stream.py",
    "codebooks/fit.py",
    "codebooks/standing.py",
    "vqvae_loop.py",
    "vqvae_training.py",
    "cli.py",
}
# Six encoders' worth of imports: seconds, and hundreds of megabytes, in whatever process meets it.
MAY_IMPORT_AVEX = {"encoders/avex_models.py"}
MOST_LINES = 300
# The word that tells three ways of naming weights apart; people write "random" or a path.
NOT_WRITTEN_BY_PEOPLE = {"kind"}


def reading_order() -> list[str]:
    """Return the modules of the README's last list, the one place where their order is kept."""
    section = (ROOT / "README.md").read_text().partition("## Reading the code")[2]
    return re.findall(r"^([\w/]+\.py)\s", section, re.MULTILINE)


def modules() -> list[str]:
    found = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return sorted(name for name in found if not name.endswith("__init__.py"))


def sources() -> list[Path]:
    folders = ("bioembed_ray", "jobs", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Yield every dotted name that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imported(PACKAGE / module):
        root, _, rest = name.partition(".")
        if root == "bioembed_ray":
            parts = rest.split(".")
            # `from bioembed_ray.encoders.base import Facts` names a module and something in it.
            paths = ("/".join(parts[:end]) + ".py" for end in range(len(parts), 0, -1))
            found |= {path for path in paths if (PACKAGE / path).is_file()}
    return found


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_readme_lists_every_module_once_and_no_other() -> None:
    order = reading_order()
    assert len(order) == len(set(order))
    assert sorted(order) == modules()


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_modules_above_it(module: str) -> None:
    order = reading_order()
    assert module in order, "the README's list does not name it"
    above = set(order[: order.index(module)])
    assert own_imports(module) <= above, f"move it below {sorted(own_imports(module) - above)}"


def test_packages_themselves_import_nothing_of_ours() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        # `open` imports what it needs when it is called.
        of_ours = {name for name in imported(path) if name.startswith("bioembed_ray")}
        assert of_ours <= {
            "bioembed_ray.results.open_output",
            "bioembed_ray.results.Results",
        }, path
    heavy = "import bioembed_ray, sys; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_ray_is_imported_by_few_modules_that_say_so() -> None:
    assert {m for m in modules() if "ray" in roots(PACKAGE / m)} <= MAY_IMPORT_RAY


@pytest.mark.parametrize(
    "module",
    ["codebooks.gather", "encode_actor", "in_flight", "probing", "stream", "vqvae_training"],
)
def test_processes_that_compute_nothing_import_no_torch(module: str) -> None:
    # Of these modules are the tasks and small actors of a run; each would pay seconds for it.
    code = f"import sys, bioembed_ray.{module}; print({{'torch', 'pandas', 'sklearn'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_driver_that_fits_nothing_imports_no_torch() -> None:
    code = "import sys, bioembed_ray.cli, bioembed_ray.run; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_avex_is_imported_by_its_loader_alone() -> None:
    assert {m for m in modules() if "avex" in roots(PACKAGE / m)} <= MAY_IMPORT_AVEX


def test_no_file_is_named_like_a_module_of_the_standard_library() -> None:
    names = {path.stem for path in sources()} - {"__init__", "__main__"}
    assert not names & sys.stdlib_module_names


def test_no_file_is_longer_than_one_sitting() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()
    }
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_every_key_of_the_job_file_is_explained() -> None:
    tables = [
        value
        for value in vars(config).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
    ]
    assert config.Job in tables
    unexplained = [
        f"{table.__name__}.{name}"
        for table in tables
        for name, field in table.model_fields.items()
        if name not in NOT_WRITTEN_BY_PEOPLE and not field.description
    ]
    assert unexplained == []
