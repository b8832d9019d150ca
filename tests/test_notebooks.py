"""The notebooks of docs/ run from top to bottom, at a size that takes seconds."""

import re

import pytest

from tests.documents import ROOT
from tests.models.text import test_minilm
from tests.systems.test_latent_image import write_folder
from vdm_jax.weights import fetch

FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.md"))
SHIPPED = 'config_lib.load_config("dit/autoencoder").model.autoencoder.to_dict()'
AUTOENCODER = """{
    "_class_name": "AutoencoderKLWan", "base_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1,
    "z_dim": 4, "temperal_downsample": [True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
}"""
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 1,
}


def cells(name):
    """The programs of a notebook's cells, in order."""
    text = (FOLDER / f"{name}.md").read_text()
    return re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """What is replaced in each notebook: by name, texts and what stands for them."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        image = {'"scenes_image"': repr(str(write_folder(folder / "model")))}
        changes = {f"model.transformer.{name}": str(n) for name, n in TRANSFORMER.items()}
        changes |= {
            "text.weights": str(test_minilm.write_folder(folder / "weights")),
            "text.max_length": "6",
            "data.part": "(3,8,8)",
        }
        yield {
            "pixels": {'LAST = "tsr_12fps"': 'LAST = "tsr_6fps"'},
            "latent_image": {**image, "STEPS = 20": "STEPS = 2", ', "a dog on a green meadow"': ""},
            "zero_shot": {**image, "STEPS = 20": "STEPS = 4", "frames=4": "frames=2"},
            "editing": {**image, "= 64, 4, 20, 10": "= 16, 2, 1, 2"},
            "video_transformer": {
                "CHANGES = {}": f"CHANGES = {changes}",
                SHIPPED: AUTOENCODER,
            },
        }


def test_there_is_one_a_family_and_each_is_short():
    assert len(NAMES) == 5
    assert all(3 < len(cells(name)) < 10 for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, smaller):
    program = "\n".join(cells(name))
    for text, other in smaller[name].items():
        assert text in program, f"{name}: {text!r} is no part of it"
        program = program.replace(text, other)
    scope: dict = {}
    exec(compile(program, f"docs/notebooks/{name}.md", "exec"), scope)
