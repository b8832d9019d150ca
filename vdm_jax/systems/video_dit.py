"""A Sora-like video model (Brooks et al. 2024) as Wan 2.1 is published (Wan Team 2025).

A frozen causal autoencoder makes latents of a clip (section 4.1). A transformer on their spacetime
patches is trained by rectified flow (section 4.2.2): it predicts the velocity ε - x at logit-normal
times, which are shifted towards noise for large clips. Its tokens attend to the states of a frozen
umT5, and the null condition is the empty text. An image is a clip of one frame.

With `model.masks` parts of a clip may be known: they enter without noise, at t = 0 (masked-frame
conditioning; Zheng et al. 2024, Open-Sora 1.1).

The values of a configuration are those of the published folder: `model.transformer` is the
transformer's config.json, `model.scheduler` is scheduler_config.json, and `model.autoencoder` is
the folder of the autoencoder. `video_dit_folder.py` reads and writes such folders.
"""

import math
from pathlib import Path

from ml_collections import ConfigDict

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import LogNormal
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.models.condition import vector
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.stage.causal_space import CausalLatentSpace
from vdm_jax.stage.conditions.prompt import TextOrNull
from vdm_jax.stage.conditions.video import MaskedVideo
from vdm_jax.stage.known_frames import KnownFrames
from vdm_jax.stage.native_sizes import Size, SizedStage
from vdm_jax.stage.refinement import Plain
from vdm_jax.stage.space import AUTOENCODER
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import vdm
from vdm_jax.systems.composition import FrozenPart, clip_view, guidance_conditions
from vdm_jax.systems.network import DTYPES, make_text_encoder
from vdm_jax.systems.pipeline_folder import part_folder
from vdm_jax.weights import causal_autoencoder as autoencoder_weights
from vdm_jax.weights import flow_scheduler, video_transformer

NAME = "video_dit"
_PREDICTION = "velocity"
HERE = Path("configuration")  # what errors name in the place of a file


def build(config: ConfigDict) -> Stage:
    """The model: transformer, process and latent space. Raises ValueError, FileNotFoundError."""
    model, flow = config.model, make_scheduler(config)
    if model.dtype not in DTYPES:
        raise ValueError(f"model.dtype = {model.dtype!r}: allowed are {', '.join(DTYPES)}")
    guided = model.get("guidance_embedding", False)  # of a network that was distilled
    network = video_transformer.from_config(model.transformer.to_dict(), HERE).clone(
        time=flow.time,
        conditions=(vector.GUIDANCE,) if guided else (),
        dtype=DTYPES[model.dtype],
        remat=model.remat,
    )
    autoencoder = _autoencoder(config)
    encoder = make_text_encoder(config)
    if encoder is None or encoder.embedding_width != network.text_width:
        raise ValueError(
            f"text.encoder = {config.text.encoder!r}: model.transformer.text_dim = "
            f"{network.text_width} asks for an encoder of that width"
        )
    sizes = tuple(Size(*map(int, size)) for size in config.data.get("sizes", ()))
    views = [clip_view(config.data, autoencoder.in_channels, size[:3]) for size in sizes or [()]]
    for view in views:
        _check_size(network, autoencoder, *view.shape[1:3])
    spaces = [CausalLatentSpace(data_shape=view.shape, autoencoder=autoencoder) for view in views]
    texts = (TextOrNull(encoder=encoder, drop=config.train.cond_dropout),)
    kinds, stages = tuple(model.get("masks", ())), []
    for view, space in zip(views, spaces, strict=True):
        # Tokens of a clip, as a share of the first size's: √ of it shifts towards noise (Esser et
        # al. 2024, equation 23).
        share = math.prod(space.z_shape[:3]) / math.prod(spaces[0].z_shape[:3])
        masked = MaskedVideo(shape=view.shape, z_shape=space.z_shape, kinds=kinds)
        stages.append(
            Stage(
                network=network,
                process=Process(
                    schedule=flow.schedule,
                    prediction=_PREDICTION,
                    loss_name="velocity_mse",
                    # logit t ~ N(0, 1), which the shift moves by log α.
                    training_schedule=LogNormal(
                        P_mean=math.log(flow.shift * math.sqrt(share)), P_std=1.0
                    ),
                ),
                space=space,
                view=view,
                conditions=(*texts, *guidance_conditions(config), *((masked,) if kinds else ())),
                parametrisation=KnownFrames(prediction=_PREDICTION) if kinds else Plain(),
            )
        )
    return SizedStage.of(tuple(stages), sizes, config.data.packed) if sizes else stages[0]


def _check_size(
    network: VideoTransformer, autoencoder: CausalAutoencoder, height: int, width: int
) -> None:
    """Raises ValueError for clips that make no whole patches, and for other latents."""
    multiple = autoencoder.factor * network.multiple
    if height % multiple or width % multiple:
        raise ValueError(
            f"data.image_size = {height}, data.image_width = {width}: must be multiples of "
            f"{multiple}, the pixels of a patch, and so must those of data.part and data.sizes"
        )
    if network.in_channels != autoencoder.latent_channels:
        raise ValueError(
            f"model.transformer.in_channels = {network.in_channels}: the autoencoder's latents "
            f"have {autoencoder.latent_channels}; networks that take more beside z are not "
            "supported"
        )


def make_scheduler(config: ConfigDict) -> flow_scheduler.FlowScheduler:
    """The flow and the sampler of a configuration. Raises ValueError."""
    return flow_scheduler.from_config(config.model.scheduler.to_dict(), HERE)


def read_frozen(config: ConfigDict) -> dict[str, FrozenPart]:
    """The parameters that are not trained: the autoencoder's. Raises ValueError,
    FileNotFoundError."""
    network, params = autoencoder_weights.read_folder(part_folder(config.model.autoencoder))
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
                # What may be known of a clip, of `diffusion.masks.KINDS`; () = nothing is.
                "masks": (),
                # Latent frames that are encoded and decoded at once.
                "at_once": 1,
                "dtype": "bfloat16",
                "remat": "full",
            },
        }
    )
    del config["process"]  # `model.scheduler` is it
    config.data.update({"num_frames": 81, "image_size": 480, "image_width": 832, "fps": 16.0})
    with config.unlocked():
        # The size that is trained on, see `clip_view`; or several, (frames, height, width, clips of
        # a row), of which batches have one each, or, packed, all in each row. native: whether video
        # files are read in the size alone whose width over height is nearest to theirs.
        config.data.update({"part": (), "sizes": (), "packed": False, "native": False})
    # The null condition is the empty text, whichever encoder there is.
    config.text.update({"encoder": "umt5_xxl", "max_length": 512, "null_text": ""})
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


def _autoencoder(config: ConfigDict) -> CausalAutoencoder:
    """That of the folder; without one Wan 2.1's, so that shapes are known. Raises ValueError,
    FileNotFoundError."""
    folder = config.model.autoencoder
    found = autoencoder_weights.read_config(part_folder(folder)) if folder else CausalAutoencoder()
    return found.clone(at_once=config.model.at_once)
