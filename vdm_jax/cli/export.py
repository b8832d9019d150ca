"""Writes a trained model as one .safetensors file, which every command takes as --model.

    vdm export --model=DIR --out=FILE.safetensors [--half] [--base=MODEL]

The file holds the moving average of the parameters, the configuration and a digest, which is
checked whenever the file is read. --half stores float16, half as large. With --base=MODEL, a
shipped name, a file or a published folder that this model was trained from (train.init_from), the
file holds only the parameters that differ from it; loading the file then needs MODEL in the same
place.
"""

from pathlib import Path

from vdm_jax.cli import common, outputs, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm export", __doc__)
    parser.add_argument("--model", required=True, metavar="MODEL", help="a workdir or a file")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file, .safetensors")
    parser.add_argument("--half", action="store_true", help="store float16")
    parser.add_argument("--base", metavar="MODEL", help="store the difference from this model")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if out.suffix != ".safetensors":
        parser.error(f"--out={options.out}: must end in .safetensors")
    common.setup("cpu", quiet=True)
    outputs.check_file(out, "--out")

    from vdm_jax.pipelines import model as pretrained

    model = pretrained.load(options.model)
    pretrained.save_model(out, model.params, model.config, half=options.half, base=options.base)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {pretrained.digest(out)}")
    return 0
