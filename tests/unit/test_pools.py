"""How many actors a pool begins with, how far it grows, and what they set aside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bioembed_ray.config import PoolConfig
from bioembed_ray.errors import ConfigError
from bioembed_ray.pools import plan_pools

GB = 2**30


def plan(pools: dict[str, dict[str, Any]], resources: dict[str, float], n_shards: int) -> list[Any]:
    """Plan pools with one encoder each."""
    job = SimpleNamespace(pools={name: PoolConfig(**config) for name, config in pools.items()})
    encoders = [SimpleNamespace(config=SimpleNamespace(pool=name)) for name in pools]
    return plan_pools(job, encoders, resources, n_shards)  # type: ignore[arg-type]


def test_an_automatic_pool_begins_with_what_there_is_and_may_grow_to_one_actor_per_shard() -> None:
    [pool] = plan({"default": {}}, {"CPU": 8, "memory": 64 * GB}, 100)
    assert (pool.n_actors, pool.most_actors) == (8, 100)
    [pool] = plan({"default": {}}, {"CPU": 8, "GPU": 2, "memory": 64 * GB}, 100)
    assert (pool.n_actors, pool.most_actors, pool.gpus) == (2, 100, 1)
    # Ray counts GPUs; what memory goes with one is the machine's affair.
    assert pool.memory == 0


def test_a_pool_of_a_given_size_stays_so() -> None:
    [pool] = plan({"default": {"actors": 3}}, {"CPU": 8, "memory": 64 * GB}, 100)
    assert (pool.n_actors, pool.most_actors, pool.memory) == (3, 3, 0)


def test_few_shards_need_few_actors() -> None:
    [pool] = plan({"default": {}}, {"CPU": 8, "memory": 64 * GB}, 2)
    assert (pool.n_actors, pool.most_actors) == (2, 2)


def test_where_memory_is_short_no_actor_beyond_it_fits() -> None:
    resources = {"CPU": 64, "memory": 20 * GB}
    [pool] = plan({"default": {}}, resources, 100)
    # 1.9 GB each, of four fifths of 20 GB.
    assert pool.n_actors == 8
    n_by_cpus = int(resources["CPU"] / pool.cpus)
    n_by_memory = int(resources["memory"] / pool.memory)
    assert n_by_cpus > 50 and pool.n_actors <= n_by_memory <= 10


@pytest.mark.parametrize("memory", [0.5 * GB, 3 * GB, 200 * GB])
@pytest.mark.parametrize("n_pools", [1, 3])
def test_all_that_are_planned_fit(memory: float, n_pools: int) -> None:
    pools = plan({str(n): {} for n in range(n_pools)}, {"CPU": 16, "memory": memory}, 100)
    assert sum(pool.memory * pool.n_actors for pool in pools) <= memory
    assert sum(pool.cpus * pool.n_actors for pool in pools) <= 16


def test_pools_that_need_more_than_there_is_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pools \(default: 9 × 0.8 cpus\) need 7.4 cpus"):
        plan({"default": {"actors": 9}}, {"CPU": 4, "memory": 64 * GB}, 100)
