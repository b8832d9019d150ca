"""The file of a cascade: every byte matters, and files of before are read with a warning."""

import json

import pytest

from vdm_jax.pipelines import cascade, cascade_file
from vdm_jax.pipelines import model as pretrained

STAGES, SAMPLE = ("base", "ssr"), {"base": {"steps": 8, "sampler": "ddim"}}


@pytest.fixture
def folder(tmp_path):
    cascade_file.write(tmp_path, STAGES, SAMPLE)
    for name in STAGES:
        (tmp_path / f"{name}.safetensors").touch()
    return tmp_path


def test_a_file_is_read_as_it_was_written(folder):
    content = cascade_file.read(folder)
    assert content.stages == STAGES and content.sample == SAMPLE
    assert [step.name for step in cascade.load(folder).steps] == list(STAGES)
    assert cascade.load(folder).steps[0].changes == SAMPLE["base"]
    assert [path.name for path in folder.glob("cascade*")] == ["cascade.json"]
    cascade_file.write(folder, STAGES, {})
    assert cascade_file.read(folder).digest != content.digest


def test_every_byte_of_a_file_matters(folder):
    path = folder / cascade_file.NAME
    whole = path.read_bytes()
    for at in range(len(whole)):
        for mask in (1 << at % 8, 0x20, 0xFF):  # 0x20 makes a capital letter, also of a digest's
            flipped = bytearray(whole)
            flipped[at] ^= mask
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=rf"{path}: .*damaged"):
                cascade_file.read(folder)
    for content in (b"", b"[]", b"null", whole[:-1], whole + b"\n", b"[" * 100_000):
        path.write_bytes(content)
        for reader in (cascade.load, cascade.digest, pretrained.load):
            with pytest.raises(ValueError, match=rf"{path}: .*damaged"):
                reader(folder)


def test_the_format_of_before_does_not_take_the_digest_out(folder):
    path = folder / cascade_file.NAME
    path.write_text(path.read_text().replace(cascade_file.FORMAT, cascade_file.UNCHECKED))
    with pytest.raises(ValueError, match="is damaged: vdm_jax_cascade/1 has format, stages"):
        cascade.load(folder)


def test_a_file_without_a_digest_is_read_with_a_warning(folder):
    path = folder / cascade_file.NAME
    old = {"format": cascade_file.UNCHECKED, "stages": STAGES, "sample": SAMPLE}
    path.write_text(json.dumps(old, indent=2) + "\n")
    with pytest.warns(UserWarning, match=rf"{path}: was written without a digest"):
        found = cascade.load(folder)
    assert found.stages == STAGES and found.steps[0].changes == SAMPLE["base"]


def test_the_shipped_files_have_a_digest():
    assert len(pretrained.shipped_cascades()) == 2
    for name in pretrained.shipped_cascades():
        text = (pretrained.SHIPPED / name / cascade_file.NAME).read_text()
        assert json.loads(text)["format"] == cascade_file.FORMAT
        assert cascade.load(name).stages
