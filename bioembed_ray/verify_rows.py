"""Which rows a span owes, told from lengths and the rule that a part states; and which a part may lack.

Nothing of the stream is reused: positions are counted out from what windows, frames and tokens are.
All of them are encoder samples from the start of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bioembed_ray.audio.holes import Holes
from bioembed_ray.errors import Reason
from bioembed_ray.outcomes import Failure

Positions = npt.NDArray[np.int64]
Rule = dict[str, Any]
# A row whose seconds are not those of a sample; nobody owes it.
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Heard:
    """A span of a recording, and how an encoder hears it.

    Attributes:
        rule: What a part says of its rows (`parts.placement`).
        rate_hz: Of the recording.
        n_native: Native samples from the recording's start to where decoding ends.
        start: First native sample of the span.
        stop: One past its last; None to the end.
        holes: What of it is no sound, native samples of the recording.
    """

    rule: Rule
    rate_hz: int
    n_native: int
    start: int
    stop: int | None
    holes: Holes = ()

    @property
    def ratio(self) -> Fraction:
        """Encoder samples per native sample."""
        return Fraction(scale_of(self.rule), self.rate_hz)

    def owns(self, sample: int) -> bool:
        """Return whether what starts at an encoder sample belongs to the span."""
        native = -(-sample // self.ratio)
        return native >= self.start and (self.stop is None or native < self.stop)


def scale_of(rule: Rule) -> int:
    """Return the encoder samples in a second of the recording."""
    return int(rule["rate_hz"] * rule["time_expansion"])


def units_per_step(table: str, rule: Rule) -> int:
    """Return the frames, or tokens, of a time step: 8 of BEATs' 160 ms are its patches."""
    return 1 if table == "embeddings" else rule["frames_per_step"] or 1


def owed(table: str, span: Heard) -> Positions:
    """Return where the rows of a span start: windows, or time steps of frames and tokens.

    Tokens of an encoder without frames are those of its windows.
    """
    is_framed = table != "embeddings" and span.rule["frames_stride"] is not None
    starts = _steps(span) if is_framed else _windows(span)
    holes = [(low * span.ratio, high * span.ratio) for low, high in span.holes]
    if not holes:
        return starts
    if is_framed:
        keep = [_hears_step(start, holes, span.rule) for start in starts.tolist()]
    else:
        end = span.n_native * span.ratio
        keep = [_hears_window(start, end, holes, span.rule) for start in starts.tolist()]
    found: Positions = starts[np.array(keep, bool)]
    return found


def _hears_step(start: int, holes: Sequence[tuple[Fraction, Fraction]], rule: Rule) -> bool:
    """Return whether a time step sees no part of a hole; positions are encoder samples."""
    stop = start + rule["frames_receptive"]
    return all(high <= start or low >= stop for low, high in holes)


def _hears_window(
    start: int, end: Fraction, holes: Sequence[tuple[Fraction, Fraction]], rule: Rule
) -> bool:
    """Return whether a window holds enough sound outside of holes for a vector of its own."""
    stop = start + rule["window"]
    inside = [(low, high) for low, high in holes if low < stop and high > start]
    if not inside or rule["tail"] == "drop":
        return not inside
    if rule["embeds"]:
        last = min(Fraction(stop), end)
        lost = sum(min(high, last) - max(low, Fraction(start)) for low, high in inside)
        return bool(lost < last - start)
    stride, centre = rule["frames_stride"], rule["frames_receptive"] // 2
    first = max(0, -(-(start - centre) // stride)) * stride
    return any(_hears_step(step, inside, rule) for step in range(first, stop - centre, stride))


def _windows(span: Heard) -> Positions:
    rule, ratio = span.rule, span.ratio
    length, end = span.n_native * ratio, -(-span.n_native * ratio // 1)
    window, hop = rule["window"], rule["hop"]
    starts = []
    k = -(-(span.start * ratio) // hop)
    while k * hop < length and (span.stop is None or k * hop < span.stop * ratio):
        if rule["tail"] == "pad" or k * hop + window <= length:
            starts.append(int(k * hop))
        k += 1
    if rule["tail"] == "shift":
        n_full = max(0, (length - window) // hop + 1)
        last_end = (n_full - 1) * hop + window if n_full else 0
        moved = max(0, int(end - window))
        is_inside = span.start <= moved / ratio and (span.stop is None or moved / ratio < span.stop)
        if last_end < end and is_inside:
            starts.append(moved)
    starts = [s for s in starts if min(window, end - s) >= rule["shortest"]]
    if not rule["embeds"]:
        starts = [s for s in starts if _has_frame(s, int(end), rule)]
    return np.array(sorted(starts), np.int64)


def _has_frame(start: int, end: int, rule: Rule) -> bool:
    """Return whether the centre of a frame lies in a window."""
    stride, receptive = rule["frames_stride"], rule["frames_receptive"]
    n_frames = (end - receptive) // stride + 1
    first = max(0, -(-(start - receptive // 2) // stride))
    centre = first * stride + receptive // 2
    return bool(first < n_frames) and bool(centre < start + rule["window"])


def _steps(span: Heard) -> Positions:
    """Return the time steps of the blocks that start in the span.

    Block k owns seconds [k · block, (k + 1) · block), the last one all to the end, and half a block
    or less is no block of its own where tails are joined. It is read with its context, and where
    tails are joined also with what its last step sees beyond; steps follow each other from where
    reading begins, as long as they see sound that was read.
    """
    rule = span.rule
    end = int(-(-span.n_native * span.ratio // 1))
    stride, receptive = rule["frames_stride"], rule["frames_receptive"]
    size = max(
        1, end if rule["frames_block_s"] is None else rule["frames_block_s"] * rule["rate_hz"]
    )
    context = rule["frames_context_s"] * rule["rate_hz"]
    n_blocks = -(-end // size)
    tail = end - (n_blocks - 1) * size
    if rule["frames_joins_tail"]:
        context_after = context + receptive - stride
        n_blocks -= n_blocks > 1 and 2 * tail < size
    else:
        context_after = context
    found = [np.zeros(0, np.int64)]
    for block in range(max(0, int(span.start * span.ratio) // size - 1), n_blocks):
        low = block * size
        if span.stop is not None and low >= span.stop * span.ratio:
            break
        if not span.owns(low):
            continue
        high = end if block == n_blocks - 1 else low + size
        until = end if high == end else min(end, high + context_after)
        steps = np.arange(max(0, low - context), until - receptive + 1, stride, dtype=np.int64)
        found.append(steps[(steps >= low) & (steps < high)])
    return np.concatenate(found)


def positions(table: str, rows: pa.Table, rule: Rule) -> dict[tuple[str, int], Positions]:
    """Return (recording, channel) -> where its rows lie: of each unit, position · units + number.

    A unit is a window, a frame or a token; gaps between tokens are none.
    """
    scale, per_step = scale_of(rule), units_per_step(table, rule)
    names = rows.column("recording").combine_chunks().dictionary_encode()
    channels = rows.column("channel").to_numpy().astype(np.int64)
    start_s = rows.column("start_s").to_numpy()
    start = np.rint(start_s * scale).astype(np.int64)
    if table == "frames":
        start = rows.column("sample").to_numpy()
    unit = np.where(start / scale == start_s, start * per_step, NOWHERE)
    row = np.arange(len(unit))
    if table == "frames":
        patch = rows.column("patch").to_numpy()
        is_one = (unit != NOWHERE) & (patch >= 0) & (patch < per_step)
        unit = np.where(is_one, unit + patch, NOWHERE)
    elif table == "tokens":
        unit, row = _token_units(rows, unit, rule)
    place = names.indices.to_numpy()[row] * (1 << 16) + channels[row]
    order = np.argsort(place, kind="stable")
    keys, first = np.unique(place[order], return_index=True)
    edges = [*first.tolist(), len(order)]
    return {
        (names.dictionary[key >> 16].as_py(), key & 0xFFFF): unit[order[low:high]]
        for key, low, high in zip(keys.tolist(), edges, edges[1:], strict=False)
    }


def _token_units(rows: pa.Table, start: Positions, rule: Rule) -> tuple[Positions, Positions]:
    """Return (where every token lies, the row it is in)."""
    lists = rows.column("tokens").combine_chunks()
    counts = np.diff(lists.offsets.to_numpy())
    row = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    per_step = units_per_step("tokens", rule)
    stride = rule["hop"] if rule["frames_stride"] is None else rule["frames_stride"]
    is_step = rows.column("hop_s").to_numpy() == stride / scale_of(rule)
    is_step &= rows.column("per_step").to_numpy() == per_step
    is_known = (start != NOWHERE) & is_step
    unit = start[row] + number // per_step * stride * per_step + number % per_step
    has_token = lists.flatten().is_valid().to_numpy(zero_copy_only=False)
    return np.where(is_known[row], unit, NOWHERE)[has_token], row[has_token]


def lacks(failures: Sequence[Failure], recording: str, channel: int) -> list[tuple[float, float]]:
    """Return the stretches of one channel that a part says it lacks, in seconds."""
    return [
        (failure.start_s or 0.0, failure.end_s or 0.0)
        for failure in failures
        if failure.recording == recording
        and failure.channel == channel
        # A hole lacks only what lies in it, which is not owed.
        and failure.reason is not Reason.DAMAGED
    ]


def complaints(
    table: str,
    got: Positions,
    starts: Positions,
    lost_s: Sequence[tuple[float, float]],
    rule: Rule,
) -> Iterator[str]:
    """Yield what is wrong with the units of one recording and channel.

    Args:
        table: embeddings, frames or tokens.
        got: Units that stand, see `positions`.
        starts: (T,) where the windows or steps that are owed start.
        lost_s: Stretches in which they may be missing.
        rule: What the part says of its rows.
    """
    noun, scale = {"embeddings": "windows"}.get(table, table), scale_of(rule)
    per_step = units_per_step(table, rule)
    wanted = (starts[:, None] * per_step + np.arange(per_step)).reshape(-1)
    may_lack = np.zeros(len(starts), bool)
    for low, high in lost_s:
        may_lack |= (starts / scale >= low - 1e-9) & (starts / scale < high)
    due = wanted[~np.repeat(may_lack, per_step)]
    if len(got) != len(np.unique(got)):
        yield f"{noun} stand more than once"
    if not (np.isin(due, got).all() and np.isin(got, wanted).all()):
        yield f"{len(got)} {noun}, {len(due)} expected"
