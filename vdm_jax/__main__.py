"""`python -m vdm_jax`: the command `vdm`."""

from vdm_jax import cli

if __name__ == "__main__":
    cli.main()
