"""A stage: one trainable diffusion model, its conditions and how it is sampled."""
