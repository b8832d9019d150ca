"""Our side of `benchmarks.run`: a stage like a peer's network, its train step, its sampler.

Run by `benchmarks.run`, one process for each dtype: see `benchmarks.serving`.
"""

import argparse
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import serving
from benchmarks.pairs import PAIRS, Pair

# What Sampler takes where a configuration says nothing: the library's own default.
DEFAULT_SAMPLER = "DDIM"
# Whose states have that many features; they are not computed here.
_ENCODERS = {384: "minilm", 768: "t5_base"}


class Side:
    """One network of ours in its works, on random inputs that are on the device.

    Everything is built and compiled on first use: a process that measures memory holds only what
    it needs. Each function is compiled ahead of time. A subclass makes them (`makers`) and says
    what it is (`describe`).
    """

    def __init__(self, pair: Pair, *, batch: int, device: str, cache: str):
        import jax

        from vdm_jax.cli import common

        common.setup(device, quiet=True)  # as every command of ours is run
        self._cache = Path(cache)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        self._jax, self._pair, self._batch_size = jax, pair, batch
        self._device = jax.devices()[0]
        self._calls: dict[str, Any] = {}
        self._idle = serving.resident()

    def operations(self) -> dict:
        """What is served."""
        return {
            "describe": self.describe,
            "prepare": self.prepare,
            "timed": self.timed,
            "memory": self.memory,
        }

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """By work, what compiles it and returns its function without arguments, which returns when
        all is done."""
        raise NotImplementedError

    def describe(self) -> dict:
        """What the network is and where it runs."""
        return {
            "threads": len(os.sched_getaffinity(0)),
            "device": self._device.device_kind,
            "versions": {name: _version(name) for name in ("jax", "jaxlib", "flax", "vdm_jax")},
            "python": platform.python_version(),
        }

    def prepare(self, work: str, warmup: int) -> dict:
        """Compiles `work` and runs it `warmup` times.

        `cold`: whether the compiler was really run, and did not find its result in the cache.
        """
        held = self._entries()
        started = time.perf_counter()
        self._call(work)
        seconds = time.perf_counter() - started
        serving.timed(self._calls[work], warmup)
        return {"compile_s": seconds, "cold": self._entries() > held}

    def timed(self, work: str, steps: int, budget: float) -> dict:
        """Seconds of each of `steps` steps, or whole samples."""
        return {"seconds": serving.timed(self._call(work), steps)}

    def memory(self, work: str) -> dict:
        """The peak of two steps, weights included, above the idle process (on the CPU), or of the
        whole process (on accelerators, where the peak cannot be reset)."""
        from vdm_jax.parallel import heap

        call = self._call(work)
        call()
        heap.trim()  # as after the first update, and the first batch of samples
        if self._device.platform == "cpu":
            serving.reset_peak()
            serving.timed(call, 2)
            return {"peak_bytes": serving.peak_resident() - self._idle}
        serving.timed(call, 2)
        return {"peak_bytes": self._device.memory_stats()["peak_bytes_in_use"]}

    def _call(self, work: str):
        """The compiled function of `work`."""
        if work not in self._calls:
            self._calls[work] = self.makers()[work]()
        return self._calls[work]

    def _entries(self) -> int:
        return sum(1 for _ in self._cache.iterdir()) if self._cache.is_dir() else 0


class Ours(Side):
    """One mirrored network in training and in sampling, by the same jitted functions that
    `launch.train` and `launch.sample` call."""

    def __init__(self, pair: Pair, *, batch: int, dtype: str, device: str, cache: str):
        super().__init__(pair, batch=batch, device=device, cache=cache)

        from vdm_jax.stage import sampler as sampling
        from vdm_jax.training import step as _step  # noqa: F401  imported before `idle` is taken

        self._config = make_config(pair, batch, dtype)
        self._stage = make_stage(pair, self._config)
        self._sampler = sampling.Sampler(stage=self._stage)
        self._idle = serving.resident()

    def operations(self) -> dict:
        """See `Side`."""
        return {**super().operations(), "first_clip": self.first_clip}

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """See `Side`."""
        return {"train": self._train, "denoise": self._denoise, "sample": self._sample}

    def describe(self) -> dict:
        """As `Side`; operations for one clip are counted from the traced function."""
        from benchmarks.counting import count_flops
        from vdm_jax.training import state

        jax = self._jax
        params = jax.eval_shape(self._stage.init, jax.random.key(0))
        clip = jax.ShapeDtypeStruct((1, *self._stage.video_shape), "float32")
        logsnr = jax.ShapeDtypeStruct((1,), "float32")
        cond = self._stage.cond_shapes(1, 0)
        forward = jax.make_jaxpr(
            lambda params, z, logsnr, cond: self._stage.network.apply(
                {"params": params}, z, logsnr, cond
            )
        )(params, clip, logsnr, cond)
        return super().describe() | {
            "parameters": state.count_parameters(params),
            "flops": count_flops(forward.jaxpr),
            "sampler": DEFAULT_SAMPLER,
            "steps": self._sampler.steps,
        }

    def first_clip(self, budget: float) -> dict:
        """One sample of all steps; the process has just been started."""
        self._call("sample")()
        return {"remaining_s": 0.0, "label": f"{self._sampler.steps} steps of {DEFAULT_SAMPLER}"}

    def _batch(self, size: int) -> dict:
        import numpy as np

        rng = np.random.default_rng(0)
        batch = {}
        for name, leaf in self._stage.abstract_batch(size).items():
            if leaf.dtype == bool:
                batch[name] = np.ones(leaf.shape, bool)
            else:
                high = 256 if leaf.dtype == np.uint8 else 4
                batch[name] = rng.integers(0, high, leaf.shape).astype(leaf.dtype)
        return self._jax.device_put(batch)

    def _params(self):
        from vdm_jax.training import state

        with state.random_bits_by_kernel():
            return self._jax.jit(self._stage.init)(self._jax.random.key(0))

    def _train(self):
        from vdm_jax.parallel import sharding
        from vdm_jax.training import optimizer, state, step

        jax = self._jax
        tx = optimizer.make_optimizer(self._config.train, self._stage.abstract_params())
        plan = sharding.make_plan(self._stage, {"data": 1}, jax.devices()[:1])
        batch = self._batch(self._batch_size)
        held = [state.create_state(self._stage, tx, 0, plan)]
        train = step.make_train_step(self._stage, tx, self._config, plan)
        compiled = train.lower(held[0], batch).compile()
        update = dataclasses.replace(train, compiled=compiled)

        def call():
            held[0], metrics = update(held[0], batch)
            jax.block_until_ready((held[0], metrics))

        return call

    def _denoise(self):
        from vdm_jax.diffusion import samplers

        jax, stage = self._jax, self._stage
        cond = stage.example(self._batch(self._batch_size), jax.random.key(0))[1]
        noise = jax.random.normal(jax.random.key(0), (self._batch_size, *stage.video_shape))
        logsnrs = self._sampler.logsnrs()
        middle = logsnrs[len(logsnrs) // 2 :][:2]
        params, key = self._params(), jax.random.key(0)

        @jax.jit
        def denoise(params, key, z, cond):
            denoiser, rule = self._sampler.denoiser_and_rule(params)
            return samplers.sample(key, denoiser, rule, middle, z, cond)

        compiled = denoise.lower(params, key, noise, cond).compile()
        return lambda: jax.block_until_ready(compiled(params, key, noise, cond))

    def _sample(self):
        import numpy as np

        jax = self._jax
        cond = self._stage.example(self._batch(1), jax.random.key(0))[1]
        key, number = jax.random.key(0), np.zeros(1, np.uint32)
        inputs = (self._params(), {}, key, number, cond, None, None)
        compiled = self._sampler.compiled.lower(*inputs).compile()
        return lambda: np.asarray(compiled(*inputs)[0])


class OurAutoencoder(Side):
    """A published autoencoder of ours, on random images."""

    def __init__(self, pair: Pair, *, batch: int, dtype: str, device: str, cache: str):
        super().__init__(pair, batch=batch, device=device, cache=cache)

        from vdm_jax.weights import autoencoder

        network = autoencoder.from_config(pair.network, Path(pair.name))
        self._network = network.clone(dtype=dtype)
        self._idle = serving.resident()

    def makers(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """See `Side`."""
        return {"encode": lambda: self._make("encode"), "decode": lambda: self._make("decode")}

    def describe(self) -> dict:
        """As `Side`; operations of an image and back are counted from the traced functions."""
        from benchmarks.counting import count_flops
        from vdm_jax.training import state

        jax, params = self._jax, self._abstract_params()
        traced = [
            jax.make_jaxpr(self._function(work))(params, self._shape(work, 1))
            for work in self.makers()
        ]
        return super().describe() | {
            "parameters": state.count_parameters(params),
            "flops": sum(count_flops(each.jaxpr) for each in traced),
        }

    def _make(self, work: str):
        jax, shape = self._jax, self._shape(work, self._batch_size)
        params = jax.tree.map(lambda leaf: _noise(leaf.shape, 0.02), self._abstract_params())
        given = jax.device_put(_noise(shape.shape, 1.0))
        params = jax.device_put(params)
        compiled = jax.jit(self._function(work)).lower(params, given).compile()
        return lambda: jax.block_until_ready(compiled(params, given))

    def _function(self, work: str):
        network = self._network

        def encode(params, images):
            return network.apply({"params": params}, images, method="encode").mode()

        def decode(params, latents):
            return network.apply({"params": params}, latents, method="decode")

        return {"encode": encode, "decode": decode}[work]

    def _shape(self, work: str, images: int):
        size, network = self._pair.size, self._network
        small = size // network.factor
        shapes = {
            "encode": (images, size, size, network.in_channels),
            "decode": (images, small, small, network.latent_channels),
        }
        return self._jax.ShapeDtypeStruct(shapes[work], "float32")

    def _abstract_params(self):
        import flax.linen as nn

        return nn.meta.unbox(self._network.abstract_params())


def _noise(shape: tuple[int, ...], scale: float):
    import numpy as np

    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def make_config(pair: Pair, batch: int, dtype: str):
    """The configuration of a mirrored network, trained as the peers train: Adam at 1e-4.

    Clipping, the test for finite numbers and averaging are as in every configuration of ours.
    """
    from vdm_jax.systems import vdm

    config = vdm.default_config()
    with config.unlocked():  # some peers' networks have fields that VDM's does not
        fields = {} if _is_latent(pair) else pair.network
        config.model.update({**fields, "dtype": dtype, "embedding_dim": 0})
    config.process.update({"prediction": "eps", "loss": "eps_mse"})
    config.data.update({"num_frames": pair.frames, "image_size": pair.size})
    if _is_latent(pair):
        encoder = _ENCODERS[pair.text_dim]
        config.text.update({"encoder": encoder, "max_length": pair.text_length})
    elif pair.text_length:
        words = {"encoder": "words", "max_length": pair.text_length, "vocabulary_size": 8}
        config.text.update({**words, "vocabulary": ("a", "red", "circle", "left")})
    config.train.update(
        {"batch_size": batch, "learning_rate": 1e-4, "warmup_steps": 0, "beta2": 0.999}
    )
    config.train.update({"ema_decay": 0.999, "cond_dropout": 0.0})
    return config


def make_stage(pair: Pair, config):
    """The stage of a mirrored network, with the layers of its peer."""
    from benchmarks.mirror import mirror
    from vdm_jax.systems import vdm

    stage = vdm.build(config)
    if _is_latent(pair):
        return _with_latent_unet(stage, pair)
    network = mirror(stage.network, pair.mirror)
    return dataclasses.replace(stage, network=network, train_only=pair.train_only)


def _with_latent_unet(stage, pair: Pair):
    """The stage with a published U-Net as its network, and latents in the place of pixels."""
    from vdm_jax.stage.conditions.still import Micro
    from vdm_jax.stage.space import PixelSpace
    from vdm_jax.stage.view import View
    from vdm_jax.weights import latent_unet, stable_video

    conditions = stage.conditions
    if pair.network["_class_name"] == stable_video.CLASS:
        network = stable_video.from_config(pair.network, Path(pair.name))
        network = network.clone(text="text_embeddings", videos=())
        conditions += (Micro(fps=7.0, full_motion=0.1, augmentation=True),)
    else:
        network = latent_unet.from_config(pair.network, Path(pair.name))
    shape = (pair.frames, pair.size, pair.size, pair.channels)
    return dataclasses.replace(
        stage,
        network=network.clone(dtype=stage.network.dtype),
        space=PixelSpace(data_shape=shape),
        view=View(shape=shape),
        conditions=conditions,
    )


def _is_latent(pair: Pair) -> bool:
    return "_class_name" in pair.network


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        import vdm_jax

        return vdm_jax.__version__ if package == "vdm_jax" else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=tuple(PAIRS), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--cache", required=True)
    options = parser.parse_args()
    pair = PAIRS[options.pair]
    side = OurAutoencoder if "encode" in pair.works else Ours
    serving.serve(
        lambda: side(
            pair,
            batch=options.batch,
            dtype=options.dtype,
            device=options.device,
            cache=options.cache,
        ).operations()
    )


if __name__ == "__main__":
    main()
