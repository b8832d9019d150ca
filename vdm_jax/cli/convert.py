"""Writes a model as a folder that the published libraries load.

    vdm convert --to=diffusers --model=MODEL --out=FOLDER [--dtype=float16] [--merged]

MODEL is a working directory, a file or a folder of a latent image model or an autoencoder. Of a
latent image model FOLDER receives unet/, scheduler/, vae/ and model_index.json, and text_encoder/
and tokenizer/ where the text encoder is one that the published pipeline has. With another text
encoder FOLDER is a pipeline for this library only. What was read from such a folder is written with
the same bits if --dtype is the type that it had.

Of an autoencoder FOLDER receives its config.json and tensors. The scaling factor is measured on the
data that it was trained on. Of an image-text pair FOLDER receives the same, in this library's own
format. Of a model that was trained with train.control, FOLDER receives the ControlNet's. Of one
that vdm tune --norm_over_frames tuned, FOLDER receives a whole pipeline in the format of
Tune-A-Video's code.

If MODEL was trained with train.lora, FOLDER receives pytorch_lora_weights.safetensors, or with
--merged the whole model: the base with the LoRA added.
"""

from pathlib import Path

from vdm_jax.cli import common, outputs, parsing

DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm convert", __doc__)
    parser.add_argument("--to", required=True, choices=("diffusers",), help="the format")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a workdir, a file or a folder"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="an empty or new folder")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the tensors (default float32)"
    )
    parser.add_argument(
        "--merged", action="store_true", help="of a LoRA: the base with the LoRA added"
    )
    options = parser.parse_args(arguments)
    out = Path(options.out)
    common.setup("cpu", quiet=True)
    if out.is_dir() and any(out.iterdir()):
        parser.error(f"--out={options.out}: is not empty")
    outputs.check_folder(out, "--out")

    from vdm_jax import systems
    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.stage import control, low_rank
    from vdm_jax.weights import lora

    model = pretrained.load(options.model)
    stage = model.stage
    if isinstance(stage, low_rank.LowRank) and not options.merged:
        pairs, scale = stage.pairs(model.params), stage.alpha / stage.rank
        systems.write_lora(out / lora.FILE, model.config, pairs, scale, options.dtype)
        parts = [lora.FILE]
    elif isinstance(stage, control.ControlStage):
        systems.write_control(out, stage, model.params, options.dtype)
        parts = ["the ControlNet"]
    else:
        params = stage.network_params(model.params, model.frozen)
        parts = systems.write_published(out, model.config, params, options.dtype)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {', '.join(parts)}; {size / 1e6:.1f} MB")
    return 0
