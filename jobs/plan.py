"""Print what a run would do: `ray job submit --working-dir . -- python jobs/plan.py jobs/examples/birds.yaml`.

Arguments are those of `bioembed plan`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
