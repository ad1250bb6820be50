"""Write the tokens of a job's codebooks: `ray job submit --working-dir . -- python jobs/assign_tokens.py JOB.yaml`.

Arguments are those of `bioembed tokenize`.
"""

import sys

from bioembed_ray.cli import main

if __name__ == "__main__":
    main(["tokenize", *sys.argv[1:]])
