"""Distils a guided model into one that needs few steps and no guidance.

    vdm distill --config=vdm/moving_shapes_distill --workdir=DIR [--model=MODEL]
        [--config.FIELD=VALUE ...]

The ladder begins with a student that takes the guidance scale as an input (Meng et al. 2023). Then
rounds halve the number of steps (Salimans & Ho 2022). If distill.consistency_updates is not 0,
consistency distillation of the first student follows, and if distill.distribution_updates is not 0,
distribution matching (Yin et al. 2024, DMD2) of the first student. MODEL is a working directory of
vdm train, a .safetensors file or a shipped model (default: moving_shapes). Network, process, text
and data set are the teacher's. The same command goes on where it stopped, within a round too.

DIR receives a working directory for each round (guidance/, progressive_32/, ...), each student as
NAME.safetensors, and the report: report.md, report.json, curve.png, ladder.gif and ladder.png, the
same noise in fewer and fewer steps. With --metrics=judge,fvd its table has these metrics of vdm
evaluate, measured against clips of the teacher's data set.

Exit status: as of vdm train.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from vdm_jax.cli import common, outputs, parsing, prepare_data, progress

_SHOWN = 8  # clips of each model in ladder.gif


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm distill", __doc__)
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="a distillation: a name or a file"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where all output goes")
    parser.add_argument(
        "--model", metavar="MODEL", help="the model to distil (default: moving_shapes)"
    )
    parser.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        default=["judge"],
        metavar="NAMES",
        help="metrics of the report: those of vdm evaluate, without psnr and ssim (default: judge, "
        "where the data set is moving_shapes)",
    )
    common.add_process_arguments(parser)
    # Read when NumPy is imported, for the metrics: see evaluate.py.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    config = config_lib.load_config(options.config, overrides)
    if "distill" not in config:
        raise config_lib.ConfigError(
            f"--config={options.config}: has no section distill, as vdm/moving_shapes_distill has"
        )
    from vdm_jax.evaluation import suite

    suite.check(options.metrics, reference=True)
    if paired := [name for name in options.metrics if suite.METRICS[name].paired]:
        raise config_lib.ConfigError(
            f"--metrics={','.join(paired)}: samples have no reference each that shows the same"
        )
    common.setup(config.device, options)
    outputs.in_first_process(lambda: outputs.check_folder(options.workdir, "--workdir"))

    from vdm_jax import systems
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import distillation
    from vdm_jax.training import lock

    ladder = distillation.rounds(config.distill)
    source = options.model or pretrained.DEFAULT
    teacher_config = pretrained.read_config(source)
    if systems.build(teacher_config).takes_guidance:
        raise config_lib.ConfigError(
            f"--model={source}: has been distilled already; the ladder begins at a guided model"
        )
    data = teacher_config.data.copy_and_resolve_references().unlock()
    data.data_dir = config.data.data_dir
    prepare_data.render_missing(data)
    workdir = Path(options.workdir)
    with lock.held(workdir, say):
        return _climb(workdir, source, teacher_config, ladder, config, options.metrics)


def _climb(workdir: Path, source: str, teacher_config, ladder, config, metrics: list[str]) -> int:
    """Trains every round that is not done, then reports; the exit status."""
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import distillation

    for number, this in enumerate(ladder, 1):
        say(f"round {number} of {len(ladder)}: {this.name}, {this.updates} updates")
        before = workdir / this.teacher if this.teacher else source
        this_config = distillation.round_config(
            teacher_config, config, this, source, pretrained.digest(before)
        )
        code = _train_round(workdir, source, teacher_config, this, this_config)
        if code is not None:
            return code
    _report(workdir, source, config, ladder, metrics)
    return 0


def say(text: str) -> None:
    """Prints, in the first process."""
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)


def _train_round(workdir: Path, source: str, teacher_config, this, config) -> int | None:
    """Trains one round to its end; the exit status where it was told to stop before."""
    from vdm_jax import config as config_lib
    from vdm_jax import systems
    from vdm_jax.data import frame_rate, pipeline
    from vdm_jax.parallel import sharding
    from vdm_jax.pipelines import initial as initial_lib
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import distillation
    from vdm_jax.training import checkpoints, loop, optimizer, step

    directory = workdir / this.name
    if checkpoints.has_checkpoint(directory):
        done, saved = checkpoints.read_config(directory, fallback=config.checkpoint.fallback)
        if "teacher_digest" not in saved.distill:  # of a run that an earlier version began
            config = config.copy_and_resolve_references().unlock()
            del config.distill.teacher_digest
            config.lock()
        if done >= this.updates and not config_lib.resume_differences(saved, config):
            say(f"{directory}: done before")
            return None

    before = workdir / this.teacher if this.teacher else source
    teacher = systems.build(pretrained.read_config(before))
    stage = distillation.build_round(teacher, config, this)
    plan = sharding.make_plan(stage, config.mesh)

    def initial() -> dict:
        student = systems.build(config)
        # What a guided teacher lacks is the embedding of the guidance scale, which starts at zero.
        params = initial_lib.params(
            before,
            student,
            sharding.make_plan(student, config.mesh),
            new="(condition|time_embedding)/guidance_",
            seed=config.train.seed,
        )
        return stage.begun(params)

    frozen = systems.read_frozen(config, config.mesh.to_dict())
    frozen["teacher"] = _frozen_teacher(before, teacher, config)
    tx = optimizer.make_optimizer(config.train, stage.abstract_params())
    train = config.train
    dataset = pipeline.make_dataset(
        config,
        split=config.data.split,
        text_encoder=stage.text_encoder,
        reading=stage.reading,
        batch_size=train.batch_size,
        seed=train.seed,
        rows=plan.rows(train.batch_size),
        report=None,
    )
    config = frame_rate.recorded(config, dataset.source)
    result = loop.train(
        stage,
        config,
        directory,
        dataset,
        plan=plan,
        fps=frame_rate.playback(config),
        initial=initial,
        flops=train.batch_size * stage.update_flops(),
        frozen=frozen,
        train_step=step.make_train_step(stage, tx, config, plan, frozen),
    )
    if result.reason in ("SIGINT", "SIGTERM"):
        say("the same command goes on from there")
        return common.PREEMPTED if result.reason == "SIGTERM" else 0
    return None


def _frozen_teacher(source, teacher, config):
    """A round's teacher, read from `source`, in the dtype that it computes in."""
    import jax
    import jax.numpy as jnp

    from vdm_jax import systems
    from vdm_jax.parallel import sharding
    from vdm_jax.pipelines import initial

    plan = systems.frozen_plan(teacher, config, config.mesh.to_dict())
    dtype = jnp.dtype(config.distill.teacher_dtype)
    cast = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree),
        out_shardings=plan.params,
    )
    # Devices compute on their own memory alone.
    on_devices = dataclasses.replace(plan, offload=False)
    return sharding.Frozen(params=cast(initial.params(source, teacher, on_devices)), plan=plan)


def _report(workdir: Path, source: str, config, ladder, metrics: list[str]) -> None:
    """Samples and measures the teacher and every student with the same noise."""
    import jax
    import numpy as np

    from vdm_jax.data import video_io
    from vdm_jax.evaluation import ladder as ladder_lib
    from vdm_jax.pipelines import model as pretrained

    if jax.process_index() != 0:
        return
    teacher = pretrained.load(source)
    distill = config.distill
    captions, score = _judged(teacher)
    prompts = list(itertools.islice(itertools.cycle(captions), distill.samples))
    prompts, low_res = _refined(teacher, prompts)
    figures = _figures(teacher, [name for name in metrics if name != "judge"], len(prompts))
    plain = {"sampler": "ddim", "eta": 0.0, "grid": "time", "corrector": 0.0}
    plain["threshold"] = distill.threshold
    guided = "teacher, guided"
    entries = [(teacher, "teacher", guided, distill.teacher_steps, plain)]
    for this in ladder:
        student = _student(workdir, this)
        pretrained.save_model(workdir / f"{this.name}.safetensors", student.params, student.config)
        family = "progressive" if this.target == "guidance" else this.target
        entries += [(student, this.name, family, steps, {}) for steps in this.sample_steps]
    halved = [this.steps for this in ladder if this.target == "progressive"]
    entries += [(teacher, "teacher", guided, steps, plain) for steps in halved]

    rows, labels, samples = [], [], []
    for model, name, family, steps, changes in progress.track(entries, "measuring"):
        row, videos = ladder_lib.measure(
            model.sampler(guidance=distill.guidance, steps=steps, **changes),
            model.params,
            prompts,
            name=name,
            family=family,
            score=score if "judge" in metrics else None,
            figures=figures,
            reference=samples[0] if samples else None,
            low_res=low_res,
        )
        rows.append(row)
        labels.append(f"{name}, {steps} steps")
        samples.append(videos)
    table = ladder_lib.markdown(rows)
    ladder_lib.save(workdir / "report.json", rows)
    (workdir / "report.md").write_text(table, encoding="utf-8")
    first = np.stack([videos[0] for videos in samples])
    few = np.concatenate([videos[:_SHOWN] for videos in samples])
    tiled = video_io.grid(video_io.enlarge(few, 64), columns=_SHOWN)
    makers = {
        "curve.png": lambda path: ladder_lib.curve(path, rows),
        "ladder.png": lambda path: video_io.contact_sheet(
            path, first, labels, max_clips=len(first)
        ),
        "ladder.gif": lambda path: video_io.write_gif(path, tiled, fps=teacher.fps),
    }
    with outputs.Pictures() as pictures:
        for name, make in makers.items():
            pictures.write(workdir / name, functools.partial(make, workdir / name))
    print(f"{len(prompts)} samples of each, guidance {distill.guidance:g}\n\n{table}")
    print(", ".join(str(workdir / name) for name in ("report.md", "curve.png", "ladder.gif")))


def _student(workdir: Path, this):
    """The student of a round that is done, without what was trained beside it."""
    from vdm_jax import systems
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import distillation

    path = workdir / this.name
    config = pretrained.read_config(path)
    before = workdir / this.teacher if this.teacher else config.distill.teacher
    teacher = systems.build(pretrained.read_config(before))
    trained = distillation.build_round(teacher, config, this)
    params = pretrained.read_params(path, pretrained.abstract_params(trained, None))
    return pretrained.Model(
        stage=systems.build(config),
        params=trained.student(params),
        config=config,
        frozen={name: part.params for name, part in pretrained.read_frozen(config).items()},
    )


def _refined(model, prompts: list[str]):
    """What a stage of a cascade refines in the report: true coarse clips, with their captions as
    the prompts. Of other models the prompts, and nothing."""
    from vdm_jax.evaluation import clips

    data = model.config.data
    if "stage" not in model.config or not model.config.stage.low_res:
        return prompts, None
    found = clips.from_data(data, len(prompts), seed=0)
    return list(found.captions), model.stage.coarse(found.videos)


def _judged(model) -> tuple[list[str], Callable | None]:
    """The captions that the report samples, and what scores the samples, if anything does."""
    from vdm_jax.data import tfds_source
    from vdm_jax.evaluation import judge, vocabularies

    data = model.config.data
    if not tfds_source.is_rendered(data.name):
        return list(model.config.train.sample_prompts) or [""], None

    def score(videos, prompts):
        shares = judge.score(videos, prompts, vocabularies.choose(prompts))
        return {name: float(value) for name, value in shares.items() if name != "n"}

    return tfds_source.rendered_captions(data, "held_out"), score


def _figures(model, metrics: list[str], count: int) -> Callable | None:
    """What measures samples against `count` clips of the model's data set, if anything is asked."""
    from vdm_jax.evaluation import action_text, clips, comparison, i3d, i3d_weights, suite

    if not metrics:
        return None
    needed = [suite.METRICS[name] for name in metrics]
    network, sentences = None, None
    if any(metric.network for metric in needed):
        network = i3d.I3DFeatures(params=i3d_weights.load_weights())
    if any(metric.sentences for metric in needed):
        sentences = action_text.load_sentences()
    data = model.config.data
    reference = clips.from_data(data, count, seed=0)
    evaluation = comparison.Evaluation(
        samples=reference,
        reference=reference,
        network=network,
        sentences=sentences,
        stride=data.frame_stride,
    )

    def figures(videos, prompts, subject):
        description = {"data": "samples", "split": "", "resize": "none"}
        samples = clips.Clips(videos=videos, captions=prompts, description=description)
        return suite.measure(evaluation.of(samples, subject), metrics)

    return figures
