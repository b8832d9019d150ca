"""A stage: one trainable diffusion model, its conditions and how it is sampled."""

from vdm_jax.rules import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Number

RULES = {
    "text.max_length": COUNT,
    "text.vocabulary_size": COUNT,
    "sample.steps": COUNT,
    "sample.eta": FRACTION,
    "sample.gamma": FRACTION,
    "sample.rho": POSITIVE,
    "sample.sigma_min": POSITIVE,
    "sample.sigma_max": POSITIVE,
    "sample.churn": NOT_NEGATIVE,
    "sample.churn_min": NOT_NEGATIVE,
    "sample.churn_max": NOT_NEGATIVE,
    "sample.churn_noise": NOT_NEGATIVE,
    "sample.corrector": Number(low=0, high=2, open_high=True),
    "sample.batch_size": COUNT,
}
