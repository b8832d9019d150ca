"""Parameters and operations of a network, counted from shapes."""

import flax.linen as nn
import jax

from tests.models.test_video_unet import FRAMES, NETWORK, SIZE, compiled, make_inputs, random_params
from vdm_jax.models import cost


def test_every_layer_of_a_network_is_counted():
    z, logsnr, cond = make_inputs(batch=1)
    rows = cost.level_table(NETWORK, z.shape[1:], cond)
    params = random_params()
    assert sum(row.parameters for row in rows) == sum(a.size for a in jax.tree.leaves(params))
    assert [row.level for row in rows] == [
        "condition", "input", "down 0", "down 1", "middle", "up 1", "up 0", "output",
    ]  # fmt: skip
    assert rows[3].resolution == "4 x 4" and rows[3].channels == 16
    assert rows[3].attention == "space + text + time" and rows[2].attention == "-"
    pixels = FRAMES * SIZE * SIZE
    assert rows[1].flops == 2 * pixels * 9 * 3 * 8
    assert rows[2].flops == 2 * (
        pixels * 9 * 8 * 8 * 2 + FRAMES * 32 * 16 + pixels // 4 * 9 * 8 * 8
    )
    # XLA leaves out a convolution's padding and counts norms and activations as well, so the two
    # agree roughly.
    lowered = compiled().lower(params, z, logsnr, cond)
    ratio = lowered.cost_analysis()["flops"] / sum(row.flops for row in rows)
    assert 0.8 < ratio < 1.25


class Other(nn.Module):
    """A network that is no U-Net, and tells nothing of itself."""

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0):
        time = nn.Dense(8, name="time")(logsnr[:, None])
        h = nn.Dense(8, name="first")(z) + time[:, None, None, None]
        return nn.Dense(3, name="last")(h) * self.param("gain", nn.initializers.ones, (3,))


def test_any_network_is_counted():
    rows = {row.level: row for row in cost.level_table(Other(), (2, 4, 4, 3), {})}
    pixels = 2 * 4 * 4
    assert {name: row.parameters for name, row in rows.items()} == {
        "first": 32, "time": 16, "last": 27, "gain": 3,
    }  # fmt: skip
    assert {name: row.flops for name, row in rows.items()} == {
        "first": 2 * pixels * 24, "time": 2 * 8, "last": 2 * pixels * 24, "gain": 0,
    }  # fmt: skip
