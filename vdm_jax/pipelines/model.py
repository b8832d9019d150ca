"""Trained models: load one from a working directory, a file or the package, and sample it."""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Key, PyTree, UInt8

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.data import frame_rate
from vdm_jax.parallel import host_memory, sharding
from vdm_jax.pipelines import arguments, cascade_file, kept_shapes, model_file
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage import sampler_fields
from vdm_jax.stage.contrast import Contrast
from vdm_jax.stage.low_rank import BASE
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.reconstruction import Reconstruction
from vdm_jax.training import checkpoints
from vdm_jax.upgrade import upgrade
from vdm_jax.weights import published

SHIPPED = published.SHIPPED
DEFAULT = "moving_shapes"
_MOST_SAMPLERS = 8  # that a model keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained stage with its parameters (the moving average) and its configuration.

    The parts stand on their own: `model.schedule`, `model.denoiser` (a Denoiser with the
    parameters bound), `model.stage.network`, `model.sampler(steps=…)`.

    Attributes:
      frozen: parameters that the stage uses beside its own, by the part's name.
      plan: how it lies on a mesh, None = on one device.
    """

    stage: Any
    params: PyTree
    config: Any
    frozen: Frozen = dataclasses.field(default_factory=dict)
    plan: sharding.Plan | None = None
    _samplers: dict[str, sampling.Sampler] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def changed(self, fields: Mapping[str, Any]) -> "Model":
        """The same parameters in a stage of a changed configuration, such as of another size.

        fields: values by dotted names. Raises ValueError where a value is not allowed.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            for field, value in fields.items():
                section, name = field.split(".")
                config[section][name] = value
        stage = systems.build(config)
        return Model(
            stage=stage, params=self.params, config=config, frozen=self.frozen, plan=self.plan
        )

    @property
    def schedule(self) -> Any:
        """The noise schedule: t in [0, 1] to log-SNR."""
        return self.stage.process.schedule

    @property
    def denoiser(self) -> Any:
        """The Denoiser `(z, logsnr [b], cond) -> Prediction`, without guidance."""
        return self.stage.denoiser(self.params, host_memory.on_device(self.frozen, self.frozen))

    @property
    def fps(self) -> float:
        """Frames a second of the model's videos; 8 where that is not known (`frame_rate.known`)."""
        return frame_rate.playback(self.config)

    def sampler(self, **changes) -> sampling.Sampler:
        """The sampler of the configuration; changes: of `sampler_fields.FIELDS`.

        The same changes give the same sampler, so that it is compiled once. Raises ValueError for
        an autoencoder and for an image-text pair.
        """
        for kind, name in ((Reconstruction, "autoencoder"), (Contrast, "image-text pair")):
            if isinstance(self.stage, kind):
                raise ValueError(f"this model is an {name}, which makes no samples")
        name = repr(sorted((key, changes[key]) for key in _given(changes)))
        name += config_lib.to_json(self.config.sample)
        if name not in self._samplers:
            if len(self._samplers) >= _MOST_SAMPLERS:  # each holds a compiled program
                del self._samplers[next(iter(self._samplers))]
            sampler = sampling.Sampler.from_config(
                self.stage, self.config.sample, frozen=self.frozen, plan=self.plan, **changes
            )
            scheduler = systems.scheduler(self.config)
            if scheduler is not None and not {"sampler", "grid"} & _given(changes):
                parts = scheduler.sampling(sampler.steps)
                sampler = sampler_fields.with_published(sampler, parts, _given(changes))
            self._samplers[name] = sampler
        return self._samplers[name]

    def sample(
        self,
        key: Key[Array, ""],
        prompt: str | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: str | None = None,
        num_samples: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        num_frames: int | None = None,
        callback: sampling.Callback | None = None,
        preview: sampling.Preview | None = None,
        **changes,
    ) -> UInt8[np.ndarray, "n f h w c"]:
        """Draws videos: `num_samples` of each prompt, in the order of the prompts.

        Give `prompt` or `prompts`. What is None comes from the configuration (`config.sample`);
        `changes` are further fields of `sampler_fields.FIELDS` (sampler, grid, eta, threshold,
        batch_size). negative: a prompt that guidance leads away from. callback(step, steps) is
        called as sampling goes on, preview(step, steps, videos) now and then with the current
        estimates. The same key and arguments give the same videos.
        """
        repeated = arguments.as_prompts(prompt, prompts, num_samples)
        arguments.check_key(key)
        sampler = self.sampler(
            steps=steps, guidance=guidance, num_frames=num_frames, negative=negative, **changes
        )
        stream = sampler.stream(
            self.params,
            key,
            repeated,
            callback,
            preview=preview,
        )
        return np.concatenate(list(stream))


def _given(changes: Mapping[str, Any]) -> set[str]:
    """The names of the changes that are not None."""
    return {name for name, value in changes.items() if value is not None}


def load(
    source: str | Path = DEFAULT,
    *,
    mesh: Mapping[str, int] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    offload: bool = False,
) -> Model:
    """Loads a model: a working directory of training, a .safetensors file, the folder of a
    published pipeline, or a shipped name.

    Args:
      mesh: sizes of the axes of `parallel.mesh.AXES`, such as {"fsdp": 4}, over all devices; every
        process of the mesh calls this alike. None: the whole model on one device.
      loras: published LoRA files and their scales, which are added to the parameters.
      offload: as config.mesh.offload of training, whatever that was.

    Raises FileNotFoundError, ValueError, CheckpointError, MeshError.
    """
    path = _find(source)
    config = read_config(path)
    changes: Mapping[str, np.ndarray] = {}
    if loras:
        if systems.adaptation(config):
            raise ValueError(
                f"{path}: is adapted itself, to which no LoRAs are added; write "
                "it with its base first (vdm convert --to=diffusers --merged) and load that folder"
            )
        scales = {str(file): float(scale) for file, scale in loras.items()}
        config, changes = systems.read_loras(config, scales)
    config = _offloaded(config, offload)
    stage = systems.build(config)
    shapes = kept_shapes.abstract_params(stage, config)
    plan = None if mesh is None else sharding.make_plan(stage, mesh, shapes=shapes)
    params = _added(read_params(path, _placed_shapes(shapes, plan)), changes)
    frozen = {name: part.params for name, part in read_frozen(config, mesh).items()}
    return Model(stage=stage, params=params, config=config, frozen=frozen, plan=plan)


def _offloaded(config, offload: bool):
    """The configuration with mesh.offload as it is asked for."""
    if systems.is_offloaded(config) == offload:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh.offload = offload
    return config.lock()


def read_frozen(config, mesh: Mapping[str, int] | None = None) -> dict[str, sharding.Frozen]:
    """The parameters beside the trained ones that a configuration's stage uses; of an adapted
    model, the base's too.

    mesh: as in `load`. Raises as `load`; ValueError where the base has changed.
    """
    found = systems.read_frozen(config, mesh)
    if not (adapted := systems.adaptation(config)):
        return found
    section, base = config.train[adapted], systems.build_base(config)
    if section.digest and (now := digest(section.base)) != section.digest:
        raise ValueError(
            f"train.{adapted}.base = {section.base!r}: is {now}, and this model was trained on "
            f"{section.digest}; put that model back there"
        )
    plan = systems.frozen_plan(base, config, mesh)
    params = read_params(section.base, abstract_params(base, plan))
    return {**found, BASE: sharding.Frozen(params=params, plan=plan)}


def with_base(config):
    """The configuration of a run; that of an adapted model names its base by its digest. Raises as
    `load`; ValueError where no base is named."""
    if not (adapted := systems.adaptation(config)):
        return config
    if not config.train[adapted].base:
        raise ValueError(f"train.{adapted}.base = '': must name the model that is adapted")
    found = _find(config.train[adapted].base)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        section = config.train[adapted]
        section.digest = digest(found)
        if not found.is_relative_to(SHIPPED):
            section.base = str(found.absolute())
    return config.lock()


def read_config(source: str | Path):
    """The configuration that a model was trained with. Raises as `load`."""
    path = _find(source)
    if systems.is_published(path):
        return systems.read_published(path)
    if path.is_dir():
        return checkpoints.read_config(path)[1]
    return config_lib.from_dict(upgrade(dict(model_file.read_header(path).config)))


def digest(source: str | Path) -> str:
    """What names the parameters and the configuration of a model: "sha256:…".

    Of a file it is the digest that the file carries. Of a working directory it names the latest
    checkpoint's moving average. Raises as `load`.
    """
    path = _find(source)
    if systems.is_published(path):
        found = systems.published_digest(path)
    else:
        found = checkpoints.digest(path) if path.is_dir() else model_file.read_header(path).digest
    return f"sha256:{found}"


def read_params(source: str | Path, abstract: PyTree) -> PyTree:
    """The parameters of a model (the moving average), where the leaves of `abstract` say.

    abstract: the parameters' shapes, dtypes and shardings. Raises CheckpointError or ValueError,
    naming what does not fit them, and FileNotFoundError.
    """
    path = _find(source)
    if systems.is_published(path):
        return _placed(systems.read_published_params(path), abstract)
    return checkpoints.read_ema(path, abstract) if path.is_dir() else _read_file(path, abstract)


def shipped_names() -> list[str]:
    """The names of the models that ship with the package; CASCADE/STAGE for a cascade's stages."""
    pipelines = [path.parent for path in SHIPPED.glob(f"*/{published.PIPELINE}")]
    # A configuration beside a file makes it a published part, such as an autoencoder.
    files = [path for path in SHIPPED.rglob("*.safetensors") if not _is_part(path)]
    names = [*(path.with_suffix("") for path in files), *pipelines]
    return sorted(path.relative_to(SHIPPED).as_posix() for path in names)


def _is_part(file: Path) -> bool:
    return (file.parent / "config.json").is_file()


def shipped_cascades() -> list[str]:
    """The names of the cascades that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{cascade_file.NAME}"))


def find_cascade(source: str | Path) -> Path | None:
    """The directory of a saved cascade (a directory or a shipped name), None = it is none."""
    for folder in (Path(source), SHIPPED / source):
        if (folder / cascade_file.NAME).is_file():
            return folder
    return None


def save_model(
    path: str | Path,
    params: PyTree,
    config,
    *,
    half: bool = False,
    base: str | Path | None = None,
) -> Path:
    """Writes parameters and configuration as one safetensors file, see `model_file`.

    path: ".safetensors" is added where it has no such ending, so that `load(path)` finds it.
    half: in float16, half as large; they are float32 again when read. base: a model that this one
    was adapted from. The file then holds only the parameters that differ from the base's, and names
    the base by its digest. Loading it needs the base: under its shipped name, or in the same place
    relative to the file. Raises ValueError where a parameter is not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(f"{path.name}.safetensors")
    tensors = {name: np.asarray(leaf) for name, leaf in named_leaves(params)}
    named = None
    if base is not None:
        theirs = _tensors(_find(base))
        tensors = {
            name: leaf
            for name, leaf in tensors.items()
            if name not in theirs or not np.array_equal(_float32(theirs[name]), leaf)
        }
        named = model_file.Base(name=_base_name(base, path), digest=digest(base))
    if half:
        with np.errstate(over="ignore"):  # refused below
            tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    bad = [name for name, leaf in tensors.items() if not np.isfinite(leaf).all()]
    if bad:
        raise ValueError(f"not finite, not saved: {', '.join(bad[:5])}")
    return model_file.write(path, tensors, config_lib.to_dict(config), named)


def _find(source: str | Path) -> Path:
    path, shipped = Path(source), SHIPPED / f"{source}.safetensors"
    pipeline = SHIPPED / source
    if folder := find_cascade(source):
        stages = cascade_file.read(folder).stages
        raise ValueError(
            f"{str(source)!r} is a cascade, and one model is needed here; its stages are "
            + ", ".join(f"{source}/{name}" for name in stages)
        )
    if path.is_dir() or (path.suffix == ".safetensors" and path.is_file()):
        return path
    # A stage of a cascade's directory is either a directory or a file.
    for file in (path.with_name(f"{path.name}.safetensors"), shipped):
        if file.is_file():
            return file
    if systems.is_published(pipeline):
        return pipeline
    raise FileNotFoundError(
        f"{str(source)!r} is no directory, no .safetensors file and no model of the package"
        f"{_nearest(str(source))}"
    )


def _read_file(path: Path, abstract: PyTree) -> PyTree:
    expected, tensors = named_leaves(abstract), _tensors(path)
    if odd := sorted({name for name, _ in expected} ^ tensors.keys()):
        raise ValueError(f"{path}: tensors and network do not match: {', '.join(odd[:5])}")
    leaves = []
    for name, leaf in expected:
        found = tensors[name] if leaf.dtype != np.float32 else _float32(tensors[name])
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ValueError(
                f"{path}: {name} is {found.dtype}{list(found.shape)}, "
                f"the network wants {leaf.dtype}{list(leaf.shape)}"
            )
        leaves.append(jax.device_put(found, leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _placed(params: PyTree, abstract: PyTree) -> PyTree:
    """Parameters as NumPy arrays where the leaves of `abstract` say, one after the other."""

    def place(leaf: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(
            wanted.shape, wanted.sharding, lambda part: leaf[part].astype(wanted.dtype)
        )

    return jax.tree.map(place, params, abstract)


def _added(params: PyTree, changes: Mapping[str, np.ndarray]) -> PyTree:
    """Parameters with `changes`, float32 by path, added where they lie."""

    def add(path: tuple, leaf: jax.Array) -> jax.Array:
        if (change := changes.get(path_name(path))) is None:
            return leaf
        placed = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: change[part])
        return (leaf + placed).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model's file by name; those that an adapted model lacks are its base's."""
    if systems.is_published(path):
        params = systems.read_published_params(path)
        return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}
    if path.is_dir():
        raise ValueError(
            f"base = {str(path)!r}: must be a .safetensors file, the folder of a published "
            "pipeline or a shipped model"
        )
    tensors, base = model_file.read_tensors(path), model_file.read_header(path).base
    if base is None:
        return tensors
    beside = path.parent / base.name
    try:
        here = beside.is_file() or systems.is_published(beside)
        source = beside if here else _find(base.name)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: holds what was adapted of {base.name!r} ({base.digest}), which is neither at "
            f"{beside} nor a model of the package; put it there"
        ) from None
    if digest(source) != base.digest:
        raise ValueError(
            f"{path}: was adapted from {base.name!r} with {base.digest}, but {source} has "
            f"{digest(source)}; put the original at {beside}"
        )
    return {**_tensors(source), **tensors}


def _float32(tensor: np.ndarray) -> np.ndarray:
    """float16 as float32 (see `save_model`); all else unchanged."""
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


def _base_name(base: str | Path, adapted: Path) -> str:
    """A shipped model's name, or the path of a file from the folder of the adapted model."""
    found = _find(base)
    if found.is_relative_to(SHIPPED):
        return found.relative_to(SHIPPED).with_suffix("").as_posix()
    return Path(os.path.relpath(found, adapted.parent)).as_posix()


def path_name(path: tuple) -> str:
    """What a parameter is called: the keys of its path, with / between them."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def abstract_params(stage, plan: sharding.Plan | None) -> PyTree:
    """The shapes, dtypes and places of a stage's parameters; plan None = on one device."""
    return _placed_shapes(stage.abstract_params(), plan)


def _placed_shapes(params: PyTree, plan: sharding.Plan | None) -> PyTree:
    """`abstract_params` of what a stage's `abstract_params` gives."""
    shapes = nn.meta.unbox(params)
    if plan is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: one, shapes)
    else:
        places = plan.params
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )


def _nearest(name: str) -> str:
    names = [*shipped_names(), *shipped_cascades()]
    if not names:
        return " (none ships with this installation)"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; the nearest of these is {near[0]}; shipped are {', '.join(names)}"
