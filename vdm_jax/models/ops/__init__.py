"""Kernels for CPUs, behind functions whose plain form stands first."""
