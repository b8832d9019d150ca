"""The page of `vdm studio` in Gradio: fields, buttons, and what they call. Nothing else is here."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.diffusion.samplers import RULES
from vdm_jax.studio import inputs, markup, models, paint, requests, server
from vdm_jax.studio.jobs import Job, Runner
from vdm_jax.studio.models import Card
from vdm_jax.studio.requests import JOBS, Request, RequestError

_CONTROLS = ("canny", "hed", "depth", "pose")
_INVERSIONS = ("fixed_point", "first", "second")
_FILES = ["video", "image", ".npz"]
_UPLOAD_HEIGHT = 150  # pixels: below it Gradio's words lie on the border and its icon on the label
_OUT = "made"  # stands for the folder of a job that was not started


class Studio:
    """What the page's buttons do.

    Attributes:
      names: the models to choose from.
      any_model: whether a visitor may name other files and folders of this machine.
    """

    def __init__(
        self, runner: Runner, names: Sequence[str], *, any_model: bool, device: str = "any"
    ):
        self._runner, self._device = runner, device
        self.names, self.any_model = tuple(names), any_model
        self._cards: dict[str, Card] = {}

    def card(self, name: str | None, *, anew: bool = False) -> Card:
        """Of a model that the visitor may choose. Raises RequestError.

        anew: read from its files, which may have changed since they were read last.
        """
        if not name:
            raise RequestError("no model is chosen: choose one of the list")
        if name not in self.names and not self.any_model:
            raise RequestError(
                f"{name}: this server offers the models of the list only; whoever started it adds "
                "others with --model"
            )
        if anew or name not in self._cards:
            self._cards[name] = models.read(name)
        return self._cards[name]

    def request(self, job: str, values: Mapping[str, Any]) -> tuple[Request, Card]:
        """What a visitor asks for. Raises RequestError."""
        card = self.card(values["model"])
        own = {"steps": card.steps, "guidance": card.guidance, "sampler": card.rule}
        if JOBS[job].local and not self.any_model:
            raise RequestError(f"{job} needs a folder of this machine: start vdm studio on it")
        settings = {
            name: value
            for name, value in values.items()
            if name != "model" and (name not in own or value != own[name])
        }
        request = Request(
            job=job,
            model=card.name,
            values=settings,
            cascade=card.cascade,
            device=self._device,
        )
        return request, card

    def command_line(self, job: str, values: Mapping[str, Any]) -> str:
        """The command of the settings, with names for files that no job has kept yet; "" where
        they do not fit yet."""
        shown = dict(values)
        for name in ("input", "image"):
            if shown.get(name):
                shown[name] = Path(shown[name]).name
        if shown.get("mask"):
            shown["mask"] = "mask.png"
        shown |= {name: name.upper() for name in JOBS[job].needs if not shown.get(name)}
        try:
            return self.request(job, shown)[0].command_line(_OUT)
        except RequestError:
            return ""

    def start(self, job: str, values: Mapping[str, Any]) -> tuple[Job, Card]:
        """Checks a visitor's settings and files, and queues the job. Raises RequestError."""
        self.card(values["model"], anew=True)
        _, card = self.request(job, values)
        folder, kept = self._runner.folder(), dict(values)
        try:
            if values.get("input"):
                keep = inputs.keep_clip if JOBS[job].whole_clip else inputs.keep
                extra = (card,) if JOBS[job].whole_clip else ()
                kept["input"] = str(keep(values["input"], folder, *extra))
            if values.get("image"):
                kept["image"] = str(inputs.keep(values["image"], folder, name="image"))
            if values.get("mask"):
                kept["mask"] = str(inputs.keep_mask(values["mask"], folder))
            request, _ = self.request(job, kept)
            return self._runner.submit(request, folder), card
        except (RequestError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise RequestError(f"the job's files cannot be written: {error}") from error
            raise


def build(gradio: Any, studio: Studio) -> Any:
    """The page, a Gradio app."""
    card, (first, *_) = studio.card(studio.names[0]), JOBS
    with server.blocks(gradio, "vdm studio") as page:
        gradio.Markdown("# vdm studio")
        with gradio.Row():
            with gradio.Column(min_width=320):
                model = gradio.Dropdown(
                    list(studio.names),
                    value=card.name,
                    label="Model",
                    info="or the path of a file or a folder" if studio.any_model else None,
                    allow_custom_value=studio.any_model,
                    elem_id="model",
                )
                about = gradio.HTML(_about(card), elem_id="about")
                common = {"model": model, **_common_fields(gradio, card)}
            with gradio.Column(min_width=320):
                choice = gradio.Radio(
                    [(offer.label, name) for name, offer in JOBS.items()],
                    value=first,
                    label="What to do",
                    elem_id="job",
                )
                parts, own = [], {}
                for name in JOBS:
                    with gradio.Column(visible=name == first) as part:
                        own[name] = _job(gradio, studio, name, common)
                    parts.append(part)
                _command(gradio, studio, choice, common, own)
        choice.change(
            lambda chosen: [gradio.update(visible=name == chosen) for name in JOBS],
            [choice],
            parts,
            show_progress="hidden",
        )
        fields = [common[name] for name in ("prompt", *requests.SAMPLER)]
        model.change(
            lambda name: _chosen(gradio, studio, name),
            [model],
            [about, *fields],
            show_progress="hidden",
        )
    page.queue(default_concurrency_limit=64, api_open=False)
    return page


def _about(card: Card) -> str:
    return markup.sentence(card.text)


def _chosen(gradio: Any, studio: Studio, name: str) -> list[Any]:
    """The fields after another model was chosen: its description, an example, and its sampler's
    settings, which a cascade has none of."""
    try:
        card = studio.card(name, anew=True)
    except RequestError as error:
        return [markup.failure(str(error)), *[gradio.skip()] * (1 + len(requests.SAMPLER))]
    prompt = gradio.update(value=card.example) if card.example else gradio.skip()
    own = {"steps": card.steps, "guidance": card.guidance, "sampler": card.rule}
    sampler = [
        gradio.update(visible=not card.cascade, **({"value": own[field]} if field in own else {}))
        for field in requests.SAMPLER
    ]
    return [_about(card), prompt, *sampler]


def _common_fields(gradio: Any, card: Card) -> dict[str, Any]:
    """The fields that every job has, by the names of the command's flags."""
    narrow = {"min_width": 90}
    fields = {
        "prompt": gradio.Textbox(card.example, label="Prompt", lines=2, elem_id="prompt"),
        "negative": gradio.Textbox(
            label="Negative prompt", info="guidance leads away from it", elem_id="negative"
        ),
    }
    with gradio.Row():
        fields["seed"] = gradio.Number(0, label="Seed", precision=0, elem_id="seed", **narrow)
        fields["steps"] = gradio.Number(
            card.steps, label="Steps", precision=0, elem_id="steps", **narrow
        )
        fields["guidance"] = gradio.Number(
            card.guidance, label="Guidance", elem_id="guidance", **narrow
        )
    fields["sampler"] = gradio.Dropdown(
        list(RULES), value=card.rule, label="Sampler", elem_id="sampler"
    )
    return fields


def _job_fields(gradio: Any, name: str) -> dict[str, Any]:
    """The fields of one job alone, by the names of the command's flags."""
    number = {"precision": 0, "min_width": 120}
    makers = {
        "input": lambda: gradio.File(
            label="Picture" if name == "animate" else "Video or picture",
            file_types=_FILES,
            height=_UPLOAD_HEIGHT,
        ),
        # Painted by `paint.SCRIPT`, which writes here.
        "mask": lambda: gradio.Textbox(elem_id="mask", visible="hidden"),
        "num_samples": lambda: gradio.Slider(1, 16, 1, step=1, label="Videos"),
        "frames": lambda: gradio.Number(0, label="Frames in all (0: 4 clips)", **number),
        "context": lambda: gradio.Number(0, label="Frames taken over (0: default)", **number),
        "factor": lambda: gradio.Slider(2, 8, 2, step=1, label="Times as many frames"),
        "then": lambda: gradio.Textbox(label="New prompt"),
        "strength": lambda: gradio.Slider(0.05, 1, 0.6, step=0.05, label="Strength"),
        "inversion": lambda: gradio.Dropdown(
            list(_INVERSIONS), value="first", label="How steps are inverted"
        ),
        "control": lambda: gradio.Dropdown(list(_CONTROLS), value="canny", label="It follows"),
        "controlnet": lambda: gradio.Textbox(label="Folder of the ControlNet"),
        "image": lambda: gradio.File(
            label="Picture of the content",
            file_types=["image"],
            height=_UPLOAD_HEIGHT,
        ),
        "structure": lambda: gradio.Slider(0, 7, 0, step=1, label="Freedom from the depth"),
        "temporal": lambda: gradio.Number(
            0, label="Guidance over time (0: the model's own)", min_width=120
        ),
        "depth": lambda: gradio.Textbox(
            label="Depth: a file, or the folder of an estimator (empty: the model's own)"
        ),
    }
    return {flag: makers[flag]() for flag in JOBS[name].flags}


def _command(
    gradio: Any,
    studio: Studio,
    choice: Any,
    common: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
) -> None:
    """The field that shows the settings of the chosen job as a command line, while they change.

    own: the fields of each job alone.
    """
    places = [("", name) for name in common]
    places += [(job, name) for job, fields in own.items() for name in fields]
    parts = [(own[job] if job else common)[name] for job, name in places]

    def show(chosen: str, *given: Any) -> str:
        values = {
            name: value
            for (job, name), value in zip(places, given, strict=True)
            if job in ("", chosen)
        }
        return studio.command_line(chosen, values)

    command = gradio.Textbox(
        show(choice.value, *(part.value for part in parts)),
        label="These settings as a command line",
        lines=2,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        elem_id="command",
        elem_classes="command",
    )
    for part in (choice, *parts):
        # One at a time, and the last: each letter of a prompt is a change.
        part.change(
            show,
            [choice, *parts],
            [command],
            show_progress="hidden",
            trigger_mode="always_last",
        )


def _job(gradio: Any, studio: Studio, name: str, common: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the page of one job, with its buttons. Returns the fields of this job alone."""
    gradio.Markdown(JOBS[name].text)
    own = _job_fields(gradio, name)
    fields = {**common, **own}
    if "mask" in fields:
        _paintable(gradio, studio, fields)
    with gradio.Row():
        go = gradio.Button("Make", variant="primary", elem_id=f"make_{name}", min_width=120)
        stop = gradio.Button("Cancel", variant="stop", elem_id=f"cancel_{name}", min_width=120)
    shown = gradio.HTML(elem_id=f"shown_{name}", min_height=60)
    running = gradio.State(None)
    names, parts = list(fields), list(fields.values())

    def make(*given: Any) -> Iterator[tuple[Any, Any]]:
        try:
            job, card = studio.start(name, dict(zip(names, given, strict=True)))
        except RequestError as error:
            yield markup.failure(str(error)), None
            return
        yield gradio.skip(), _Handle(job)
        command = job.request.command_line(job.out)
        for update in job.updates():
            yield markup.progress(update, card.fps, command), gradio.skip()

    def cancel(handle: "_Handle | None") -> None:
        if handle is not None:
            handle.job.cancel()

    go.click(make, parts, [shown, running], show_progress="hidden", concurrency_limit=64)
    stop.click(cancel, [running], None, show_progress="hidden")
    return own


def _paintable(gradio: Any, studio: Studio, fields: Mapping[str, Any]) -> None:
    """A field that shows the first frame of an upload, to paint on."""
    canvas = gradio.HTML(elem_id="canvas")
    clear = gradio.Button("Clear the paint", size="sm", elem_id="clear")

    def show(upload: str | None, model: str) -> tuple[str, str]:
        if not upload:
            return "", ""
        try:
            return paint.field(inputs.first_frame(upload, studio.card(model))), ""
        except RequestError as error:
            return markup.failure(str(error)), ""

    given, shown = [fields["input"], fields["model"]], [canvas, fields["mask"]]
    for changed in given:
        changed.change(show, given, shown, show_progress="hidden")
    clear.click(show, given, shown, show_progress="hidden")


class _Handle:
    """A visitor's job. Gradio copies the state of a session; a running job cannot be copied."""

    def __init__(self, job: Job):
        self.job = job

    def __deepcopy__(self, memo: dict) -> "_Handle":
        return self
