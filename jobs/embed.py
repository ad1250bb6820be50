"""Embed an archive, codebooks and tokens left aside: `ray job submit --working-dir . -- python jobs/embed.py JOB.yaml`.

Arguments are those of `bioembed embed`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
