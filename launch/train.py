"""`python -m launch.train --config=… --workdir=…`: the same as `vdm train`.

The scripts beside this file and users of other JAX code bases start training by this name.
"""

import sys

from vdm_jax import cli

if __name__ == "__main__":
    cli.main(["train", *sys.argv[1:]])
