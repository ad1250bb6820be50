"""The actor of the stream that holds the encoders of a pool. Uses Ray."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from bioembed_ray.config import Job
from bioembed_ray.datasets import PlannedEncoder
from bioembed_ray.encoders.base import Encoder
from bioembed_ray.errors import BioembedError
from bioembed_ray.in_flight import share_of_all
from bioembed_ray.plan import Work
from bioembed_ray.pools import PoolPlan
from bioembed_ray.transport import unflatten
from bioembed_ray.work import Receipt, encode_shard

# How often an actor says how far it is.
TELL_S = 3.0


def load_codes(encoders: Sequence[PlannedEncoder], device: str) -> dict[str, Any]:
    """Return the centroids of every codebook applied to some encoders, by name."""
    from bioembed_ray.codebooks.card import read_codebook
    from bioembed_ray.codebooks.nearest import make_codes

    codes = {}
    for tokens in (t for e in encoders for output in e.outputs for t in output.tokens):
        codebook = read_codebook(tokens.folder)
        codes[tokens.name] = make_codes(codebook.centroids, codebook.metric, device)
    return codes


class EncodeActor:
    """Holds the encoders of a pool; takes decoded shards, puts their parts, passes receipts on."""

    def __init__(
        self,
        pool: PoolPlan,
        job: Job,
        in_flight: Any,
        part: tuple[int, int],
        is_trial: bool,
    ) -> None:
        import torch

        from bioembed_ray.encoders import registry

        torch.set_num_threads(pool.threads)
        self._device = "cuda" if pool.gpus else "cpu"
        self._pool, self._job, self._in_flight = pool, job, in_flight
        self._part, self._is_trial = part, is_trial
        self._told = 0.0
        self._busy = threading.Lock()
        self._encoders: list[tuple[PlannedEncoder, Encoder]] = []
        self._load_error: str | None = None
        for planned in pool.encoders:
            try:
                encoder = registry.load(
                    planned.name, planned.config, planned.checkpoint, self._device
                )
            # Whatever it is, the driver says it in one line: a constructor that raises reaches it
            # as pages of Ray's traceback.
            except Exception as error:  # noqa: BLE001
                text = " ".join(str(error).split())[:500]
                kind = "" if isinstance(error, BioembedError) else f"{type(error).__name__}: "
                self._load_error = f"{planned.name} cannot be loaded on a worker: {kind}{text}"
                break
            self._encoders.append((planned, encoder))
        self._codes = load_codes(pool.encoders, self._device)
        # What each encoder took in the last shard that all went through; equal before the first.
        self._took = [1.0] * len(pool.encoders)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the shard of a row."""
        import ray

        work: Work = pickle.loads(batch.column("work")[0].as_py())
        receipt: Receipt = pickle.loads(batch.column("receipt")[0].as_py())
        receipt.node = ray.get_runtime_context().get_node_id()
        if self._load_error is not None:
            receipt.load_error = self._load_error
        elif not (receipt.is_poisoned or receipt.failures or receipt.put_error):
            with self._busy:
                # Counted when it starts for real: a shard that only waits here is innocent.
                allowed = ray.get(self._in_flight.begin.remote(self._pool.name, work.shard.id))
            if allowed:
                self._encode(batch, work, receipt)
            else:
                receipt.is_poisoned = True
        done = pa.array([pickle.dumps(receipt)], pa.binary())
        pool, n_pools = self._part
        if pool == n_pools - 1:
            return pa.table({"receipt": done})
        return batch.set_column(batch.schema.get_field_index("receipt"), "receipt", done)

    def _encode(self, batch: pa.Table, work: Work, receipt: Receipt) -> None:
        flat = batch.column("waves").chunk(0).values.to_numpy(zero_copy_only=True)
        audios = unflatten(batch.column("index")[0].as_py(), flat)
        for number, (planned, encoder) in enumerate(self._encoders):
            encode_shard(
                work,
                audios,
                planned,
                encoder,
                self._device,
                self._job,
                receipt,
                self._busy,
                self._is_trial,
                self._codes,
                partial(self._tell, work.shard.id, number),
            )
            if receipt.failures or receipt.put_error:
                return
        took = [receipt.seconds.get(planned.name, 0.0) for planned, _ in self._encoders]
        if all(took):
            self._took = took

    def _tell(self, shard: str, number: int, share: float) -> None:
        """Say now and then how far a shard is."""
        if time.monotonic() - self._told < TELL_S:
            return
        self._told = time.monotonic()
        pool, n_pools = self._part
        in_pool = share_of_all(self._took, number, share)
        self._in_flight.tell.remote(shard, (pool + in_pool) / n_pools)
