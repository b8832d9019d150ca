"""Trained models: load one from a working directory, a file or the package, and sample it."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Key, PyTree, UInt8

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.data import frame_rate
from vdm_jax.parallel import sharding
from vdm_jax.stage import sampler as sampling
from vdm_jax.training import checkpoints
from vdm_jax.upgrade import upgrade

SHIPPED = Path(__file__).parents[1] / "checkpoints"
DEFAULT = "moving_shapes"
_FORMAT = "vdm_jax/1"
CASCADE_FILE = "cascade.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained stage with its parameters (the moving average) and its configuration.

    The parts stand on their own: `model.schedule`, `model.denoiser` (a Denoiser with the
    parameters bound), `model.stage.network`, `model.sampler(steps=…)`. plan: how it lies on a mesh,
    None = on one device.
    """

    stage: Any
    params: PyTree
    config: Any
    plan: sharding.Plan | None = None

    @property
    def schedule(self) -> Any:
        """The noise schedule: t in [0, 1] to log-SNR."""
        return self.stage.process.schedule

    @property
    def denoiser(self) -> Any:
        """The Denoiser `(z, logsnr [b], cond) -> Prediction`, without guidance."""
        return self.stage.denoiser(self.params)

    @property
    def fps(self) -> float:
        """Frames a second of the model's videos; 8 where that is not known (`frame_rate.known`)."""
        return frame_rate.playback(self.config)

    def sampler(self, **changes) -> sampling.Sampler:
        """The sampler of the configuration; changes: of `sampling.FIELDS`."""
        return sampling.Sampler.from_config(
            self.stage, self.config.sample, plan=self.plan, **changes
        )

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
        `changes` are further fields of `sampling.FIELDS` (sampler, grid, eta, gamma, threshold,
        batch_size). negative: a prompt that guidance leads away from. callback(step, steps) is
        called as sampling goes on, preview(step, steps, videos) now and then with the current
        estimates. The same key and arguments give the same videos.
        """
        repeated = as_prompts(prompt, prompts, num_samples)
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


def as_prompts(prompt: str | None, prompts: Sequence[str] | None, num_samples: int) -> list[str]:
    """The prompt of each sample, in order. Raises ValueError."""
    if (prompt is None) == (prompts is None):
        raise ValueError("give either prompt (one text) or prompts (a list of texts)")
    if num_samples < 1:
        raise ValueError(f"num_samples = {num_samples}: must be at least 1")
    texts = [prompt] if prompts is None else prompts
    if isinstance(texts, str) or not texts:
        raise ValueError(f"prompts = {texts!r}: must be a list of one text or more")
    return [text for text in texts for _ in range(num_samples)]


def load(source: str | Path = DEFAULT, *, mesh: Mapping[str, int] | None = None) -> Model:
    """Loads a model: a working directory of training, a .safetensors file, or a shipped name.

    mesh: sizes of the axes of `parallel.mesh.AXES`, such as {"fsdp": 4}, over all devices; every
    process of the mesh calls this alike. None: the whole model on one device. Raises
    FileNotFoundError, ValueError, CheckpointError, MeshError.
    """
    path = _find(source)
    config = read_config(path)
    stage = systems.build(config)
    plan = None if mesh is None else sharding.make_plan(stage, mesh)
    params = read_params(path, _abstract_params(stage, plan))
    return Model(stage=stage, params=params, config=config, plan=plan)


def read_config(source: str | Path):
    """The configuration that a model was trained with. Raises as `load`."""
    path = _find(source)
    if path.is_dir():
        return checkpoints.read_config(path)[1]
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: not a model of this package (format {metadata.get('format')!r} in its "
            f"metadata, not {_FORMAT!r})"
        )
    return config_lib.from_dict(upgrade(json.loads(metadata["config"])))


def read_params(source: str | Path, abstract: PyTree) -> PyTree:
    """The parameters of a model (the moving average), where the leaves of `abstract` say.

    abstract: the parameters' shapes, dtypes and shardings. Raises CheckpointError or ValueError,
    naming what does not fit them, and FileNotFoundError.
    """
    path = _find(source)
    return checkpoints.read_ema(path, abstract) if path.is_dir() else _read_file(path, abstract)


def initial_params(
    source: str | Path, stage, plan: sharding.Plan, *, new: str = "", seed: int = 0
) -> PyTree:
    """What a run of `stage` starts from: a model's parameters, and fresh ones where it has none.

    new: a regular expression. A parameter that the model lacks must match it, or `stage.new`; "" =
    the model may lack nothing. Raises as `read_params`.
    """
    abstract = _abstract_params(stage, plan)
    new = "|".join(f"(?:{part})" for part in (new, stage.new) if part)
    if not new:
        return read_params(source, abstract)
    theirs = jax.eval_shape(systems.build(read_config(source)).init, jax.random.key(0))
    names = {name for name, _ in _named_leaves(theirs)}
    lacking = {name for name, _ in _named_leaves(abstract) if name not in names}
    if bad := sorted(name for name in lacking if not re.search(new, name)):
        raise ValueError(f"{source}: lacks {', '.join(bad[:5])}, which only a model can give")
    if not lacking:
        return read_params(source, abstract)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    fresh = jax.jit(stage.init, out_shardings=places)(jax.random.key(seed))
    read = read_params(source, _without(abstract, lacking))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _name(path) in lacking else _leaf(read, path), fresh
    )


def shipped_names() -> list[str]:
    """The names of the models that ship with the package; CASCADE/STAGE for a cascade's stages."""
    files = SHIPPED.rglob("*.safetensors")
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in files)


def shipped_cascades() -> list[str]:
    """The names of the cascades that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CASCADE_FILE}"))


def find_cascade(source: str | Path) -> Path | None:
    """The directory of a saved cascade (a directory or a shipped name), None = it is none."""
    for folder in (Path(source), SHIPPED / source):
        if (folder / CASCADE_FILE).is_file():
            return folder
    return None


def save_model(path: str | Path, params: PyTree, config, *, half: bool = False) -> Path:
    """Writes parameters and configuration as one safetensors file.

    Tensors are named by their path ("down_0/conv/kernel"); the metadata holds the configuration
    as JSON. half: in float16, half as large; they are float32 again when read. Raises ValueError
    where one is not finite.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in _named_leaves(params)}
    if half:
        with np.errstate(over="ignore"):  # told below
            tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    bad = [name for name, leaf in tensors.items() if not np.isfinite(leaf).all()]
    if bad:
        raise ValueError(f"not finite, not saved: {', '.join(bad[:5])}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": _FORMAT, "config": json.dumps(config_lib.to_dict(config))}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


def _find(source: str | Path) -> Path:
    path, shipped = Path(source), SHIPPED / f"{source}.safetensors"
    if folder := find_cascade(source):
        stages = json.loads((folder / CASCADE_FILE).read_text(encoding="utf-8"))["stages"]
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
    raise FileNotFoundError(
        f"{str(source)!r} is no directory, no .safetensors file and no model of the package"
        f"{_nearest(str(source))}"
    )


def _read_file(path: Path, abstract: PyTree) -> PyTree:
    expected = _named_leaves(abstract)
    names = [name for name, _ in expected]
    leaves = []
    with safetensors.safe_open(path, framework="numpy") as file:
        if set(names) != set(file.keys()):
            odd = sorted(set(names) ^ set(file.keys()))
            raise ValueError(f"{path}: tensors and network do not match: {', '.join(odd[:5])}")
        for name, leaf in expected:
            found = file.get_tensor(name)
            if found.dtype == np.float16 and leaf.dtype == np.float32:  # see `save_model`
                found = found.astype(np.float32)
            if found.shape != leaf.shape or found.dtype != leaf.dtype:
                raise ValueError(
                    f"{path}: {name} is {found.dtype}{list(found.shape)}, "
                    f"the network wants {leaf.dtype}{list(leaf.shape)}"
                )
            leaves.append(jax.device_put(found, leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _leaf(tree: PyTree, path: tuple) -> Any:
    for key in path:
        tree = tree[key.key]
    return tree


def _without(tree: dict, names: set[str], above: str = "") -> dict:
    """A tree of dictionaries without the leaves of these names, and without what that empties."""
    kept = {}
    for key, value in tree.items():
        name = above + key
        if isinstance(value, dict):
            value = _without(value, names, f"{name}/")
            if value:
                kept[key] = value
        elif name not in names:
            kept[key] = value
    return kept


def _abstract_params(stage, plan: sharding.Plan | None) -> PyTree:
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
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
    return f"; shipped are {', '.join(names)}; the nearest is {near[0]}"
