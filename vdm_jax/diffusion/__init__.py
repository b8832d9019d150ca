"""The mathematics of diffusion: schedules, predictions, losses, guidance, samplers.

Imports jax and nothing else of this package: networks, training and data know of this
package, never the other way round. One time convention everywhere, the log signal-to-noise
ratio λ = log(α²/σ²), and variance-preserving coordinates z = α x + σ ε with α² = sigmoid(λ)
and σ² = sigmoid(−λ). Discrete grids, EDM's σ and rectified flow's t are conversions at the
edge (`schedules`).
"""
