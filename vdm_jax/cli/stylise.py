"""Gives a space-time U-Net the style of an image model.

    python -m launch.stylise --model=DIR --style=IMAGE_MODEL --amount=0.7 --out=FILE.safetensors

--style is a model that --model's image model was fine-tuned to (launch.train with
--config.train.init_from=IMAGE_MODEL on images of the style). The image layers of FILE are amount of
the way to it, the others are --model's (Lumiere, section 4.1). Sample it with launch.sample
--model=FILE.
"""

from vdm_jax.cli import common


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.stylise", __doc__)
    source = {"required": True, "metavar": "SOURCE"}
    parser.add_argument("--model", **source, help="a workdir or file of a space-time U-Net")
    parser.add_argument("--style", **source, help="a workdir or file of an image model")
    parser.add_argument(
        "--amount", type=float, default=0.7, metavar="X", help="from 0 to 1 (default 0.7)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="a .safetensors file")
    options = parser.parse_args(arguments)
    if not options.out.endswith(".safetensors"):
        parser.error(f"--out={options.out}: must end in .safetensors")
    common.setup("any")

    from vdm_jax.pipelines import model as pretrained
    from vdm_jax.systems import lumiere

    model, style = pretrained.load(options.model), pretrained.load(options.style)
    params = lumiere.stylise(model.params, style.params, options.amount)
    print(pretrained.save_model(options.out, params, model.config))
    return 0
