"""Distribution matching: a student whose samples are distributed as its teacher's, in few steps
with fresh noise between them (Yin et al. 2024a, DMD; 2024b, DMD2).

Beside the student a critic is trained: a network of the same kind, which begins as the same, learns
to denoise what the student makes. Its x̂ and the teacher's, from one z, say where samples should
move (`diffusion.distillation.distribution_target`). Of DMD2 this has the critic's more frequent
updates (section 4.2) and training on the student's own steps (4.4, 4.5). It has no discriminator
(4.3), so no real clip is looked at: a batch gives its conditions alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.diffusion import distillation, grids
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.stage import guidance
from vdm_jax.stage.distilled import StudentStage
from vdm_jax.stage.protocols import Batch, Frozen

STUDENT, CRITIC = "student", "critic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionStage(StudentStage):
    """A student of `steps` steps of the sampler "consistency", and its critic.

    The parameters are those of both, by the names "student" and "critic". Samples are the
    student's.

    Attributes:
      critic_updates: every update trains the critic, and one of so many, drawn at random, the
        student.
    """

    critic_updates: int = 5

    def begun(self, params: PyTree) -> PyTree:
        """Student and critic begin as the same network. Copies: they are trained apart."""
        return {STUDENT: params, CRITIC: jax.tree.map(jnp.copy, params)}

    def student(self, params: PyTree) -> PyTree:
        return params[STUDENT]

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        del frozen
        return params[STUDENT]

    def update_flops(self) -> float:
        """As of all stages of students: the student's steps, the critic's forward and backward
        pass, and in one of `critic_updates` the student's, the teacher's and the critic's."""
        passes = self.steps + 3 + (3 + 2 + 1) / self.critic_updates
        return self.train_flops() * passes / 3

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        student_key, critic_key = jax.random.split(key)
        return {
            STUDENT: super()._boxed_init(student_key),
            CRITIC: super()._boxed_init(critic_key),
        }

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The critic's loss, and the student's where this update trains it; scalar metrics.

        frozen: holds the teacher's parameters as "teacher".
        """
        keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
        clean, cond, _ = self.example(batch, keys["example"], frozen)
        scale = self.scales(keys["scale"], clean.shape[0])

        def student(params: PyTree) -> Denoiser:
            return self.process.denoiser(self.bound(params, scale, keys["dropout"]))

        z, logsnr = self._begin(student(params[STUDENT]), cond, clean.shape, keys["steps"])
        made = jax.lax.stop_gradient(student(params[STUDENT])(z, logsnr, cond).x)
        critic = self.bound(params[CRITIC], scale, keys["dropout"])
        critic_losses, _ = self.process.loss(
            keys["critic"], lambda z, logsnr: critic(z, logsnr, cond), made
        )
        noised = self.process.noised(keys["noise"], made)

        def matching() -> tuple[Float[Array, ""], Float[Array, ""]]:
            x = student(params[STUDENT])(z, logsnr, cond).x
            real = self.guided_teacher(frozen, scale)(noised.z, noised.logsnr, cond).x
            fake = self.process.denoiser(critic)(noised.z, noised.logsnr, cond).x
            target = distillation.distribution_target(made, real, fake)
            return 0.5 * jnp.mean(jnp.square(x - target)), jnp.mean(jnp.abs(fake - real))

        # Drawn, because a loss knows no number of its update. Where it is not the student's turn,
        # nothing of this is computed.
        turn = jax.random.bernoulli(keys["turn"], 1 / self.critic_updates)
        nothing = (jnp.zeros(()), jnp.zeros(()))
        loss, distance = jax.lax.cond(turn, matching, lambda: nothing)
        critic_loss = critic_losses.mean()
        metrics = {
            "critic_loss": critic_loss,
            # Averages of several updates are of those that trained the student.
            "student_loss": loss * self.critic_updates,
            "distance": distance * self.critic_updates,
        }
        return critic_loss + loss, metrics

    def _begin(
        self, student: Denoiser, cond: dict, shape: tuple[int, ...], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b"]]:
        """z and λ before one of the student's steps, drawn for each example; z is what its own
        steps before made of noise. No gradient goes through them."""
        step_key, start_key, noise_key = jax.random.split(key, 3)
        grid = grids.logsnr_grid(self.process.schedule, self.steps)
        step = jax.random.randint(step_key, shape[:1], 0, self.steps)
        if (threshold := guidance.THRESHOLDS[self.threshold]) is not None:
            student = threshold(student, self, jnp.zeros(0))

        def forward(carry: tuple, at: Array) -> tuple[tuple, None]:
            z, chosen = carry
            x = student(z, jnp.full(shape[0], grid[at]), cond).x
            alpha, sigma = alpha_sigma(grid[at + 1])
            noise = jax.random.normal(jax.random.fold_in(noise_key, at), shape, jnp.float32)
            z = alpha * x + sigma * noise
            here = (step == at + 1).reshape(-1, *(1,) * (z.ndim - 1))
            return (z, jnp.where(here, z, chosen)), None

        start = jax.random.normal(start_key, shape, jnp.float32)
        (_, z), _ = jax.lax.scan(forward, (start, start), jnp.arange(self.steps - 1))
        return jax.lax.stop_gradient(z), grid[step]


_KEYS = ("example", "scale", "dropout", "steps", "critic", "noise", "turn")
