"""A Sora-like video model (Brooks et al. 2024) as Wan 2.1 is published (Wan Team 2025).

A frozen causal autoencoder makes latents of a clip (section 4.1). A transformer on their spacetime
patches is trained by rectified flow (section 4.2.2): it predicts the velocity ε - x at logit-normal
times, which are shifted towards noise for large clips. Its tokens attend to the states of a frozen
umT5, and the null condition is the empty text. An image is a clip of one frame.

The values of a configuration are those of the published folder: `model.transformer` is the
transformer's config.json, `model.scheduler` is scheduler_config.json, and `model.autoencoder` is
the folder of the autoencoder.
"""

import hashlib
import math
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import LogNormal
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.stage.causal_space import CausalLatentSpace
from vdm_jax.stage.conditions.prompt import TextOrNull
from vdm_jax.stage.space import AUTOENCODER
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import FrozenPart
from vdm_jax.systems.network import DTYPES, make_text_encoder
from vdm_jax.systems.pipeline_folder import copy_parts, write_json
from vdm_jax.weights import causal_autoencoder as autoencoder_weights
from vdm_jax.weights import flow_scheduler, published, scheduler, video_transformer

NAME = "video_dit"
_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# Of the published pipeline, with the only values that are computed here: Wan 2.2 has two
# transformers, or a time for each token.
_FIXED = {
    "transformer_2": [None, None],
    "boundary_ratio": None,
    "expand_timesteps": False,
}
_HERE = Path("configuration")  # what errors name in the place of a file


def build(config: ConfigDict) -> Stage:
    """The model: transformer, process and latent space. Raises ValueError, FileNotFoundError."""
    model, flow = config.model, make_scheduler(config)
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    network = video_transformer.from_config(model.transformer.to_dict(), _HERE).clone(
        time=flow.time, dtype=DTYPES[model.dtype], remat=model.remat
    )
    autoencoder = _autoencoder(config)
    encoder = make_text_encoder(config.text)
    if encoder is None or encoder.embedding_width != network.text_width:
        raise ValueError(
            f"text.encoder = {config.text.encoder!r}: model.transformer.text_dim = "
            f"{network.text_width} asks for an encoder of that width"
        )
    data = config.data
    if data.image_frames:
        raise ValueError(
            f"data.image_frames = {data.image_frames}: must be 0; the autoencoder would take "
            "images beside a clip for its next frames"
        )
    height, width = data.image_size, data.image_width or data.image_size
    _check_size(network, autoencoder, height, width)
    shape = (data.num_frames, height, width, autoencoder.in_channels)
    return Stage(
        network=network,
        process=Process(
            schedule=flow.schedule,
            prediction="velocity",
            loss_name="velocity_mse",
            # logit t ~ N(0, 1), which the shift moves by log α.
            training_schedule=LogNormal(P_mean=math.log(flow.shift), P_std=1.0),
        ),
        space=CausalLatentSpace(data_shape=shape, autoencoder=autoencoder),
        view=View(shape=shape),
        conditions=(TextOrNull(encoder=encoder, drop=config.train.cond_dropout),),
    )


def _check_size(
    network: VideoTransformer, autoencoder: CausalAutoencoder, height: int, width: int
) -> None:
    """Raises ValueError for clips that make no whole patches, and for other latents."""
    multiple = autoencoder.factor * network.multiple
    if height % multiple or width % multiple:
        raise ValueError(
            f"data.image_size = {height}, data.image_width = {width}: must be multiples of "
            f"{multiple}, the pixels of a patch"
        )
    if network.in_channels != autoencoder.latent_channels:
        raise ValueError(
            f"model.transformer.in_channels = {network.in_channels}: the autoencoder's latents "
            f"have {autoencoder.latent_channels}; networks that take more beside z are not "
            "supported"
        )


def make_scheduler(config: ConfigDict) -> flow_scheduler.FlowScheduler:
    """The flow and the sampler of a configuration. Raises ValueError."""
    return flow_scheduler.from_config(config.model.scheduler.to_dict(), _HERE)


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: the autoencoder's. Raises ValueError,
    FileNotFoundError."""
    network, params = autoencoder_weights.read_folder(_folder(config.model.autoencoder))
    return {AUTOENCODER: FrozenPart(params, network.abstract_params())}


def frozen_networks(config: ConfigDict) -> dict[str, CausalAutoencoder]:
    """The networks of `read_frozen`. No weights are read."""
    return {AUTOENCODER: _autoencoder(config)}


def default_config() -> ConfigDict:
    """Every field of a configuration, with the values of Wan 2.1's network of 1.3 billion
    parameters at 480p."""
    base = vdm.default_config().to_dict()
    config = ConfigDict(
        {
            **base,
            "system": NAME,
            "model": {
                "transformer": video_transformer.config(VideoTransformer()),
                "scheduler": dict(_SCHEDULER),
                "autoencoder": "",
                # Latent frames that are encoded and decoded at once.
                "at_once": 1,
                "dtype": "bfloat16",
                "remat": "full",
            },
        }
    )
    del config["process"]  # `model.scheduler` is it
    config.data.update({"num_frames": 81, "image_size": 480, "image_width": 832, "fps": 16.0})
    config.text.update({"encoder": "umt5_xxl", "max_length": 512})
    config.sample.update({"sampler": "unipc", "steps": 50, "guidance": 5.0, "threshold": "none"})
    config.sample.batch_size = 1
    return config.lock()


_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
    "solver_type": "bh2",
}


def read_published(folder: Path) -> ConfigDict:
    """The configuration of a published pipeline, a folder of model_index.json, transformer/, vae/,
    text_encoder/, tokenizer/ and scheduler/.

    Raises FileNotFoundError; ValueError naming a part or a value that is not understood.
    """
    path = folder / published.PIPELINE
    index = published.read_json(path)
    known = {*_PARTS, *_FIXED}
    if unknown := sorted(n for n in index if n not in known and not n.startswith("_")):
        raise ValueError(f"{path}: {', '.join(unknown)}: not understood")
    for name, only in _FIXED.items():
        if index.get(name, only) != only:
            raise ValueError(
                f"{path}: {name} = {index[name]!r}: allowed is {only!r}, as in Wan 2.1"
            )
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: no such folder; the pipeline needs it")
    video_transformer.read_config(folder / "transformer")  # errors name the file
    flow = flow_scheduler.read_folder(folder / "scheduler")
    config = default_config()
    with config.unlocked():
        for name, file in (("transformer", "config.json"), ("scheduler", scheduler.FILE)):
            config.model[name] = ConfigDict(published.read_json(folder / name / file))
    config.model.autoencoder, config.model.dtype = str(folder / "vae"), "float32"
    config.text.encoder, config.text.weights = "umt5", str(folder)
    config.sample.sampler = flow.kind
    return config


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's transformer. Raises ValueError,
    FileNotFoundError."""
    return video_transformer.read_folder(folder / "transformer").params


def published_digest(folder: Path) -> str:
    """What names the transformer and the sampler. Raises ValueError, FileNotFoundError."""
    digests = published.Tensors(folder / "transformer", published.DIFFUSERS).digests
    text = (folder / "scheduler" / scheduler.FILE).read_text(encoding="utf-8")
    return hashlib.sha256(f"{digests.name} {text}".encode()).hexdigest()


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes a published pipeline, and returns the names of its parts.

    The autoencoder and the text encoder are copied from where the model reads them. Without a
    text encoder in the layout of the published pipeline, the folder holds parts and no pipeline.
    dtype: of the transformer's tensors. Raises FileExistsError, ValueError.
    """
    network = video_transformer.from_config(config.model.transformer.to_dict(), _HERE)
    video_transformer.write_folder(folder / "transformer", network, params, jnp.dtype(dtype))
    write_json(folder / "scheduler" / scheduler.FILE, config.model.scheduler.to_dict())
    copied = {"vae": _folder(config.model.autoencoder)}
    weights = Path(config.text.weights).expanduser()
    text_parts = ("text_encoder", "tokenizer")
    if config.text.weights and (weights / "text_encoder").is_dir():
        copied |= {part: weights / part for part in text_parts}
    copy_parts(folder, copied)
    if "tokenizer" in copied:
        index = {**_INDEX, "scheduler": ["diffusers", config.model.scheduler["_class_name"]]}
        if (weights / published.PIPELINE).is_file():  # it names their classes
            theirs = published.read_json(weights / published.PIPELINE)
            index |= {part: theirs[part] for part in text_parts if part in theirs}
        write_json(folder / published.PIPELINE, index)
    return ["transformer", "scheduler", *copied]


_INDEX = {
    "_class_name": "WanPipeline",
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def _autoencoder(config: ConfigDict) -> CausalAutoencoder:
    """That of the folder; without one Wan 2.1's, so that shapes are known. Raises ValueError,
    FileNotFoundError."""
    folder = config.model.autoencoder
    found = autoencoder_weights.read_config(_folder(folder)) if folder else CausalAutoencoder()
    return found.clone(at_once=config.model.at_once)


def _folder(name: str) -> Path:
    """The folder of an autoencoder. Raises ValueError."""
    if not name:
        raise ValueError("model.autoencoder = '': must name the folder of the autoencoder's files")
    return Path(name).expanduser()
