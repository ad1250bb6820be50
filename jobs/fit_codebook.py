"""Fit the codebooks of a job that are missing: `ray job submit --working-dir . -- python jobs/fit_codebook.py JOB.yaml`.

Arguments are those of `bioembed fit-codebook`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["fit-codebook", *sys.argv[1:]])
