"""Waveforms become window vectors and frames: the network is applied, nothing is read or written.

A vector depends on its window (or its block of the fixed grid) and on nothing else: batches hold
one length only, and what is in a batch beside it does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bioembed_ray.apply import (
    LostBlock,
    LostWindow,
    Place,
    Waves,
    Windows,
    guarded,
    lost_window,
    without_lost,
)
from bioembed_ray.assigned import Assigned, TokenTable
from bioembed_ray.codebooks.nearest import Codes
from bioembed_ray.encoders.base import Encoder, shortest_window
from bioembed_ray.errors import Reason, RecordingError
from bioembed_ray.frames import Frames, Means, assemble, is_own, owned_steps, run_blocks, with_sound
from bioembed_ray.in_flight import Told, nobody
from bioembed_ray.windows import Block, WindowRule, touches, valid_samples, window_starts


def encode(
    encoder: Encoder,
    rule: WindowRule,
    places: Sequence[Place],
    device: str,
    n_layers: int,
    keep_frames: bool,
    codes: Sequence[tuple[int, Codes]] = (),
    stored: str = "float32",
    told: Told = nobody,
) -> tuple[Windows, Frames | None, list[TokenTable]]:
    """Apply an encoder to the tracks of a shard.

    Args:
        encoder: The loaded network.
        rule: Window, hop and tail in encoder samples.
        places: The tracks and where they lie.
        device: Torch device the encoder is on.
        n_layers: L, how many outputs the encoder gives.
        keep_frames: Whether every frame is returned.
        codes: Codebooks to assign tokens by, each with the layer whose vectors it takes.
        stored: Type that window vectors are stored in. Where they are what tokens name, they are
            named as stored, so that a token is the same whether named now or from the part.
        told: Hears after every batch how much is done.

    Returns:
        The windows, the frames where they are kept, and one table of tokens per codebook.
    """
    windows = _planned(rule, places)
    named = Assigned(codes)
    kept: list[tuple[int, Block, npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]] = []
    grid = encoder.facts.grid
    runs_blocks = grid is not None and bool(keep_frames or codes or not encoder.facts.embeds)
    # Where windows and blocks are both run, each is half of the work.
    n_passes = encoder.facts.embeds + runs_blocks
    with torch.inference_mode():
        if encoder.facts.embeds:
            _embed_windows(
                encoder,
                rule,
                places,
                windows,
                device,
                n_layers,
                lambda share: told(share / n_passes),
            )
        if grid is not None and runs_blocks:
            means = (
                None if encoder.facts.embeds else Means(windows, rule, encoder, n_layers, device)
            )
            before = n_passes - 1
            for index, block, outcome in run_blocks(
                encoder, grid, rule, places, device, lambda share: told((before + share) / n_passes)
            ):
                if isinstance(outcome, RecordingError):
                    if means is not None:
                        means.lose(index, block, outcome)
                    # A block that is too short has no frames to miss.
                    if is_own(places[index], block) and outcome.reason != Reason.TOO_SHORT:
                        lost = LostBlock(index, block.start, block.stop, outcome)
                        windows.lost_blocks.append(lost)
                    continue
                steps = owned_steps(grid, block)
                steps, outcome = with_sound(encoder, places[index], steps, outcome)
                if means is not None:
                    means.add(index, steps, outcome)
                if not is_own(places[index], block):
                    continue
                named.add(index, steps, outcome)
                if keep_frames:
                    layers = [layer.float().cpu().numpy() for layer in outcome]
                    kept.append((index, block, steps, layers))
            if means is not None:
                means.finish()
    found = without_lost(windows)
    if grid is None and codes:
        with np.errstate(over="ignore"):
            rounded = [layer.astype(stored).astype(np.float32) for layer in found.vectors]
        vectors = [torch.from_numpy(layer).to(device) for layer in rounded]
        for index in np.unique(found.place):
            rows = np.flatnonzero(found.place == index)
            named.add(int(index), found.start[rows], [layer[rows] for layer in vectors])
    frames = assemble(grid, kept, n_layers, encoder.dim) if keep_frames else None
    return found, frames, named.tables()


def _planned(rule: WindowRule, places: Sequence[Place]) -> Windows:
    """Return the windows to encode; those that hold no sound, or under `drop` a hole, are lost."""
    windows = Windows(np.zeros(0, np.int64), np.zeros(0, np.int64), [], [])
    silent = RecordingError(Reason.DAMAGED, "no sound in the window")
    indices, tables = [], []
    for index, place in enumerate(places):
        starts = window_starts(place.clock, rule, place.start, place.stop, place.n_native)
        valid = valid_samples(place.clock, rule, starts, place.n_native, place.holes)
        keep = np.array([length > 0 for length in valid], bool)
        if rule.tail == "drop":
            keep &= ~touches(place.clock, starts, starts + rule.window, place.holes)
        windows.lost += [LostWindow(index, int(start), silent) for start in starts[~keep]]
        windows.valid += [length for length, is_kept in zip(valid, keep, strict=True) if is_kept]
        tables.append(starts[keep])
        indices.append(np.full(int(keep.sum()), index))
    windows.place = np.concatenate([windows.place, *indices])
    windows.start = np.concatenate([windows.start, *tables])
    return windows


def _embed_windows(
    encoder: Encoder,
    rule: WindowRule,
    places: Sequence[Place],
    windows: Windows,
    device: str,
    n_layers: int,
    told: Told,
) -> None:
    """Fill `windows.vectors` through `embed`, one pass per distinct input length."""
    n_windows = len(windows.start)
    results = [torch.zeros((n_windows, encoder.dim), device=device) for _ in range(n_layers)]
    lengths = np.full(n_windows, rule.window)
    if not encoder.facts.pads:
        # Up to the recording's end: a hole is no reason to be short.
        ends = [
            places[p].length or int(s) + rule.window
            for p, s in zip(windows.place, windows.start, strict=True)
        ]
        lengths = np.minimum(rule.window, np.array(ends, np.int64) - windows.start)
    shortest = shortest_window(encoder.facts)
    n_done = 0
    for length in (int(length) for length in np.unique(lengths)):
        rows = np.flatnonzero(lengths == length)
        if length < shortest:
            error = RecordingError(Reason.TOO_SHORT, f"{length} samples are less than one frame")
            windows.lost += [lost_window(windows, row, error) for row in rows]
            continue
        waves = Waves(places, device)
        for first in range(0, len(rows), encoder.batch_size):
            batch = rows[first : first + encoder.batch_size]
            stretches = [
                waves.cut(int(windows.place[r]), int(windows.start[r]), length) for r in batch
            ]
            for row, outcome in zip(batch, guarded(encoder.embed, stretches), strict=True):
                if isinstance(outcome, RecordingError):
                    windows.lost.append(lost_window(windows, row, outcome))
                    continue
                for result, vector in zip(results, outcome, strict=True):
                    result[int(row)] = vector
            n_done += len(batch)
            told(n_done / n_windows)
    windows.vectors = [result.cpu().numpy() for result in results]
