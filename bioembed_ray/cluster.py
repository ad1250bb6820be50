"""The Ray cluster: joining it, and what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator

from bioembed_ray.errors import BioembedError, ConfigError
from bioembed_ray.store.stores import OPTIONS_VARIABLE, announced

# How long a cluster's head may take to accept a connection.
ANSWER_S = 10.0
# A busy machine may need more than the half minute that Ray grants itself.
STARTS = 3


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local one.

    Raises:
        ConfigError: the cluster cannot be reached, or workers of a Ray that runs in this process
            already would not hear of the job's storage options.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Else the core prints a warning about every pool that nobody can act on.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        _check_told()
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        check_address(address)
    try:
        _start(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"RAY_ADDRESS={address}: cannot join the cluster ({text})") from error
    except OSError as error:
        raise ConfigError(
            f"Ray cannot put its files below {os.environ.get('TMPDIR', tempfile.gettempdir())} "
            f"({str(error)[:200]}); set TMPDIR to a short path that can be written"
        ) from None


def _start(address: str | None) -> None:
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            # Without an address Ray would join whatever a stale file in /tmp names.
            with _quiet_stderr():
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Only where there are any: workers with an environment of their own start later.
                    runtime_env={"env_vars": announced()} if announced() else None,
                )
            return
        # Ray gives its processes 30 s to start, and raises this very class when they take longer.
        except Exception as error:
            if type(error) is not Exception:
                raise
            ray.shutdown()
            if attempt == STARTS:
                text = " ".join(str(error).split())[:100]
                raise BioembedError(
                    f"Ray did not start in {STARTS} attempts ({text}); this machine is busy: run again later"
                ) from error


def _check_told() -> None:
    import ray

    told: dict[str, str] = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    if told.get(OPTIONS_VARIABLE) != announced().get(OPTIONS_VARIABLE):
        raise ConfigError(
            "storage: Ray runs in this process already, and its workers do not know these options; "
            "call ray.shutdown() first"
        )


def check_address(address: str) -> None:
    """Raise one clear error where nobody listens; Ray would try for minutes, and then crash.

    Raises:
        ConfigError: no answer.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        # "auto" and ray://, which Ray gives up on in time.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({error}); start it, or unset RAY_ADDRESS "
            f"to work on this machine alone"
        ) from None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what Ray's core prints while it starts; what goes wrong is raised."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def disconnect() -> None:
    """Leave the cluster; a local one ends with it."""
    import ray

    ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has, or may grow to: CPU, GPU, memory in bytes."""
    import ray

    found: dict[str, float] = dict(ray.cluster_resources())
    # An autoscaling cluster starts its nodes on demand, and may have none of them yet.
    limits = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    for kind, most in limits.items():
        found[kind] = max(found.get(kind, 0.0), float(most))
    return found
