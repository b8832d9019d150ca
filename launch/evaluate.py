"""Scores a model on the embedded data set: samples held-out captions and lets the judge read them.

    python -m launch.evaluate --workdir=DIR [--num_samples=128] [--steps=64] [--guidance=2]
        [--sampler=NAME] [--grid=GRID]

The captions are those of the split `held_out`, which training never shows, in turn. The judge
measures colour, shape and direction from the pixels; `all` is the share of samples with every one
of them right. Without --workdir and --model the model that ships with the package is scored.
"""

import functools
import itertools
import json
import time

import launch


def main(arguments: list[str]) -> int:
    parser = launch.parser("python -m launch.evaluate", __doc__)
    launch.add_model_arguments(parser)
    number = functools.partial(parser.add_argument, type=launch.positive, metavar="N")
    number("--num_samples", default=128, help="samples, over all captions (default 128)")
    number("--steps", help="denoising steps (default 64; of a distilled model its own)")
    parser.add_argument(
        "--guidance", type=float, default=2.0, metavar="G", help="scale; 1 = none (default 2)"
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="as of launch.sample (default: the model's configuration)"
    )
    parser.add_argument(
        "--grid", metavar="GRID", help="as of launch.sample (default: the model's configuration)"
    )
    number("--batch_size", help="samples computed at once (default: the model's configuration)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    options = parser.parse_args(arguments)
    launch.setup(options.device, options, quiet=options.json)

    import jax
    import numpy as np
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from vdm_jax.data import moving_shapes
    from vdm_jax.evaluation import judge

    model = launch.load_model(options)
    default = model.config.sample.steps if model.stage.takes_guidance else 64
    if model.config.data.name != "moving_shapes":
        raise ValueError(
            f"data.name = {model.config.data.name!r}: the judge reads moving_shapes only"
        )
    objects = 2 if model.config.data.config.endswith("_two") else 1
    captions = moving_shapes.captions("held_out", objects)
    prompts = list(itertools.islice(itertools.cycle(captions), options.num_samples))
    sampler = model.sampler(
        steps=options.steps or default,
        guidance=options.guidance,
        sampler=options.sampler,
        grid=options.grid,
        batch_size=options.batch_size,
    )
    steps = sampler.steps
    batches = -(-len(prompts) // min(sampler.batch_size, len(prompts)))
    quiet = options.json or jax.process_index() != 0
    started = time.monotonic()
    stream = sampler.stream(model.params, jax.random.key(options.seed), prompts)
    videos = np.concatenate(
        list(track(stream, "sampling", total=batches, transient=True, disable=quiet))
    )
    seconds = time.monotonic() - started
    if jax.process_index() != 0:
        return 0
    scores = {name: float(value) for name, value in judge.score(videos, prompts).items()}
    scores["n"] = len(prompts)
    scores |= {"steps": steps, "guidance": options.guidance, "seconds": round(seconds, 1)}
    given = {"sampler": options.sampler, "grid": options.grid}
    scores |= {name: value for name, value in given.items() if value is not None}
    if options.json:
        print(json.dumps(scores))
        return 0

    print(f"{len(prompts)} samples of held-out captions, read by the judge:")
    table = Table()
    for name in ("color", "shape", "direction", "all"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.1%}" for name in ("color", "shape", "direction", "all")))
    Console().print(table)
    print(
        f"sampling took {seconds:.0f} s ({steps} steps"
        f"{f' of {options.sampler}' if options.sampler else ''}, guidance {options.guidance:g})"
    )
    return 0


if __name__ == "__main__":
    launch.run(main)
