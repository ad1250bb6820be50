"""Check an output: `ray job submit --working-dir . -- python jobs/verify.py jobs/examples/birds.yaml`.

Arguments are those of `bioembed verify`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
