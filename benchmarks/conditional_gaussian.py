"""How far conditional samplers are from the exact posterior, on Gaussian videos.

    python benchmarks/conditional_gaussian.py [--out DIR] [--frames 8 --rho 0.9 --length 1.5]

x is Gaussian: frames of 4 x 2 pixels, AR(1) over the frames, smooth over the pixels, of mean 0 and
deviation 0.5. The denoiser is E[x | z] in closed form, so what is measured is the error of the
method and of the steps, and no network's. p(x | A x = y) is Gaussian too and known: its mean is
linear in y, its covariance the same for every y.

Every method with every rule is linear in the first z, in y and in the noise of the steps. So
`sample` is run on a basis of z and on a basis of y with one noise, which gives the mean for every y
and the share of z in the covariance exactly; the share of the steps' noise is estimated from
--samples runs where there is any.

The Fréchet distance is the squared Wasserstein distance of Gaussians, |m − m'|² + tr(C + C' −
2 (C C')^½), the mean over y, in units of the posterior's variance: 1 is what the posterior's mean
without any spread would have. The floor is that of the covariance of as many exact draws.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 4, 2
DEVIATION = 0.5
RULES = ("ddim", "ancestral")
WEIGHTS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 50.0)
# Method, weights, sigma_data, name.
METHODS = (
    ("reconstruction", WEIGHTS, 1.0, "reconstruction, w = {:g}"),
    ("replacement", (1.0,), 1.0, "replacement"),
    ("pigdm", (1.0,), DEVIATION, f"ΠGDM, s = {DEVIATION:g}"),
    ("pigdm", (1.0,), 1.0, "ΠGDM, s = 1"),
    ("projection", (1.0,), 1.0, "projection"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is known: a measurement, and the same as a matrix `[m, d]`."""

    name: str
    measurement: Any
    matrix: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one rule and number of steps.

    Attributes:
      weight: of reconstruction guidance.
      mean: error of the mean, root mean square over y, relative to the posterior's mean.
      covariance: error of the covariance, relative, Frobenius.
      variance: of all elements together, in units of the posterior's.
      frechet: in units of the posterior's variance.
    """

    task: str
    method: str
    weight: float | None
    rule: str
    steps: int
    mean: float
    covariance: float
    variance: float
    frechet: float


def data_covariance(frames: int, rho: float, length: float) -> np.ndarray:
    """AR(1) over frames; over pixels a Gaussian kernel of that length and 5% of white noise."""
    over_frames = rho ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    pixels = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), -1)
    pixels = pixels.reshape(-1, 2)
    squares = np.sum((pixels[:, None] - pixels) ** 2, axis=-1)
    over_pixels = 0.95 * np.exp(-squares / (2 * length**2)) + 0.05 * np.eye(len(pixels))
    return DEVIATION**2 * np.kron(over_frames, over_pixels)


def make_tasks(shape: tuple[int, ...]) -> list[Task]:
    """The tasks; their matrices are what the measurements return for a basis."""
    from vdm_jax.diffusion.measurements import Downsample, Mask

    def mask(known: np.ndarray) -> Mask:
        # Of one shape, so that one program serves all.
        return Mask(known=jnp.broadcast_to(known, (1, *shape)))

    frames = np.arange(shape[0]).reshape(-1, 1, 1, 1)
    pixels = np.array([[0, 1], [0, 0], [1, 1], [0, 1]], bool).reshape(1, HEIGHT, WIDTH, 1)
    measurements = {
        "first half known": mask(frames < shape[0] // 2),
        "frames 1, 4 and last known": mask(np.isin(frames, (0, 3, shape[0] - 1))),
        "half of the pixels known": mask(pixels),
        "means over 2 x 2 pixels known": Downsample(space=2),
        "means over 2 frames of 2 x 2 known": Downsample(space=2, time=2),
    }

    def matrix(measurement) -> np.ndarray:
        size = int(np.prod(shape))
        columns = measurement.measure(jnp.eye(size).reshape(size, *shape))
        return np.asarray(columns, np.float64).reshape(size, -1).T

    return [
        Task(name=name, measurement=measurement, matrix=matrix(measurement))
        for name, measurement in measurements.items()
    ]


def make_denoiser(covariance: np.ndarray) -> Callable:
    """E[x | z] as a v prediction, which any λ can stand."""
    from vdm_jax.diffusion.predictions import to_prediction
    from vdm_jax.diffusion.schedules import alpha_sigma

    variances, basis = np.linalg.eigh(covariance)
    product = functools.partial(jnp.dot, precision="highest")

    def denoise(z, logsnr, cond):
        alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
        gain = alpha * sigma * (1 - variances) / (alpha**2 * variances + sigma**2)
        v = product(gain * product(z.reshape(len(z), -1), basis), basis.T)
        return to_prediction("v", v.reshape(z.shape), z, logsnr)

    return denoise


def make_run(denoiser: Callable, shape: tuple[int, ...]) -> Callable:
    """The compiled sampler of a number of weights, which share the noise.

    It returns `[weights, 1 + d + m + samples, d]`: for 0, a basis of z and a basis of y with one
    noise, then for z = 0 and y = 0 with others.
    """
    from vdm_jax.diffusion.conditional import make_method
    from vdm_jax.diffusion.samplers import make_rule, sample

    size = int(np.prod(shape))

    @functools.partial(jax.jit, static_argnames=("method", "rule_name", "sigma_data", "samples"))
    def run(method, rule_name, measurement, y_basis, logsnrs, weights, sigma_data, samples):
        def one(weight, key, z, y):
            fields = {"weight": weight} if method in ("reconstruction", "pigdm") else {}
            if method == "pigdm":
                fields["sigma_data"] = sigma_data
            conditional, rule = make_method(method, **fields)(
                denoiser, make_rule(rule_name), measurement, y[None]
            )
            return sample(key, conditional, rule, logsnrs, z[None])[0]

        columns = 1 + size + len(y_basis)
        z = jnp.eye(columns + samples, size, -1).reshape(-1, *shape)
        y = jnp.zeros((columns + samples, *y_basis.shape[1:])).at[1 + size : columns].set(y_basis)
        keys = jax.random.split(jax.random.key(0), samples + 1)
        keys = keys[jnp.maximum(jnp.arange(columns + samples) - columns + 1, 0)]
        over_rows = jax.vmap(one, in_axes=(None, 0, 0, 0))
        out = jax.vmap(over_rows, in_axes=(0, None, None, None))(weights, keys, z, y)
        return out.reshape(len(weights), -1, size)

    return run


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Wasserstein distance of Gaussians of one mean."""
    return float(np.trace(a + b) - 2 * np.linalg.norm(root(a) @ root(b), "nuc"))


class Posterior:
    """p(x | A x = y) of data of mean 0: its mean is gain y."""

    def __init__(self, covariance: np.ndarray, a: np.ndarray):
        self._y_covariance = a @ covariance @ a.T
        self.gain = covariance @ a.T @ np.linalg.pinv(self._y_covariance)
        self.covariance = covariance - self.gain @ a @ covariance

    def _power(self, matrix: np.ndarray) -> float:
        """E |matrix y|²."""
        return float(np.trace(matrix @ self._y_covariance @ matrix.T))

    def errors(self, gain: np.ndarray, covariance: np.ndarray) -> dict[str, float]:
        """Of a Gaussian with the mean gain y; infinite where it has overflown."""
        if not (np.all(np.isfinite(gain)) and np.all(np.isfinite(covariance))):
            return dict.fromkeys(("mean", "covariance", "variance", "frechet"), np.inf)
        off = self._power(gain - self.gain)
        difference = np.linalg.norm(covariance - self.covariance)
        distance = off + wasserstein(covariance, self.covariance)
        variance = np.trace(self.covariance)
        return {
            "mean": float(np.sqrt(off / self._power(self.gain))),
            "covariance": float(difference / np.linalg.norm(self.covariance)),
            "variance": float(np.trace(covariance) / variance),
            "frechet": float(distance / variance),
        }


def measure(
    tasks: list[Task],
    covariance: np.ndarray,
    shape: tuple[int, ...],
    all_steps: list[int],
    samples: int,
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """All rows, and the floors of each task."""
    from vdm_jax.diffusion.grids import logsnr_grid
    from vdm_jax.diffusion.measurements import Mask
    from vdm_jax.diffusion.schedules import CosineSchedule

    run, size = make_run(make_denoiser(covariance), shape), len(covariance)
    rows, floors = [], {}
    for task in tasks:
        posterior = Posterior(covariance, task.matrix)
        draws = np.random.default_rng(0).normal(size=(samples, size)) @ root(posterior.covariance)
        floors[task.name] = posterior.errors(posterior.gain, draws.T @ draws / samples)
        y_shape = jax.eval_shape(task.measurement.measure, jnp.zeros((1, *shape))).shape[1:]
        y_basis = jnp.eye(len(task.matrix)).reshape(-1, *y_shape)
        ends = np.cumsum([1, size, len(y_basis)])
        for method, weights, sigma_data, name in METHODS:
            replaces = method == "replacement" or (
                method == "reconstruction" and isinstance(task.measurement, Mask)
            )
            for rule in RULES:
                # DDIM draws nothing, unless something is replaced.
                many = samples if replaces or rule == "ancestral" else 1
                for steps in all_steps:
                    started = time.perf_counter()
                    grid = logsnr_grid(CosineSchedule(), steps)
                    outs = run(
                        method,
                        rule,
                        task.measurement,
                        y_basis,
                        grid,
                        jnp.asarray(weights),
                        sigma_data,
                        many,
                    )
                    for weight, out in zip(weights, np.asarray(outs, np.float64), strict=True):
                        zero, from_z, gain, noise = np.split(out, ends)
                        from_z, gain = (from_z - zero).T, (gain - zero).T
                        found = from_z @ from_z.T + noise.T @ noise / len(noise)
                        rows.append(
                            Row(
                                task=task.name,
                                method=name.format(weight),
                                weight=weight if method == "reconstruction" else None,
                                rule=rule,
                                steps=steps,
                                **posterior.errors(gain, found),
                            )
                        )
                    seconds = time.perf_counter() - started
                    line = f"{task.name}: {method}, {rule}, {steps} steps: {seconds:.1f} s"
                    print(line, file=sys.stderr, flush=True)
    return rows, floors


def number(value: float) -> str:
    """Two digits or more, or how large it has become."""
    if not np.isfinite(value):
        return "∞"
    if value >= 1000:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 9.5:
        return f"{value:.0f}"
    return f"{value:.{2 if value >= 0.095 else 3 if value >= 0.0095 else 4}f}"


def markdown(rows: list[Row], floors: dict[str, dict[str, float]]) -> str:
    """A table a task: Fréchet distances over steps, and the errors at one number of steps."""
    all_steps = list(dict.fromkeys(row.steps for row in rows))
    middle = all_steps[len(all_steps) // 2]
    header = ["method", *(f"{rule} {steps}" for rule in RULES for steps in all_steps)]
    header += [f"{rule} {middle}: mean, covariance, variance" for rule in RULES]
    lines = []
    for task, floor in floors.items():
        lines += [
            f"### {task[0].upper()}{task[1:]}",
            "",
            f"Floor of the Fréchet distance {number(floor['frechet'])}, of the covariance "
            f"{number(floor['covariance'])}.",
            "",
            f"| {' | '.join(header)} |",
            "|---" + "|---:" * (len(header) - 1) + "|",
        ]
        chosen = [row for row in rows if row.task == task]
        for method in dict.fromkeys(row.method for row in chosen):
            found = {(row.rule, row.steps): row for row in chosen if row.method == method}
            cells = [number(found[rule, steps].frechet) for rule in RULES for steps in all_steps]
            for rule in RULES:
                row = found[rule, middle]
                errors = (row.mean, row.covariance, row.variance)
                cells.append(", ".join(map(number, errors)))
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def picture(path: Path, rows: list[Row]) -> None:
    """Fréchet distances of the first four tasks: above over the weight, below over the steps."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.task for row in rows))[:4]
    all_steps = list(dict.fromkeys(row.steps for row in rows))
    middle = all_steps[len(all_steps) // 2]
    colours = {"replacement": "C3", "projection": "C1", "ΠGDM, s = 0.5": "C0", "ΠGDM, s = 1": "C2"}
    over_steps = colours | {"reconstruction, w = 4": "black", "reconstruction, w = 10": "0.6"}
    styles = {"ddim": "-", "ancestral": "--"}
    figure = Figure(figsize=(14.0, 7.2), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for (above, below), task in zip(axes.T, tasks, strict=True):
        for rule, style in styles.items():
            of_rule = [row for row in rows if row.task == task and row.rule == rule]
            line = [row for row in of_rule if row.weight and row.steps == middle]
            values = [row.frechet for row in line]
            above.plot([row.weight for row in line], values, style, marker=".", color="black")
            for method, colour in over_steps.items():
                line = [row for row in of_rule if row.method == method]
                values = [row.frechet for row in line]
                label = method if rule == "ddim" else None
                steps = [row.steps for row in line]
                below.plot(steps, values, style, marker=".", color=colour, label=label)
                if method in colours:
                    level = values[steps.index(middle)]
                    above.axhline(level, color=colour, linestyle=style, linewidth=1)
        above.set_title(task)
        above.set_xlabel(f"w of reconstruction, {middle} steps")
        above.set_xscale("log")
        above.set_xticks(WEIGHTS, [f"{weight:g}" for weight in WEIGHTS])
        below.set_xlabel("steps")
        below.set_xscale("log", base=2)
        below.set_xticks(all_steps, [str(steps) for steps in all_steps])
        for axis in (above, below):
            axis.minorticks_off()
            axis.set_yscale("log")
            # One range for masks, another for means, which say more of x.
            axis.set_ylim((1e-3, 4.0) if "means" in task else (2e-2, 4.0))
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("Fréchet distance / variance")
    figure.legend(
        *axes[1, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(over_steps),
        title="DDIM; dashed: ancestral",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write the rows there, as JSON"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw the distances there, as docs/media/conditional_gaussian.png shows them",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64, 256], metavar="N")
    parser.add_argument("--samples", type=int, default=4096, help="of noise, default 4096")
    parser.add_argument("--frames", type=int, default=8, help="an even number, default 8")
    parser.add_argument("--rho", type=float, default=0.9, help="of next frames, default 0.9")
    parser.add_argument("--length", type=float, default=1.5, help="in pixels, default 1.5")
    options = parser.parse_args()

    started = time.perf_counter()
    shape = (options.frames, HEIGHT, WIDTH, 1)
    covariance = data_covariance(options.frames, options.rho, options.length)
    rows, floors = measure(make_tasks(shape), covariance, shape, options.steps, options.samples)
    print(markdown(rows, floors))
    if options.picture:
        picture(options.picture, rows)
        print(options.picture)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "conditional_gaussian.json"
        path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
        print(path)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
