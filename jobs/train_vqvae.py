"""Train the VQ-VAEs of a job that are missing: `ray job submit --working-dir . -- python jobs/train_vqvae.py JOB.yaml`.

Arguments are those of `bioembed train-vqvae`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["train-vqvae", *sys.argv[1:]])
