"""The fit sample: who is in it depends on nothing but who and where frames are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bioembed_ray import storage
from bioembed_ray.codebooks import blocks
from bioembed_ray.codebooks.blocks import SampleInfo
from bioembed_ray.codebooks.frame_parts import Rows, in_order, read_part, stack_rows
from bioembed_ray.codebooks.gather import gather_sample
from bioembed_ray.codebooks.sample import (
    SampleRule,
    frame_hashes,
    is_held_out,
    merge,
    mix,
    order_keys,
    quotas,
    smallest,
    track_digest,
)
from bioembed_ray.errors import InputError
from tests.unit.kmeans_fixtures import local_spread, put_part, put_parts


def hashes_of(n: int, recording: str = "a.wav", channel: int = 0) -> np.ndarray:
    zeros = np.zeros(n, np.int16)
    return frame_hashes([recording], zeros, zeros + channel, np.arange(n) * 320, zeros)


def whole(folder: Path, info: SampleInfo) -> Rows:
    rows = stack_rows(
        [blocks.read_rows(str(folder), blocks.group_name(g)) for g in range(info.n_groups)]
    )
    assert rows is not None
    return rows


def test_mixing_is_splitmix64() -> None:
    # The first outputs of the reference implementation from state 0 (prng.di.unimi.it/splitmix64.c).
    state = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in mix(state)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_hash_of_a_frame_is_what_whole_numbers_give_and_never_changes() -> None:
    def splitmix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    track = int.from_bytes(hashlib.blake2b(b"1\0a/b.wav", digest_size=8).digest(), "little")
    assert track_digest("a/b.wav", 1) == track == 2918387179442520661
    zero = np.zeros(1, np.int64)
    found = int(frame_hashes(["a/b.wav"], zero, zero + 1, zero + 320, zero + 2)[0])
    assert found == splitmix(track ^ splitmix((splitmix(320) + 2) % 2**64)) == 6290525906547265039


def test_hashes_differ_by_recording_channel_position_and_patch() -> None:
    n = 2000
    zeros = np.zeros(n, np.int64)
    position = np.arange(n) * 320
    every = [
        frame_hashes([name], zeros, zeros + channel, position, zeros + patch)
        for name in ("a.wav", "b.wav")
        for channel in (0, 1)
        for patch in (0, 1, 7)
    ]
    assert len(np.unique(np.concatenate(every))) == 12 * n


def test_hashes_are_uniform_and_draws_independent() -> None:
    hashes = hashes_of(40_000)
    counts = np.histogram(hashes.astype(float) / 2**64, bins=64, range=(0, 1))[0]
    # Chi-square with 63 degrees of freedom: above 115 once in 10,000.
    assert ((counts - 625) ** 2 / 625).sum() < 115
    held = is_held_out(hashes, 0.05)
    assert abs(held.mean() - 0.05) < 0.004
    low = hashes < np.median(hashes)
    assert abs(held[low].mean() - held[~low].mean()) < 0.01
    assert abs(np.corrcoef(hashes.astype(float), order_keys(hashes).astype(float))[0, 1]) < 0.02


@pytest.mark.parametrize("n", [0, 1, 7, 100, 5000])
def test_smallest_of_partial_samples_in_any_order_are_the_smallest_of_all(n: int) -> None:
    rng = np.random.default_rng(n)
    hashes = rng.integers(0, 3000, 4000).astype(np.uint64)  # with duplicates
    expected = np.sort(np.unique(hashes))[:n]
    for _ in range(5):
        shuffled = rng.permutation(hashes)
        parts = np.split(shuffled, np.sort(rng.integers(0, len(shuffled), 6)))
        assert np.array_equal(merge([smallest(part, n) for part in parts], n), expected)


def test_quotas_are_equal_shares_and_what_is_left_goes_to_those_that_have_more() -> None:
    assert quotas({"b": 100, "a": 100, "c": 100}, 31) == {"a": 11, "b": 10, "c": 10}
    assert quotas({"a": 5, "b": 0, "c": 100}, 60) == {"a": 5, "b": 0, "c": 55}
    assert quotas({"a": 5, "b": 3}, 60) == {"a": 5, "b": 3}
    assert quotas({}, 10) == {}
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = {str(i): int(c) for i, c in enumerate(rng.integers(0, 50, rng.integers(1, 9)))}
        wanted = int(rng.integers(0, 200))
        given = quotas(counts, wanted)
        assert sum(given.values()) == min(wanted, sum(counts.values()))
        assert all(given[name] <= counts[name] for name in counts)
        most = max(given.values())
        assert all(given[name] >= most - 1 for name in counts if given[name] < counts[name])


def test_sample_is_the_smallest_hashes_and_carries_each_frames_own_vector(tmp_path: Path) -> None:
    # A vector says which frame it is of.
    n = 3000
    vectors = np.stack([np.arange(n) // 250, np.arange(n) % 250], axis=1).astype(np.float32)
    parts = put_parts(tmp_path / "frames", vectors, 5)
    info = gather_sample(
        str(tmp_path / "s"), parts, SampleRule(700, held_out=0.1), None, local_spread
    )
    rows = whole(tmp_path / "s", info)
    names = [f"r{i:04d}.wav" for i in range(12)]
    zeros = np.zeros(n, np.int64)
    every = frame_hashes(names, np.arange(n) // 250, zeros, np.arange(n) % 250 * 320, zeros)
    held = is_held_out(every, 0.1)
    expected = np.sort(every[~held])[:700]
    assert np.array_equal(np.sort(rows.hashes), expected)
    assert np.all(np.diff(order_keys(rows.hashes).astype(object)) > 0)
    assert rows.vectors is not None
    assert [rows.names[r] for r in rows.recording] == [names[int(v)] for v in rows.vectors[:, 0]]
    assert np.array_equal(rows.position, rows.vectors[:, 1].astype(int) * 320)
    kept = blocks.read_rows(str(tmp_path / "s"), blocks.HELD_OUT)
    assert np.array_equal(np.sort(kept.hashes), np.sort(every[held])[:70])
    assert (info.n_rows, info.n_held, info.n_seen) == (700, 70, n)
    assert not [e for e in storage.list_objects(str(tmp_path / "s")) if "piece" in e.key]


def test_sample_is_the_same_bytes_however_frames_are_cut_into_parts_and_named(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9000, 5)).astype(np.float16)
    found = []
    for n_parts, bucket_bytes, reverse in ((3, 1 << 30, False), (11, 1, True)):
        parts = put_parts(tmp_path / f"f{n_parts}", vectors, n_parts)
        folder = tmp_path / f"s{n_parts}"
        info = gather_sample(
            str(folder), parts[::-1] if reverse else parts, SampleRule(8000), None, local_spread,
            bucket_bytes,
        )  # fmt: skip
        assert info.n_groups == 2
        found.append({p.name: p.read_bytes() for p in folder.glob("*.npy")})
    assert found[0] == found[1]
    assert set(found[0]) == {"00000.npy", "00001.npy", "held_out.npy"}


def test_balanced_sample_takes_equal_shares_and_starts_with_all_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((10_000, 3)).astype(np.float32)
    parts = put_parts(tmp_path / "f", vectors, 4)
    # 40 recordings: one site has 36 of them, two have 2 each.
    sites = {f"r{i:04d}.wav": "loud" if i < 36 else f"quiet{i % 2}" for i in range(40)}
    rule = SampleRule(900, balance="site")
    info = gather_sample(str(tmp_path / "s"), parts, rule, sites, local_spread)
    assert info.by_group == {"loud": 300, "quiet0": 300, "quiet1": 300}
    rows = whole(tmp_path / "s", info)
    first = [sites[rows.names[r]] for r in rows.recording[:90]]
    # Of 90 drawn from three equal groups, fewer than 15 of one once in 20,000.
    assert all(first.count(site) > 15 for site in set(sites.values()))


def test_windows_are_placed_by_their_start(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bioembed_ray import schema

    starts = np.array([0.0, 0.5, 1 / 3])
    table = pa.table(
        [
            pa.array(["a.wav"] * 3),
            pa.array(np.zeros(3, np.int16)),
            pa.array(starts),
            pa.array(starts + 1),
            pa.array(np.ones(3, np.float32)),
            pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2),
        ],
        schema=schema.embeddings(2, "float32"),
    )
    pq.write_table(table, tmp_path / "w.parquet")
    (rows,) = read_part(str(tmp_path / "w.parquet"), with_vectors=True)
    assert rows.position.tolist() == [0, 500_000, 333_333]
    assert rows.vectors is not None
    assert rows.vectors.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_frames_of_one_hash_are_one_the_first_by_name() -> None:
    rows = Rows(
        ("a.wav", "b.wav"),
        np.array([1, 0, 1]),
        np.zeros(3, np.int16),
        np.array([5, 9, 1]),
        np.zeros(3, np.int16),
        np.array([7, 7, 3], np.uint64),
        np.arange(3, dtype=np.float32)[:, None],
    )
    kept = in_order(rows)
    assert sorted(kept.vectors[:, 0].tolist()) == [1.0, 2.0]


def test_a_sample_that_stands_is_kept_and_one_of_other_parts_is_made_anew(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
    parts = put_parts(tmp_path / "f", vectors, 2)
    rule = SampleRule(500)
    first = gather_sample(str(tmp_path / "s"), parts, rule, None, local_spread)
    again = gather_sample(str(tmp_path / "s"), parts[::-1], rule, None, lambda *_: iter([0 / 1]))
    assert again == first
    fewer = gather_sample(str(tmp_path / "s"), parts[:1], rule, None, local_spread)
    assert fewer.n_rows < 500
    assert fewer.digest != first.digest


def test_no_frames_are_an_error_that_says_so(tmp_path: Path) -> None:
    put_part(tmp_path / "f" / "0.parquet", [], np.zeros(0), np.zeros((0, 4), np.float32))
    parts = list(storage.list_objects(str(tmp_path / "f")))
    with pytest.raises(InputError, match="no frames to fit a codebook on: 1 parts hold 0"):
        gather_sample(str(tmp_path / "s"), parts, SampleRule(10), None, local_spread)


def test_a_file_that_is_no_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"x\.parquet: not a part of frames/ or embeddings/"):
        list(read_part(str(tmp_path / "x.parquet"), with_vectors=False))
