"""Compiles the real training update or sampler of a configuration for devices that are not here.

`vdm compile` prints the reports of this module, and its page of tables.
"""

import dataclasses
import gc
import hashlib
import json
import time
from pathlib import Path

CACHE = Path("~/.cache/vdm_jax/compile")
# XLA's levels of effort, as numbers of its option.
EFFORT = {"0": 9, "1": 19, "2": 29, "3": 39}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A configuration, and the devices to compile it for.

    Attributes:
      config: a name or a file.
      overrides: dotted fields to text.
      topology, slices: as in `parallel.topology.parse_topology`.
      what: train, sample, or guided (sampling with known frames and gradient guidance).
      effort: one of `EFFORT`.
    """

    config: str
    topology: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    slices: int = 1
    what: str = "train"
    effort: str = "0"


def run(request: Request, *, tries: int = 3, use_cache: bool = True, quiet: bool = False) -> dict:
    """Compiles `request`, and where it does not fit, up to `tries` changes of it.

    Returns {"fits", "estimate" or "error", "needed", "capacity", "suggestions": the tried changes
    in order, each with whether it fits, ...}. Raises ConfigError, ValueError.
    """
    from vdm_jax.parallel import topology

    target = topology.parse_topology(request.topology, slices=request.slices)
    topology.prepare_environment(target)
    report = _compile(request, target, use_cache, quiet)
    report["suggestions"] = []
    if report["fits"]:
        return report
    tried = request
    for changes in memory_changes(request, target.num_devices):
        if len(report["suggestions"]) == tries:
            break
        tried = dataclasses.replace(tried, overrides=tried.overrides | changes)
        attempt = _compile(tried, target, use_cache, quiet)
        added = {k: v for k, v in tried.overrides.items() if request.overrides.get(k) != v}
        report["suggestions"].append({"changes": added, **attempt})
        if attempt["fits"]:
            break
    return report


def memory_changes(request: Request, devices: int) -> list[dict[str, str]]:
    """Changes that save memory, cheapest first; each is tried on top of those before it."""
    from vdm_jax import config as config_lib
    from vdm_jax import systems

    config = config_lib.load_config(request.config, request.overrides)
    changes = []
    if systems.has_frozen(config) and not systems.is_offloaded(config):
        changes.append({"mesh.offload": "true"})
    shards = config.train.batch_size if request.what == "train" else config.sample.batch_size
    if config.mesh.fsdp != -1 and config.mesh.fsdp < devices and shards % devices == 0:
        changes.append({"mesh.fsdp": "-1", "mesh.data": "1"})
    if request.what != "sample" and config.model.remat != "full":
        changes.append({"model.remat": "full"})
    if request.what == "train":
        accumulate, clips_a_device = config.train.accumulate, shards // devices
        changes += [
            {"train.accumulate": str(microbatches)}
            for microbatches in range(2 * accumulate, clips_a_device + 1, accumulate)
            if clips_a_device % microbatches == 0  # whole clips on every device
        ]
        changes.append({"train.moment_dtype": "bfloat16"})
    while shards // 2 >= devices and shards % 2 == 0:
        shards //= 2
        if request.what == "train":
            # A microbatch has a clip for each device already.
            accumulate = str(max(shards // devices, 1))
            changes.append({"train.batch_size": str(shards), "train.accumulate": accumulate})
        else:
            changes.append({"sample.batch_size": str(shards)})
    return changes


def _compile(request: Request, target, use_cache: bool, quiet: bool) -> dict:
    import jax
    from rich.console import Console

    from vdm_jax import config as config_lib
    from vdm_jax.parallel import estimate

    config = config_lib.load_config(request.config, request.overrides)
    console = Console(stderr=True, quiet=quiet)
    changed = ", ".join(f"{name}={value}" for name, value in request.overrides.items())
    title = f"{request.config}{' with ' + changed if changed else ''} for {target}"
    with console.status(f"tracing {title}"):
        lowered, figures = lower(config, target, request.what)
    options = {"optimization_level": EFFORT[request.effort]}
    if not target.is_tpu:
        # Tiles are chosen by trying them, which takes the GPU; without it some cannot be chosen.
        options = {"xla_gpu_enable_triton_gemm": False}
    digest = hashlib.sha256()
    for part in (str(target), jax.__version__, _libtpu_version(), str(options), lowered.as_text()):
        digest.update(part.encode())
    cached = CACHE.expanduser() / f"{digest.hexdigest()[:32]}.json"
    report = {
        "config": request.config,
        "overrides": request.overrides,
        "topology": request.topology,
        "slices": request.slices,
        "what": request.what,
        "effort": request.effort,
        "parameters": figures["parameters"],
        "batch": figures["batch"],
    }
    if use_cache and cached.is_file():
        kept = json.loads(cached.read_text())
        if kept["fits"]:
            kept["estimate"] = estimate.Estimate.from_dict(kept["estimate"]).to_dict()
        return report | kept | _feeding(config, target, request.what, kept)
    started, worked = time.monotonic(), time.process_time()
    compiled = None
    try:
        with console.status(f"compiling {title}: minutes"):
            compiled = lowered.compile(compiler_options=options)
        seconds = time.monotonic() - started
        found = estimate.estimate(
            compiled,
            target.chip,
            devices=target.num_devices,
            compile_seconds=seconds,
            **figures,
        )
        result = {"fits": True, "estimate": found.to_dict()}
    except estimate.DoesNotFitError as error:
        result = _too_large(error)
    except jax.errors.JaxRuntimeError as error:
        told = estimate.out_of_memory(str(error), target.chip)
        if told is None:
            raise
        result = _too_large(told)
    # One program after the other: each holds gigabytes.
    lowered = compiled = None
    jax.clear_caches()
    gc.collect()
    # On a machine that others share only the second number says how large the program is.
    seconds, worked = time.monotonic() - started, time.process_time() - worked
    console.print(
        f"compiled {title} in {seconds:.0f} s, {worked:.0f} of processors", highlight=False
    )
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(result))
    return report | result | _feeding(config, target, request.what, result)


def _feeding(config, target, what: str, result: dict) -> dict:
    """{"feeding": `feeding.Needs`} of training that fits, as a dictionary."""
    from vdm_jax import systems
    from vdm_jax.cli import feeding

    if what != "train" or not result["fits"]:
        return {}
    found = feeding.needs(
        config,
        systems.build(config),
        family=target.chip.name,
        devices=target.num_devices,
        slices=target.slices,
        clips_per_second=result["estimate"]["clips_per_second"],
    )
    return {"feeding": found.to_dict()}


def lower(config, target, what: str):
    """The program of `config` lowered for `target`, and the figures that `estimate` needs."""
    import flax.linen as nn
    import jax

    from vdm_jax import systems
    from vdm_jax.parallel import sharding
    from vdm_jax.stage import sampler as sampling
    from vdm_jax.training import optimizer, state, step

    stage = systems.build(config)
    # Made once: devices that are made twice are different ones, also where they are equal.
    devices = target.devices()
    plan = sharding.make_plan(stage, config.mesh, devices)
    forward = sum(level.flops for level in stage.cost(_images(config) if what == "train" else 0))
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nn.meta.unbox(stage.abstract_params()),
        plan.params,
    )
    figures = {"parameters": state.count_parameters(params)}
    frozen = systems.abstract_frozen(config, config.mesh.to_dict(), devices)
    if what == "train":
        batch_size = config.train.batch_size
        tx = optimizer.make_optimizer(config.train, stage.abstract_params())
        update = step.make_train_step(stage, tx, config, plan, frozen)
        batch = stage.abstract_batch(batch_size, _images(config))
        lowered = update.lower(state.abstract_state(stage, tx, plan), _at(batch, plan.batch))
        # Forward, twice that backward; with everything computed again, forward once more.
        again = config.model.remat == "full"
        return lowered, figures | {
            "batch": batch_size,
            "model_flops": 3 * forward * batch_size,
            "hardware_flops": (3 + again) * forward * batch_size,
            "repeats": config.train.accumulate,
        }
    guided = what == "guided"
    frozen = {name: part.params for name, part in frozen.items()}
    sampler = sampling.Sampler.from_config(stage, config.sample, frozen=frozen, plan=plan)
    inputs = sampler.abstract_inputs(frames_known=guided)
    lowered = sampler.compiled.lower(params, *inputs)
    size = inputs[2].shape[0]
    flops = forward * size * (1 if sampler.guidance_scale == 1 else 2)
    # The gradient by z costs as much as the forward pass: parameters have none.
    again = guided and config.model.remat == "full"
    return lowered, figures | {
        "batch": size,
        "model_flops": flops * (1 + guided),
        "hardware_flops": flops * (1 + guided + again),
        "steps": sampler.steps,
    }


def _images(config) -> int:
    return config.data.image_frames


def _at(tree, place):
    import jax

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _too_large(error) -> dict:
    return {
        "fits": False,
        "error": str(error),
        "needed": error.needed,
        "capacity": error.capacity,
    }


def _libtpu_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return ""
