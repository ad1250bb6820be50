"""What tokens depend on: labels, the hour of the day, the site; by adjusted mutual information.

0 is what independent tokens give, 1 means that token and value determine each other (Vinh, Epps and
Bailey 2010). Tokens of one recording are alike, so a value that belongs to whole recordings is above
0 even where it means nothing: `shuffled`, values dealt out anew among recordings, says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from bioembed_ray.labels.even_sample import limits
from bioembed_ray.labels.samples import TokenBatch, read_tokens
from bioembed_ray.labels.task import SEED, Ints
from bioembed_ray.rows import Rows

MOST_TOKENS = 50_000
SHUFFLES = 10
DAY_S, HOUR_S = 86_400, 3_600


@dataclass(frozen=True, slots=True)
class Dependence:
    """How much a value tells of a token.

    Attributes:
        adjusted_mutual_information: 0 by chance, 1 at most; None where there is nothing to tell apart.
        shuffled: The same with values dealt out anew among recordings, mean of 10.
        tokens: Tokens looked at.
        recordings: Recordings they are from.
        unknown: Recordings left out, since their value is not known.
        values: Different values among the tokens.
    """

    adjusted_mutual_information: float | None
    shuffled: float | None
    tokens: int
    recordings: int
    unknown: int
    values: int


def seconds_of_day(written: Sequence[str | None]) -> npt.NDArray[np.float64]:
    """Return the second of the day at which recordings start, by the clock they state; NaN unknown.

    >>> seconds_of_day(["2024-05-12T06:15:00+02:00", None]).tolist()
    [22500.0, nan]
    """
    found = np.full(len(written), np.nan)
    for place, text in enumerate(written):
        if text:
            time = datetime.fromisoformat(text)
            found[place] = time.hour * HOUR_S + time.minute * 60 + time.second
    return found


def hours(second: npt.NDArray[np.float64]) -> Ints:
    """Return the hour of the day of times in seconds, which may run over midnight.

    >>> hours(np.array([0.0, 86_399.0, 90_000.0])).tolist()
    [0, 23, 1]
    """
    found: Ints = (np.floor(second / HOUR_S) % 24).astype(np.int64)
    return found


def dependence_on_values(
    rows: Rows, recordings: Sequence[str], counts: Ints, value: Sequence[str | None]
) -> Dependence:
    """Return how much a value of whole recordings tells of their tokens.

    Args:
        rows: Tokens of a codebook.
        recordings: (R,) names.
        counts: (R,) tokens of each.
        value: (R,) label or site, None where it is not known.
    """
    known = np.array([text is not None for text in value], bool)
    codes = np.unique([text or "" for text in value], return_inverse=True)[1].astype(np.int64)
    sample = _sample(rows, recordings, counts, known)
    return _dependence(sample, codes.astype(np.float64), known, counts, is_time=False)


def dependence_on_hour(
    rows: Rows, recordings: Sequence[str], counts: Ints, start: npt.NDArray[np.float64]
) -> Dependence:
    """Return how much the hour in which a token starts tells of it.

    Args:
        rows: Tokens of a codebook.
        recordings: (R,) names.
        counts: (R,) tokens of each.
        start: (R,) second of the day at which a recording starts, NaN where it is not known.
    """
    known = np.isfinite(start)
    sample = _sample(rows, recordings, counts, known)
    return _dependence(sample, start, known, counts, is_time=True)


def _sample(
    rows: Rows, recordings: Sequence[str], counts: Ints, known: npt.NDArray[np.bool_]
) -> TokenBatch:
    """Return at most `MOST_TOKENS` tokens, spread evenly over the recordings that are known.

    Their recording is the place among all.
    """
    places = np.flatnonzero(known & (counts > 0))
    names = [recordings[place] for place in places.tolist()]
    highest = limits(
        lambda: ((batch.recording, batch.hashes) for batch in read_tokens(rows, names)),
        counts[places],
        MOST_TOKENS,
    )
    found: list[TokenBatch] = []
    for batch in read_tokens(rows, names) if names else ():
        kept = batch.hashes <= highest[batch.recording]
        found.append(
            TokenBatch(
                places[batch.recording[kept]],
                batch.hashes[kept],
                batch.token[kept],
                batch.start_s[kept],
            )
        )
    if not found:
        empty = np.zeros(0, np.int64)
        return TokenBatch(empty, np.zeros(0, np.uint64), empty, np.zeros(0))
    columns = ("recording", "hashes", "token", "start_s")
    return TokenBatch(*(np.concatenate([getattr(one, name) for one in found]) for name in columns))


def _dependence(
    sample: TokenBatch,
    value: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    counts: Ints,
    is_time: bool,
) -> Dependence:
    from sklearn.metrics import adjusted_mutual_info_score

    def of(values: npt.NDArray[np.float64]) -> Ints:
        own = values[sample.recording]
        return hours(own + sample.start_s) if is_time else own.astype(np.int64)

    found = of(value)
    n_values = len(np.unique(found))
    unknown = int((~known & (counts > 0)).sum())
    present = np.unique(sample.recording)
    size = (len(found), len(present), unknown, n_values)
    if n_values < 2:
        return Dependence(None, None, *size)
    draw = np.random.default_rng(SEED)
    shuffled = []
    for _ in range(SHUFFLES):
        dealt = value.copy()
        dealt[present] = value[draw.permutation(present)]
        shuffled.append(adjusted_mutual_info_score(of(dealt), sample.token))
    score = float(adjusted_mutual_info_score(found, sample.token))
    return Dependence(score, float(np.mean(shuffled)), *size)
