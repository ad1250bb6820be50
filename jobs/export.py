"""Write recording-level vectors and other formats: `ray job submit --working-dir . -- python jobs/export.py jobs/examples/birds.yaml`.

Arguments are those of `bioembed export`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
