"""Whether anybody answers where RAY_ADDRESS points."""

from __future__ import annotations

import socket

import pytest

from bioembed_ray.cluster import check_address
from bioembed_ray.errors import ConfigError


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "no-such-host.invalid"])
def test_an_address_where_nobody_listens_is_one_line_at_once(host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{host}:{free.getsockname()[1]}"
    with pytest.raises(ConfigError) as caught:
        check_address(address)
    assert str(caught.value).startswith(f"RAY_ADDRESS={address}: cannot join the cluster (")
    assert "unset RAY_ADDRESS" in str(caught.value)


def test_an_address_where_somebody_listens_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1", "http://a:1/b"])
def test_other_kinds_of_address_are_left_to_ray(address: str) -> None:
    check_address(address)
