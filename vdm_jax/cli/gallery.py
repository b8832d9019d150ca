"""Writes a page of what the shipped models can do: Markdown, with one GIF a section.

    vdm gallery [--out=gallery] [--ladder=DIR] [--lumiere=MODEL] [--style=IMAGE_MODEL]

The page shows text to video, extension to 64 frames, interpolation, inpainting, super-resolution,
loops, distillation, a cascade of seven stages, and Lumiere's image to video, inpainting and
cinemagraphs. Captions are held out from training.

OUT receives gallery.md and media/gallery/*.gif; files of these names are overwritten. A section
that fails is left out of the page: the command reports it and ends with exit status 1.

--ladder=DIR shows all students of a workdir of vdm distill instead of the shipped student.
--lumiere=MODEL replaces the shipped model lumiere_tiny/base_32f_16. --style=IMAGE_MODEL adds a
section on stylisation; it is a fine-tuned copy of the image model that Lumiere's model was inflated
from, so it usually needs --lumiere too.
"""

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.cli import common, gallery_page, gallery_sections, outputs, parsing, progress
from vdm_jax.cli.gallery_page import Section

if TYPE_CHECKING:
    from vdm_jax.pipelines import Model

CLIPS = 6
LUMIERE = "lumiere_tiny/base_32f_16"
_STUDENT = "moving_shapes_8step"


def main(arguments: list[str]) -> int:
    """Writes the page. Returns 1 if a section failed, else 0."""
    parser = parsing.parser("vdm gallery", __doc__)
    parser.add_argument("--out", default="gallery", metavar="OUT", help="default gallery/")
    parser.add_argument("--ladder", metavar="DIR", help="workdir of vdm distill")
    parser.add_argument(
        "--lumiere",
        default=LUMIERE,
        metavar="MODEL",
        help=f"name, workdir or file of a model like {LUMIERE} (the default)",
    )
    parser.add_argument("--style", metavar="MODEL", help="workdir or file of an image model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--num_samples",
        type=parsing.positive,
        default=CLIPS,
        metavar="N",
        help=f"columns of a picture (default {CLIPS}); some pictures have at most "
        f"{gallery_sections.FEWER} or {gallery_sections.FEW}",
    )
    options = parser.parse_args(arguments)
    common.setup("any")
    outputs.check_folder(options.out, "--out")

    # While TFDS is imported, imports in other threads fail, those of the progress bar's too.
    import vdm_jax.data.moving_shapes  # noqa: F401

    jobs = _jobs(options)
    out, parts, failures = Path(options.out), [], {}
    for name in progress.track(jobs, "sampling"):
        try:
            section = jobs[name]()
            gallery_page.write_picture(out, name, section)
            parts.append(gallery_page.markdown(name, section))
        except Exception as error:  # whatever it is: the other sections took minutes
            failures[name] = error
    for name, error in failures.items():
        if os.environ.get("VDM_JAX_TRACEBACK"):
            traceback.print_exception(error)
        reason = f"{type(error).__name__}: {error}"
        print(f"error: section {name} failed and is not on the page: {reason}", file=sys.stderr)
    if parts:
        print(gallery_page.write_page(out, parts, arguments))
    return 1 if failures else 0


def _jobs(options: argparse.Namespace) -> dict[str, Callable[[], Section]]:
    """The sections in order: name of the picture's file to a function that samples the section.

    Raises what `pipelines.load` raises, and ValueError if --lumiere or --style is a cascade: a
    wrong flag is reported before anything is sampled.
    """
    from vdm_jax import pipelines

    students = _students(options.ladder)
    style = None if options.style is None else _load_one("--style", options.style)
    space_time = _load_one("--lumiere", options.lumiere)
    model = pipelines.model.load()
    bound = functools.partial
    jobs = {
        "text": bound(gallery_sections.text_to_video, model, options),
        "extension": bound(gallery_sections.extension, model, options),
        "interpolation": bound(gallery_sections.interpolation, model, options),
        "inpainting": bound(gallery_sections.inpainting, model, options),
        "super_resolution": bound(gallery_sections.super_resolution, model, options),
        "loop": bound(gallery_sections.loop, model, options),
        "distillation": bound(gallery_sections.distillation, model, options, students),
        "cascade": bound(
            gallery_sections.cascade, pipelines.cascade.load(gallery_sections.CASCADE), options
        ),
        "image_to_video": bound(gallery_sections.image_to_video, space_time, options),
        "completion": bound(gallery_sections.completion, space_time, options),
        "cinemagraph": bound(gallery_sections.cinemagraph, space_time, options),
    }
    if style is not None:
        jobs["stylisation"] = bound(gallery_sections.stylisation, space_time, options, style)
    return jobs


def _load_one(flag: str, source: str) -> "Model":
    """A single model. Raises ValueError for a cascade, and what `pipelines.load` raises."""
    from vdm_jax import pipelines

    if pipelines.model.find_cascade(source) is not None:
        stages = ", ".join(pipelines.cascade.load(source).stages)
        raise ValueError(
            f"{flag}={source}: is a cascade, but must be one model: append one of {stages}, as in "
            f"{LUMIERE}"
        )
    return pipelines.model.load(source)


def _students(ladder: str | None) -> dict[int, str | Path]:
    """Number of steps to the student: those in the workdir `ladder`, else the shipped one."""
    if ladder is None:
        return {8: _STUDENT}
    files = {steps: Path(ladder) / f"progressive_{steps}.safetensors" for steps in (8, 4, 2, 1)}
    students = {steps: path for steps, path in files.items() if path.is_file()}
    if not students:
        raise FileNotFoundError(
            f"--ladder={ladder}: holds no progressive_N.safetensors; it must be the --workdir of "
            "a finished vdm distill"
        )
    return students
