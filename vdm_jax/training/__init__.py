"""Training of one stage: state, optimiser, step, checkpoints, metrics and the loop."""
