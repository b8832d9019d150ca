"""Our side of `benchmarks.parity`: reads a published folder as users do, measures that, and
computes what the original has computed."""

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from benchmarks import serving
from benchmarks.parity_networks import INPUT, OUTPUT, RECORDED
from vdm_jax.diffusion import schedules
from vdm_jax.weights import (
    autoencoder,
    causal_autoencoder,
    clip,
    controlnet,
    latent_unet,
    motion_adapter,
    video_transformer,
)

Arrays = dict[str, Any]


class Reader(NamedTuple):
    """How a kind of network is read from a comparison's folder, and what is computed with it."""

    read: Callable[[Path], tuple[Any, dict[str, Any]]]
    compute: Callable[[Any, PyTree, Arrays], Arrays]


def _with_motion(folder: Path) -> latent_unet.Loaded:
    network, params = latent_unet.read_folder(folder / "network")
    return motion_adapter.add_motion(network, params, motion_adapter.read_folder(folder / "motion"))


def _unet(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    return {"video": network.apply({"params": params}, *_latent_inputs(network, inputs))}


def _controlnet(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    middle, skips = network.apply(
        {"params": params}, *_latent_inputs(network, inputs), inputs["hint"]
    )
    return {"middle": middle, **{f"skip_{number}": skip for number, skip in enumerate(skips)}}


def _latent_inputs(network: Any, inputs: Arrays) -> tuple[Any, ...]:
    logsnr = jnp.asarray(network.time.schedule.logsnrs)[inputs["timestep"]]
    return inputs["z"], logsnr, {network.text: inputs["text"]}


def _text(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    return network.apply({"params": params}, inputs["tokens"], method="encode")._asdict()


def _vision(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    return network.apply({"params": params}, inputs["images"])._asdict()


def _image_autoencoder(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    return _encoded_and_decoded(network, params, inputs, frames=1)


def _video_autoencoder(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    return _encoded_and_decoded(network, params, inputs, frames=len(inputs["latents"]))


def _encoded_and_decoded(network: Any, params: PyTree, inputs: Arrays, frames: int) -> Arrays:
    variables = {"params": params}
    posterior = network.apply(variables, inputs["images"], method="encode")
    decoded = network.apply(variables, inputs["latents"], frames, method="decode")
    outputs = {"mean": posterior.mode(), "decoded": decoded}
    if posterior.log_variance is not None:
        outputs["log_variance"] = posterior.log_variance
    return outputs


def _wan(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    t = inputs["timestep"] / network.time.num_timesteps
    logsnr = 2 * (jnp.log1p(-t) - jnp.log(t))
    # The original takes rectified flow's z.
    z = schedules.flow_to_vp(inputs["z"], logsnr)
    cond = {network.text: inputs["text"]}
    return {"video": network.apply({"params": params}, z, logsnr, cond)}


def _wan_autoencoder(network: Any, params: PyTree, inputs: Arrays) -> Arrays:
    variables = {"params": params}
    posterior = network.apply(variables, inputs["clip"], method="encode")
    decoded = network.apply(variables, inputs["latents"], method="decode")
    return {
        "mean": posterior.mode(),
        "log_variance": posterior.log_variance,
        "decoded": decoded,
    }


READERS = {
    "unet": Reader(lambda folder: latent_unet.read_folder(folder / "network"), _unet),
    "controlnet": Reader(lambda folder: controlnet.read_folder(folder / "network"), _controlnet),
    "motion": Reader(_with_motion, _unet),
    "text": Reader(lambda folder: clip.read_folder(folder / "network"), _text),
    "vision": Reader(lambda folder: clip.read_folder(folder / "network"), _vision),
    "autoencoder": Reader(
        lambda folder: autoencoder.read_folder(folder / "network"), _image_autoencoder
    ),
    "temporal": Reader(
        lambda folder: autoencoder.read_folder(folder / "network"), _video_autoencoder
    ),
    "tiny": Reader(lambda folder: autoencoder.read_folder(folder / "network"), _image_autoencoder),
    "wan": Reader(lambda folder: video_transformer.read_folder(folder / "network"), _wan),
    "wan-autoencoder": Reader(
        lambda folder: causal_autoencoder.read_folder(folder / "network"), _wan_autoencoder
    ),
}


def compare(kind: str, folder: str) -> dict:
    """What reading the networks in `folder` takes, and how far our outputs are from those recorded.

    Returns:
      parameters: their number.
      tensors: in the files.
      file_bytes: of all safetensors files.
      load_seconds: of the reader, the files' checksums among them.
      load_bytes: the most memory held while reading, above that before it (Linux).
      differences: by output, see `difference`.
      versions: of the packages.
    """
    reader = READERS[kind]
    files = sorted(Path(folder).glob("*/*.safetensors"))
    before = serving.resident()
    serving.reset_peak()
    started = time.perf_counter()
    network, params = reader.read(Path(folder))
    load_seconds = time.perf_counter() - started
    load_bytes = serving.peak_resident() - before
    recorded = safetensors.numpy.load_file(Path(folder) / RECORDED)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    _put_on_device(params)
    inputs = _with_prefix(recorded, INPUT)
    compute = jax.jit(lambda params, inputs: reader.compute(network, params, inputs))
    started = time.perf_counter()
    found = jax.device_get(compute(params, inputs))
    compute_seconds = time.perf_counter() - started
    wanted = _with_prefix(recorded, OUTPUT)
    if found.keys() != wanted.keys():
        raise ValueError(f"outputs are {sorted(found)}, the original's are {sorted(wanted)}")
    return {
        "parameters": parameters,
        "tensors": sum(_num_tensors(path) for path in files),
        "file_bytes": sum(path.stat().st_size for path in files),
        "load_seconds": load_seconds,
        "load_bytes": load_bytes,
        "compute_seconds": compute_seconds,
        "differences": {name: difference(found[name], wanted[name]) for name in wanted},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
    }


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the largest wanted value.

    Raises ValueError for other shapes and for values that are not finite, which would hide any.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"an output has shape {found.shape}, the original's has {wanted.shape}")
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise ValueError("an output has values that are not finite")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _put_on_device(params: dict[str, Any]) -> None:
    """One array at a time, so that no second copy of all parameters is held."""
    for name, value in params.items():
        if isinstance(value, dict):
            _put_on_device(value)
        else:
            params[name] = jax.block_until_ready(jnp.asarray(value))


def _with_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _num_tensors(path: Path) -> int:
    with safetensors.safe_open(path, framework="numpy") as file:
        return len(file.keys())


if __name__ == "__main__":
    serving.serve(lambda: {"compare": compare})
