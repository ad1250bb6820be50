"""The codebook card: what a codebook is, how good it is, and all that is needed to fit it again.

codebook.safetensors    centroids (K, D) float32, and who they are in the metadata
card.json               figures; `verdict` tells a collapsed codebook in one line
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from bioembed_ray import storage
from bioembed_ray.codebooks.rule import Centroids, Metric
from bioembed_ray.errors import BrokenOutput

CODEBOOK_KEY, CARD_KEY = "codebook.safetensors", "card.json"
# A codebook that uses less than this share of its codes, by perplexity, is no longer a codebook.
# The thresholds are ours: k-means on speech features keeps 60 to 90 %.
COLLAPSED, UNEVEN = 0.1, 0.4
# Expected mutual information is summed over all pairs of values: seconds at ten thousand frames.
ADJUSTED_FRAMES = 10_000


@dataclass(frozen=True, slots=True)
class Codebook:
    """Centroids and who they are.

    Attributes:
        name: Name in the job file.
        version: Digest of all that decided the centroids.
        encoder: Name of the encoder's output.
        encoder_version: Version of the frames.
        metric: Distance that decides a token.
        centroids: (K, D) float32.
    """

    name: str
    version: str
    encoder: str
    encoder_version: str
    metric: Metric
    centroids: Centroids

    @property
    def token_bytes(self) -> int:
        """Bytes of a token: int16 holds ids up to 32,766, more need int32."""
        return 2 if len(self.centroids) <= np.iinfo(np.int16).max else 4


def codebook_bytes(codebook: Codebook) -> bytes:
    """Return the safetensors file of a codebook; the same codebook gives the same bytes."""
    about = {
        "name": codebook.name,
        "version": codebook.version,
        "encoder": codebook.encoder,
        "encoder_version": codebook.encoder_version,
        "metric": codebook.metric,
    }
    # One key only: safetensors writes several in an order that differs from process to process.
    return bytes(
        safetensors.numpy.save(
            {"centroids": np.ascontiguousarray(codebook.centroids, np.float32)},
            {"bioembed.codebook": json.dumps(about, sort_keys=True)},
        )
    )


def read_codebook(folder: str) -> Codebook:
    """Return the codebook that stands in a folder.

    Raises:
        NotFoundError: none does.
        BrokenOutput: not a codebook of ours.
        StorageError: reading failed.
    """
    uri = storage.join(folder, CODEBOOK_KEY)
    body = storage.read(uri)
    try:
        centroids = safetensors.numpy.load(body)["centroids"]
        length = int.from_bytes(body[:8], "little")
        about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["bioembed.codebook"])
        return Codebook(centroids=centroids, **about)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BrokenOutput(
            f"{uri}: not a codebook; delete it and fit again ({str(error)[:100]})"
        ) from error


def read_card(folder: str) -> dict[str, Any]:
    """Return the card that stands in a folder.

    Raises:
        NotFoundError: none does.
        StorageError: reading failed.
    """
    card: dict[str, Any] = json.loads(storage.read(storage.join(folder, CARD_KEY)))
    return card


def card_bytes(card: dict[str, Any]) -> bytes:
    """Return a card as JSON for people: indented, keys as they come, numbers to six digits."""
    text = json.dumps(_rounded(card), indent=2, ensure_ascii=False)
    # Numbers of a list on one line, else a codebook of 500 codes is 500 lines.
    text = re.sub(r"\[\s+([-+.\d\w\s,]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return (text + "\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def usage(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return how evenly codes are used.

    Args:
        counts: (K,) frames per code.

    Returns:
        `used`, `dead` (no frame at all), `entropy_bits`, `perplexity` = 2^entropy: how many equally
        frequent codes would be as uncertain; `perplexity_share` of K; `top_share`, the share of the
        most frequent code; `top_code`.

    >>> usage(np.array([1, 1, 1, 1]))["perplexity"]
    4.0
    """
    total = int(counts.sum())
    shares = counts[counts > 0] / max(1, total)
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
    return {
        "frames": total,
        "codes": len(counts),
        "used": len(shares),
        "dead": int((counts == 0).sum()),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
        "perplexity_share": 2.0**entropy / len(counts),
        "top_share": float(shares.max(initial=0.0)),
        "top_code": int(counts.argmax()),
    }


def verdict(figures: dict[str, Any]) -> str:
    """Return what a reader has to know of the usage, in one line.

    >>> verdict(usage(np.array([97, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])))[:9]
    'COLLAPSED'
    """
    share, n_codes = figures["perplexity_share"], figures["codes"]
    # 0 where all frames have one code, 1 where all codes are equally frequent.
    evenness = (figures["perplexity"] - 1) / max(1, n_codes - 1)
    state = "COLLAPSED" if evenness < COLLAPSED else "uneven" if evenness < UNEVEN else "healthy"
    if n_codes == 1:
        state = "a single code says nothing"
    return (
        f"{state}: {figures['used']} of {n_codes} codes in use, perplexity {figures['perplexity']:.4g} "
        f"({share:.0%} of the codes), the most frequent has {figures['top_share']:.1%} of the frames"
    )


def concentration(
    token: npt.NDArray[np.int64], origin: npt.NDArray[np.int64], count: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Return how far codes belong to single origins (recordings, sites).

    Args:
        token: (P,) code of a pair.
        origin: (P,) its recording or site; every pair of both once.
        count: (P,) frames that have both.

    Returns:
        `origins`; `top_share_median`, the median over codes of the share of a code's frames that
        its most frequent origin gives; `owned_codes`, codes with nine tenths from one origin.
    """
    totals = np.bincount(token, weights=count)
    largest = np.zeros(len(totals))
    np.maximum.at(largest, token, count.astype(np.float64))
    shares = largest[totals > 0] / totals[totals > 0]
    return {
        "origins": len(np.unique(origin)),
        "top_share_median": float(np.median(shares)) if len(shares) else None,
        "owned_codes": int((shares >= 0.9).sum()),
    }


def dependence(
    token: npt.NDArray[np.int64], origin: npt.NDArray[np.int64]
) -> dict[str, Any] | None:
    """Return how much a frame's origin tells of its token: adjusted mutual information.

    0 is what chance gives, 1 means that they determine each other (Vinh, Epps and Bailey 2010).

    Args:
        token: (T,) of held-out frames.
        origin: (T,) recording or site.

    Returns:
        The value and how many frames it is from; None without frames.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    n = min(len(token), ADJUSTED_FRAMES)
    if not n:
        return None
    value = adjusted_mutual_info_score(origin[:n], token[:n])
    return {"adjusted_mutual_information": float(value), "frames": n}


def agreement(token: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Return how far two codebooks sort the same frames alike, whatever they call their codes.

    Adjusted Rand index and adjusted mutual information: 0 by chance, 1 for the same partition.

    Args:
        token: (T,) by the one.
        other: (T,) by the other.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    if not len(token):
        return None
    n = ADJUSTED_FRAMES
    return {
        "adjusted_rand_index": float(adjusted_rand_score(token, other)),
        "adjusted_mutual_information": float(adjusted_mutual_info_score(token[:n], other[:n])),
        "frames": len(token),
    }
