"""Blocks that networks are composed of. All are residual, except those that change a size."""
