"""A Ray cluster of several machines on this one: raylets that come and go."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT

# Ray gives a raylet 30 s to start, which a busy machine may not.
STARTS = 4


def _patiently(start: Callable[[], Any]) -> Any:
    for attempt in range(STARTS):
        try:
            return start()
        # Ray raises this very class.
        except Exception as error:
            if attempt == STARTS - 1 or "timed out during startup" not in str(error):
                raise
    raise AssertionError


class Machines:
    """A head without cores, and machines of one core each that come and go; what they encode is logged."""

    def __init__(self, cluster: Any, log: Path, release: Path) -> None:
        self.cluster, self._log, self._release = cluster, log, release
        self.nodes: list[Any] = []

    def add(self, n_cpus: int = 1) -> Any:
        """Start one more machine."""
        self.nodes.append(_patiently(lambda: self.cluster.add_node(num_cpus=n_cpus)))
        return self.nodes[-1]

    def kill(self, node: Any) -> None:
        """SIGKILL to the raylet and all it holds, as when the power goes."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def encoded(self) -> Counter[str]:
        """Return how many windows each machine was given, by its id."""
        counts: Counter[str] = Counter()
        for line in self._log.read_text().splitlines() if self._log.exists() else ():
            node, n_windows = line.split()
            counts[node] += int(n_windows)
        return counts

    def release(self) -> None:
        """Let the encoders run at full speed from now on."""
        self._release.touch()


@contextlib.contextmanager
def machines_up(folder: Path, **environment: str) -> Iterator[Machines]:
    """Run a head; its workers, and those of machines that are added, have this environment."""
    from ray.cluster_utils import Cluster

    sockets = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    log, release = folder / "log", folder / "release"
    told = {"BIOEMBED_TESTS_LOG": str(log), "BIOEMBED_TESTS_RELEASE": str(release)}
    with pytest.MonkeyPatch.context() as patch:
        # The raylets hand their environment down to their workers.
        for name, value in {"PYTHONPATH": str(ROOT), **told, **environment}.items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": sockets}
        cluster = _patiently(
            lambda: Cluster(initialize_head=True, connect=False, head_node_args=head)
        )
        yield Machines(cluster, log, release)
        cluster.shutdown()
    shutil.rmtree(sockets, ignore_errors=True)
