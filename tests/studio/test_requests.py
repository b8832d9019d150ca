"""What a visitor asks for is a command line that the command's own parser takes."""

import shlex

import pytest

from vdm_jax.cli import edit, parsing, sample
from vdm_jax.studio import requests
from vdm_jax.studio.requests import JOBS, Request, RequestError

# A value for every field of the page.
VALUES = {
    "prompt": 'it\'s a "red" circle; $HOME',
    "negative": "a blue circle",
    "seed": 7.0,  # Gradio's numbers are floats
    "steps": 16,
    "guidance": 1.5,
    "sampler": "dpmpp_2m",
    "num_samples": 3,
    "input": "studio/0001/my clip.mp4",
    "mask": "studio/0001/mask.png",
    "frames": 24,
    "context": 3,
    "factor": 2,
    "then": "a green circle",
    "strength": 0.5,
    "inversion": "first",
    "control": "canny",
    "controlnet": "nets/canny",
    "image": "",
    "structure": 3,
    "temporal": 1.5,
    "depth": "nets/depth",
}


def parsed(command_line):
    """The options that the command's parser finds in a line of a shell."""
    program, *arguments = shlex.split(command_line)
    assert program == "vdm"
    if arguments[0] == "edit":
        return edit._parse(arguments[1:])
    assert arguments[0] == "sample"
    return sample._parser().parse_args(arguments[1:])


@pytest.mark.parametrize("job", JOBS)
def test_every_setting_of_every_job_reaches_the_parser(job):
    request = Request(job=job, model="some model", values=VALUES, device="cpu")
    options = parsed(request.command_line("studio/0001"))
    assert getattr(options, "job", "sample") == job
    assert (options.model, options.out, options.device) == ("some model", "studio/0001", "cpu")
    for name in ("prompt", "seed", *requests.SAMPLER, *JOBS[job].flags):
        found = getattr(options, name)
        if name in JOBS[job].omits or VALUES[name] == "":
            assert not found, name
        elif isinstance(found, list):
            assert found == [VALUES[name]]
        elif name == "seed" and job == "sample":
            assert found == (VALUES[name],)
        elif name == "control":
            assert (found.kind, found.file) == ("canny", "")
        else:
            assert found == VALUES[name], name


def test_the_content_is_a_picture_or_the_prompt():
    values = {"prompt": "a", "input": "a.mp4", "image": "b.png", "negative": "c"}
    request = Request(job="restructure", model="m", values=values)
    options = parsed(request.command_line("out"))
    assert (options.prompt, options.image, options.negative) == ([], ["b.png"], None)


def test_the_temporal_guidance_that_no_one_set_is_the_models():
    values = {"prompt": "a", "input": "a.mp4", "temporal": 0}  # an empty number is shown as 0
    request = Request(job="restructure", model="m", values=values)
    assert parsed(request.command_line("out")).temporal is None


def test_fields_that_are_empty_are_left_to_the_model():
    request = Request(job="sample", model="m", values={"prompt": "a", "steps": None, "sampler": ""})
    assert request.command_line("out") == "vdm sample --model=m --prompt=a --out=out"


def test_a_cascade_has_the_samplers_of_its_stages():
    request = Request(job="sample", model="m", values={"steps": 4, "seed": 1}, cascade=True)
    assert request.arguments("out") == ["sample", "--model=m", "--seed=1", "--out=out"]
    with pytest.raises(RequestError, match="m is a cascade, and extend needs one model"):
        Request(job="extend", model="m", values={}, cascade=True)


@pytest.mark.parametrize(
    ("job", "values", "words"),
    [
        ("paint", {}, "job = 'paint': must be one of sample"),
        ("animate", {"prompt": "a"}, "no file was given"),
        ("inpaint", {"input": "a.mp4"}, "nothing is painted"),
        ("control", {"input": "a.mp4", "control": "canny"}, "folder of the ControlNet"),
        ("restructure", {"input": "a.mp4", "structure": 8}, "structure = 8: must be from 1 to 7"),
        ("sample", {"steps": 0}, "steps = 0: must be from 1 to 1000"),
        ("sample", {"steps": 2.5}, "steps = 2.5: must be a whole number"),
        ("sample", {"steps": "many"}, "steps = 'many': must be a number"),
        ("sample", {"guidance": float("inf")}, "guidance = inf: must be a finite number"),
        ("sample", {"seed": -1}, "seed = -1: must be from 0"),
        ("sample", {"num_samples": 99}, "num_samples = 99: must be from 1 to 16"),
    ],
)
def test_what_cannot_be_is_refused_by_name(job, values, words):
    with pytest.raises(RequestError, match=words.replace("(", r"\(")):
        Request(job=job, model="m", values=values)


def test_a_request_without_a_model_is_refused():
    with pytest.raises(RequestError, match="no model is chosen"):
        Request(job="sample", model=" ", values={})


def test_flags_that_do_not_fit_carry_their_words(capsys):
    with pytest.raises(parsing.UsageError) as stop:
        requests.run(["edit", "extend"])
    assert stop.value.code == 2  # as argparse ends a process
    assert stop.value.text == "neither --input nor --prompt"
    assert "vdm edit: error: neither" in capsys.readouterr().err
