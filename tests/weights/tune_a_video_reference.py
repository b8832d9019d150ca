"""Tune-A-Video's U-Net in NumPy, float64, from the equations of the papers and by the names of its
published tensors: Rombach et al. 2022 (appendix E.2.1) with the changes of Wu et al. 2023
(section 3.2). Arrays are `b f h w c`."""

import math

import numpy as np
from einops import rearrange, repeat


class UNet:
    """The network of a config.json and tensors.

    over_frames: whether the normalisations of residual blocks and of the output take their
    statistics over all frames, as the published code does.
    """

    def __init__(self, config, tensors, *, over_frames=True):
        self.config, self.over_frames = config, over_frames
        self.tensors = {name: np.asarray(leaf, np.float64) for name, leaf in tensors.items()}

    def __call__(self, z, timesteps, text):
        """z (b, f, h, w, c), timesteps (b,), text (b, l, d)."""
        config, layers = self.config, self.config["layers_per_block"]
        temb = self.time(timesteps)
        h = self.conv("conv_in", z)
        skips = [h]
        levels = len(config["block_out_channels"])
        for level in range(levels):
            block = f"down_blocks.{level}"
            for i in range(layers):
                h = self.pair(block, i, h, temb, text)
                skips.append(h)
            if level < levels - 1:
                h = self.conv(f"{block}.downsamplers.0.conv", h)[:, :, ::2, ::2]
                skips.append(h)
        h = self.pair("mid_block", 0, h, temb, text)
        h = self.resnet("mid_block.resnets.1", h, temb)
        for level in range(levels):
            block = f"up_blocks.{level}"
            for i in range(layers + 1):
                h = self.pair(block, i, np.concatenate([h, skips.pop()], -1), temb, text)
            if level < levels - 1:
                h = repeat(h, "b f h w c -> b f (h p) (w q) c", p=2, q=2)
                h = self.conv(f"{block}.upsamplers.0.conv", h)
        return self.conv("conv_out", silu(self.group_norm("conv_norm_out", h, self.over_frames)))

    def pair(self, block, i, h, temb, text):
        """A residual block and the transformer behind it, where there is one."""
        h = self.resnet(f"{block}.resnets.{i}", h, temb)
        name = f"{block}.attentions.{i}"
        return self.transformer(name, h, text) if f"{name}.norm.weight" in self.tensors else h

    def time(self, timesteps):
        half = self.config["block_out_channels"][0] // 2
        angles = timesteps[:, None] * np.exp(-math.log(10_000) * np.arange(half) / half)
        waves = np.concatenate([np.cos(angles), np.sin(angles)], -1)
        hidden = silu(self.linear("time_embedding.linear_1", waves))
        return self.linear("time_embedding.linear_2", hidden)

    def resnet(self, name, x, temb):
        h = self.conv(f"{name}.conv1", silu(self.group_norm(f"{name}.norm1", x, self.over_frames)))
        h = h + self.linear(f"{name}.time_emb_proj", silu(temb))[:, None, None, None]
        h = self.conv(f"{name}.conv2", silu(self.group_norm(f"{name}.norm2", h, self.over_frames)))
        shortcut = f"{name}.conv_shortcut"
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.tensors else x)

    def transformer(self, name, x, text):
        h = self.conv(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, False, 1e-6))
        h = rearrange(h, "b f h w c -> b f (h w) c")
        h = self.block(f"{name}.transformer_blocks.0", h, text)
        h = rearrange(h, "b f (h w) c -> b f h w c", h=x.shape[2])
        return x + self.conv(f"{name}.proj_out", h)

    def block(self, name, h, text):
        """A transformer block of `b f p c`: eq. 4, the text, the MLP, and the frames."""
        inputs = self.layer_norm(f"{name}.norm1", h)
        attended = np.zeros_like(h)
        for frame in range(h.shape[1]):
            context = np.concatenate([inputs[:, 0], inputs[:, max(frame - 1, 0)]], axis=1)
            attended[:, frame] = self.attention(f"{name}.attn1", inputs[:, frame], context)
        h = h + attended
        inputs = self.layer_norm(f"{name}.norm2", h)
        for frame in range(h.shape[1]):
            attended[:, frame] = self.attention(f"{name}.attn2", inputs[:, frame], text)
        h = h + attended
        both = self.linear(f"{name}.ff.net.0.proj", self.layer_norm(f"{name}.norm3", h))
        value, gate = np.split(both, 2, -1)
        h = h + self.linear(f"{name}.ff.net.2", value * gelu(gate))
        rows = rearrange(self.layer_norm(f"{name}.norm_temp", h), "b f p c -> (b p) f c")
        over_frames = self.attention(f"{name}.attn_temp", rows, rows)
        return h + rearrange(over_frames, "(b p) f c -> b f p c", b=len(h))

    def attention(self, name, queries, context):
        heads = self.config["attention_head_dim"]  # by its published name
        q, k, v = (
            rearrange(self.linear(f"{name}.to_{key}", x), "n l (h d) -> n h l d", h=heads)
            for key, x in (("q", queries), ("k", context), ("v", context))
        )
        scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(f"{name}.to_out.0", rearrange(out, "n h l d -> n l (h d)"))

    def linear(self, name, x):
        out = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None else out + bias

    def conv(self, name, x):
        kernel = self.tensors[f"{name}.weight"]  # (out, in, 3, 3) or (out, in, 1, 1)
        size, (height, width) = kernel.shape[-1], x.shape[2:4]
        padding = [(0, 0), (0, 0), *[(size // 2,) * 2] * 2, (0, 0)]
        padded = np.pad(x, padding)
        out = 0.0
        for row in range(size):
            for column in range(size):
                part = padded[:, :, row : row + height, column : column + width]
                out = out + part @ kernel[:, :, row, column].T
        return out + self.tensors[f"{name}.bias"]

    def group_norm(self, name, x, over_frames, epsilon=1e-5):
        grouped = rearrange(x, "b f h w (g c) -> b f h w g c", g=self.config["norm_num_groups"])
        axes = (1, 2, 3, 5) if over_frames else (2, 3, 5)
        mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
        normal = rearrange((grouped - mean) / np.sqrt(variance + epsilon), "... g c -> ... (g c)")
        return normal * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def layer_norm(self, name, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        normal = (x - mean) / np.sqrt(variance + 1e-5)
        return normal * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
