"""Embed what is missing: `ray job submit --working-dir . -- python jobs/run.py jobs/examples/birds.yaml`.

Arguments are those of `bioembed run`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
