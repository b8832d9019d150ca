"""Configurations: overrides, refusals, validation, JSON."""

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from vdm_jax import config as config_lib


def make():
    return ml_collections.ConfigDict(
        {
            "device": "any",
            "model": {"channels": 32, "multipliers": (1, 2), "dropout": 0.1, "attention": ()},
            "train": {
                "steps": 10,
                "batch_size": 8,
                "accumulate": 1,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "sample_prompts": ("a red circle",),
            },
            "sample": {"clip": True},
        }
    )


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("train.steps", "25", 25),
        ("train.learning_rate", "1", 1.0),
        ("train.schedule", "cosine", "cosine"),
        ("model.multipliers", "(1,2,4)", (1, 2, 4)),
        ("model.multipliers", "1,2,4", (1, 2, 4)),
        ("model.multipliers", "3", (3,)),
        ("model.attention", "8,16", (8, 16)),
        ("train.sample_prompts", "a red circle, a blue square", ("a red circle", "a blue square")),
        ("sample.clip", "false", False),
    ],
)
def test_override_takes_the_type_of_the_field(field, text, value):
    config = make()
    config_lib.override(config, field, text)
    section, name = field.split(".")
    assert config[section][name] == value
    assert type(config[section][name]) is type(value)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("train.step", "train.steps"),
        ("train.batchsize", "train.batch_size"),
        ("steps", "train.steps"),
        ("model.learning_rate", "train.learning_rate"),
        ("divice", "device"),
    ],
)
def test_unknown_field_names_the_nearest(field, nearest):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.override(make(), field, "1")
    assert f"--config.{field}: unknown field; the nearest is --config.{nearest}" in str(error.value)


def test_a_section_is_no_field():
    with pytest.raises(config_lib.ConfigError, match=r"is a section; its fields are train"):
        config_lib.override(make(), "train", "1")


@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("train.steps", "ten", "an integer"),
        ("train.steps", "1.5", "an integer"),
        ("train.learning_rate", "fast", "a number"),
        ("sample.clip", "maybe", "a boolean"),
        ("model.multipliers", "(1,2.5)", "a tuple such as (1, 2)"),
        ("model.multipliers", "wide", "a tuple such as (1, 2)"),
    ],
)
def test_ill_typed_value_names_field_value_and_type(field, text, wanted):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.override(make(), field, text)
    message = str(error.value)
    assert field in message and text in message and wanted in message


def test_command_line_is_split():
    overrides, rest = config_lib.split_overrides(
        ["--config=c.py", "--config.train.steps=5", "--workdir", "w", "--config.device", "cpu"]
    )
    assert overrides == {"train.steps": "5", "device": "cpu"}
    assert rest == ["--config=c.py", "--workdir", "w"]
    with pytest.raises(config_lib.ConfigError, match="no value given"):
        config_lib.split_overrides(["--config.train.steps", "--workdir=w"])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("device", "cuda", "one of any, cpu, gpu, tpu"),
        ("train.steps", 0, ">= 1"),
        ("train.learning_rate", 0.0, "> 0"),
        ("train.learning_rate", float("nan"), "> 0"),
        ("train.schedule", "linear", "one of constant, cosine"),
        ("train.accumulate", 3, "must divide by train.accumulate = 3"),
        ("model.dropout", float("inf"), "must be finite"),
    ],
)
def test_values_are_validated_before_anything_is_compiled(field, value, allowed):
    config = make()
    section, _, name = field.rpartition(".")
    target = config[section] if section else config
    target[name] = value
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate(config)
    assert field in str(error.value) and allowed in str(error.value)


def test_validation_lists_every_mistake():
    config = make()
    config.train.steps = -1
    config.device = "gpus"
    with pytest.raises(config_lib.ConfigError, match=r"(?s)device.*train\.steps"):
        config_lib.validate(config)


def test_config_file_is_loaded_overridden_and_locked(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(steps='4'):\n"
        "    return ml_collections.ConfigDict({'train': {'steps': int(steps)}})\n"
    )
    assert config_lib.load_config(path).train.steps == 4
    assert config_lib.load_config(f"{path}:7").train.steps == 7
    config = config_lib.load_config(path, {"train.steps": "9"})
    assert config.train.steps == 9
    with pytest.raises(AttributeError):
        config.train.stepz = 1
    with pytest.raises(config_lib.ConfigError, match="no such file"):
        config_lib.load_config(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(config_lib.ConfigError, match="defines no get_config"):
        config_lib.load_config(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "config.train.learning_rte = 1e-3",
            "unknown field learning_rte; the nearest is learning_r",
        ),
        ("config.train.update(stepz=3)", "unknown field stepz; the nearest is steps"),
        ("config.trian.steps = 3", "unknown field trian; the nearest is train"),
        ("config.colour = 'red'", "unknown field colour; the nearest is"),
        ("config.train.steps = 'ten'", "steps"),
    ],
)
@pytest.mark.parametrize(
    "start", ["vdm.default_config()", "imagen_video.stage_config(imagen_video.PAPER, 'base_40x24')"]
)
def test_a_mistake_in_a_file_is_refused_with_its_line(tmp_path, line, said, start):
    path = tmp_path / "mistaken.py"
    path.write_text(
        "from vdm_jax.systems import imagen_video, vdm\n"
        f"def get_config():\n    config = {start}\n    {line}\n    return config\n"
    )
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.load_config(path)
    assert str(error.value).startswith(f"{path}, line 4: {line}: ") and said in str(error.value)


def test_a_fault_of_the_code_below_a_file_is_not_hidden(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return {}['absent']\n")
    with pytest.raises(KeyError, match="absent"):
        config_lib.load_config(path)


def test_configurations_are_found_by_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "vdm/moving_shapes" in config_lib.config_names()
    path, argument = config_lib.find_config("imagen_video/tiny/distill:base_8")
    assert path.is_file() and argument == "base_8"
    assert config_lib.load_config("vdm/moving_shapes", {"train.steps": "5"}).train.steps == 5
    with pytest.raises(config_lib.ConfigError, match="the nearest name is vdm/moving_shapes$"):
        config_lib.load_config("vdm/moving_shape")
    with pytest.raises(config_lib.ConfigError, match="needs an argument: .*:STAGE"):
        config_lib.load_config("imagen_video/tiny/distill")
    with pytest.raises(config_lib.ConfigError, match="takes no argument"):
        config_lib.load_config("vdm/moving_shapes:7")


def test_every_configuration_loads():
    for name in config_lib.config_names():
        config = config_lib.load_config(f"{name}:base_8" if name.endswith("/distill") else name)
        assert config.is_locked


def test_config_flags_of_ml_collections_reads_the_same_files_and_flags():
    path, _ = config_lib.find_config("vdm/moving_shapes")
    arguments = ["program", f"--config={path}", "--config.train.steps=5"]
    values = flags.FlagValues()
    defined = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    ours = config_lib.load_config(path, {"train.steps": "5"})
    assert defined.value.to_dict() == ours.to_dict()


def test_json_round_trip():
    config = make()
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert type(again.model.multipliers) is tuple


def test_only_fields_that_matter_forbid_resuming():
    old, new = make(), make()
    new.train.steps = 99
    new.device = "cpu"
    new.sample.clip = False
    new.train.sample_prompts = ()
    assert config_lib.resume_differences(old, new) == []
    new.train.learning_rate = 0.5
    new.model.width = 3
    assert config_lib.resume_differences(old, new) == [
        "model.width: '(absent)' -> 3",
        "train.learning_rate: 0.001 -> 0.5",
    ]


def test_a_run_goes_on_where_a_newer_version_has_a_field_that_is_off():
    old, new = make(), make()
    new.model.depth, new.model.low_res, new.model.name, new.train.augment = 0, False, "", ()
    assert config_lib.resume_differences(old, new) == []
    assert config_lib.resume_differences(new, old) == []
    new.model.low_res = True
    assert config_lib.resume_differences(old, new) == ["model.low_res: '(absent)' -> True"]
    assert config_lib.resume_differences(new, old) == ["model.low_res: True -> '(absent)'"]
    # What both have is compared: off is not on.
    old.model.low_res = False
    assert config_lib.resume_differences(old, new) == ["model.low_res: False -> True"]
