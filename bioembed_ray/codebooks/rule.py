"""What decides a codebook, as plain values: planning knows them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bioembed_ray.codebooks.sample import SampleRule

Metric = Literal["euclidean", "cosine"]
Centroids = npt.NDArray[np.float32]

# Raised by hand when seeding, sums or the end of a fit move any number.
FIT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LloydRule:
    """What decides a fit, beside the rows.

    Attributes:
        clusters: Number of centroids, K.
        metric: "cosine" fits unit rows with unit centroids.
        seed: Seed of the first centroids.
        tolerance: Stop where the sum of squared shifts is at most this times the rows' mean
            variance per dimension: `tol` of scikit-learn. 0 goes on until no label changes.
        max_iterations: Stop after so many.
    """

    clusters: int
    metric: Metric = "euclidean"
    seed: int = 0
    tolerance: float = 1e-4
    max_iterations: int = 300


@dataclass(frozen=True, slots=True)
class Fit:
    """A codebook that is wanted.

    Attributes:
        name: Name in the job file.
        version: Digest of all that decides it.
        encoder: Name of the encoder's output, e.g. "hubert.9".
        encoder_version: Version of its frames.
        layer: Transformer layer, None for the model's own output.
        folder: Where it goes: codebooks/<name>/version=<v>.
        rule: Clusters, metric, seed, end.
        sample: How many frames, balanced by what.
        previous: Folder of the last version, whose centroids start the fit and whose ids are kept.
        second_seed: Whether to fit again with the next seed, to tell how far the seed decides.
    """

    name: str
    version: str
    encoder: str
    encoder_version: str
    layer: int | None
    folder: str
    rule: LloydRule
    sample: SampleRule
    previous: str | None = None
    second_seed: bool = True
