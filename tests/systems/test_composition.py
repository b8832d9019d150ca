"""Every field of a configuration's sections reaches the part of the stage that it is for: the parts
of a stage are compared whole with what its configuration says, no value being a default."""

import pytest

from tests.test_wiring import make_config
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.diffusion.process import make_process
from vdm_jax.stage.conditions.prompt import Label, Text
from vdm_jax.stage.conditions.scalar import FrameRate, GuidanceScale
from vdm_jax.stage.conditions.video import LowResVideo, MaskedVideo
from vdm_jax.stage.refinement import Plain, Refinement
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.view import View
from vdm_jax.systems import imagen_video, lumiere, vdm

PROCESS = {
    "schedule": "cosine",
    "logsnr_min": -12.0,
    "logsnr_max": 9.0,
    "logsnr_shift": -1.0,
    "prediction": "v",
    "loss": "truncated_snr",
}
REFINING = {
    "stage.shape": (8, 16, 16),
    "stage.low_res": (4, 8, 8),
    "stage.fill": "blend",
    "stage.residual": 0.2,
    "stage.residual_of_acceleration": 0.5,
    "stage.residual_of_contrast": 0.25,
    "stage.max_augmentation": 0.5,
    "stage.crop": (8, 8),
    "stage.frame_strides": (1, 2),
    "stage.data_fps": 12.0,
    "data.num_frames": 16,
    "data.image_size": 32,
    "data.image_width": 48,
    "train.cond_dropout": 0.3,
}


def build(system, changes):
    process = {f"process.{name}": value for name, value in PROCESS.items()}
    config = make_config(system, [*process.items(), *changes.items()])
    stage = systems.build(config)
    assert stage.process == make_process(config.process) and stage.process.prediction == "v"
    return stage


def test_a_stage_of_imagen_video_has_the_parts_of_its_configuration():
    stage = build(
        "imagen_video", REFINING | {"stage.shape": (8, 16, 24), "stage.low_res": (4, 8, 12)}
    )
    shape, low_res = (8, 16, 24, 3), (4, 8, 12, 3)
    assert stage.space == PixelSpace(data_shape=shape)
    assert stage.view == View(
        shape=shape,
        data_shape=(16, 32, 48, 3),
        data_fps=12.0,
        frame_strides=(1, 2),
        crop=(8, 8),
    )
    refinement = Refinement(
        shape=shape,
        low_res_shape=low_res,
        fill="blend",
        deviation=0.2,
        acceleration=0.5,
        contrast=0.25,
    )
    assert stage.parametrisation == refinement
    text, *others = stage.conditions
    assert isinstance(text, Text) and text.drop == 0.3
    assert text.encoder.max_length == 3
    assert others == [
        FrameRate(fps=12.0, trained=(12.0, 6.0)),
        LowResVideo(
            shape=shape,
            low_res_shape=low_res,
            fill="blend",
            schedule=stage.process.schedule,
            max_augmentation=0.5,
            refinement=refinement,
        ),
    ]
    assert stage.train_only == stage.new == ""


def test_a_base_refines_nothing():
    base = {"stage.shape": (8, 16, 16), "stage.low_res": (), "train.cond_dropout": 0.3}
    stage = build("imagen_video", base)
    assert stage.parametrisation == Plain() and stage.find(LowResVideo) is None
    assert stage.network.reads - {"tokens", "token_mask"} == {"fps"}
    for name in ("residual", "residual_of_acceleration", "residual_of_contrast"):
        with pytest.raises(ValueError, match=f"stage.{name} = 0.1"):
            build("imagen_video", base | {f"stage.{name}": 0.1})


@pytest.mark.parametrize("inflated", [False, True])
def test_a_stage_of_lumiere_has_the_parts_of_its_configuration(inflated):
    config = lumiere.stage_config("ssr", (4, 8, 16), low_res=(4, 4, 8), fps=5.0).unlock()
    stage = config.stage
    assert (stage.name, stage.shape, stage.low_res) == ("ssr", (4, 8, 16), (4, 4, 8))
    assert (stage.data_fps, stage.masks, stage.train_new_only) == (5.0, (), False)
    assert config.system == "lumiere" and config.data.image_width == 16
    model = config.model
    assert (model.temporal, model.temporal_levels, model.temporal_resize) == ("none", (), ())
    assert (model.temporal_depth, model.num_res_blocks) == (1, (2, 2, 2, 2))
    config.model.channel_mult = (1, 2, 3)
    assert lumiere.inflate(config, resize=(0, 1)) is config
    assert (model.temporal, model.temporal_levels) == ("space_time", (0, 1, 2))
    assert model.temporal_resize == (0, 1) and config.stage.train_new_only

    changes = {"stage.masks": ("inpaint", "first_frame"), "train.cond_dropout": 0.3}
    changes |= {"data.num_frames": 8, "data.image_size": 16, "data.image_width": 24}
    changes |= {"stage.shape": (4, 8, 12), "stage.data_fps": 6.0, "stage.train_new_only": inflated}
    if not inflated:
        changes |= {"model.temporal": "none", "model.temporal_levels": ()}
    stage = build("lumiere", changes)
    shape = (4, 8, 12, 3)
    assert stage.view == View(shape=shape, data_shape=(8, 16, 24, 3), data_fps=6.0)
    text, masked = stage.conditions
    assert isinstance(text, Text) and text.drop == 0.3
    assert masked == MaskedVideo(shape=shape, kinds=("inpaint", "first_frame"))
    assert stage.network.reads - {"tokens", "token_mask"} == {"masked_video", "mask"}
    assert (stage.train_only, stage.new) == ((lumiere.NEW,) * 2 if inflated else ("", ""))


def test_a_model_of_vdm_has_the_parts_of_its_configuration():
    changes = {"data.num_frames": 5, "data.image_size": 12, "model.out_channels": 2}
    changes |= {"model.num_labels": 7, "train.cond_dropout": 0.3, "model.guidance_embedding": True}
    stage = build("vdm", changes)
    assert stage.space == PixelSpace(data_shape=(5, 12, 12, 2))
    assert stage.view == View(shape=(5, 12, 12, 2))
    text, label, scale = stage.conditions
    assert text.drop == 0.3 and label == Label(count=7, drop=0.3)
    assert scale == GuidanceScale(trained=None)


def test_a_student_is_bounded_by_the_scales_of_its_distillation():
    config = make_config("vdm", [("model.guidance_embedding", True)])
    config.distill = {"guidance_min": 1.5, "guidance_max": 3.5}
    assert systems.build(config).find(GuidanceScale).trained == (1.5, 3.5)


@pytest.mark.parametrize("number", range(7))
def test_a_stage_of_the_paper_reads_clips_of_its_own_shape(number):
    spec = imagen_video.PAPER[number]
    fields = dict(config_lib.flatten(imagen_video.stage_config(imagen_video.PAPER, spec.name)))
    base = spec.kind == "base"
    wanted = {
        "system": "imagen_video",
        "stage.name": spec.name,
        "stage.shape": spec.shape,
        "stage.low_res": imagen_video.PAPER[number - 1].shape if number else (),
        "stage.data_fps": spec.fps,
        "data.name": "video_folder",
        "data.num_frames": spec.frames,
        "data.image_size": spec.height,
        "data.image_width": spec.width,
        "data.fps": spec.fps,
        "model.temporal": "attention" if base else "convolution",
        "model.temporal_levels": (0, 1, 2, 3),
        "model.num_res_blocks": (2, 2, 2, 2),
        "sample.augmentation": 0.0 if base else 3.0,
        "sample.steps": 256 if base else 128,
        "sample.threshold": "dynamic",
        "sample.guidance": 15.0 if number < 4 else 5.0,
    }
    assert {name: fields[name] for name in wanted} == wanted


# Sections that every configuration has, and their fields: what is not there cannot be overridden.
SECTIONS = {
    "mesh": """
        data fsdp tensor context dcn_data dcn_fsdp dcn_tensor dcn_context min_fsdp_size
        offload""",
    "process": "schedule logsnr_min logsnr_max logsnr_shift prediction loss",
    "text": "encoder max_length vocabulary_size vocabulary weights dtype identity",
    "data": """
        name config data_dir split num_frames image_size image_width frame_stride fps source_fps
        image_frames augment workers""",
    "train": """
        init_from steps minutes batch_size seed optimizer learning_rate schedule warmup_steps beta1
        beta2 weight_decay moment_dtype clip_norm skip_nonfinite accumulate ema_decay cond_dropout
        log_every sample_every sample_prompts lora""",
    "checkpoint": "every keep fallback",
    "sample": """
        sampler steps guidance oscillate_after grid corrector threshold augmentation tile
        tile_overlap window window_overlap batch_size eta gamma churn churn_min churn_max
        churn_noise rho sigma_min sigma_max shared_noise""",
    "model": """
        channels channel_mult num_res_blocks attention_levels head_dim patch_size out_channels
        norm_groups dropout spatial_attention skips coordinates output_skip output_gate
        embedding_dim text_kernel num_labels frame_positions guidance_embedding dtype remat""",
}
STAGE = "name shape low_res fill residual residual_of_acceleration residual_of_contrast "
STAGE += "max_augmentation crop frame_strides data_fps"
TIME = " temporal temporal_levels"


FURTHER = {
    "vdm": {},
    "imagen_video": {"stage": STAGE, "model": SECTIONS["model"] + TIME},
    "lumiere": {
        "stage": f"{STAGE} masks train_new_only",
        "model": SECTIONS["model"] + TIME + " temporal_resize temporal_depth",
    },
}


@pytest.mark.parametrize("system", FURTHER)
def test_the_fields_of_a_configuration(system):
    config = {
        "vdm": vdm.default_config,
        "imagen_video": lambda: imagen_video.stage_config(imagen_video.PAPER, "base_40x24"),
        "lumiere": lambda: lumiere.stage_config("t2i", (1, 8, 8), fps=1.0),
    }[system]()
    sections = SECTIONS | FURTHER[system]
    found = {name: sorted(part) for name, part in config.items() if hasattr(part, "items")}
    assert found == {name: sorted(fields.split()) for name, fields in sections.items()}
    assert config.device == "any"
