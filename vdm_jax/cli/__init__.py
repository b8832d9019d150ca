"""The command `vdm`: one file a subcommand. Nothing is imported before a subcommand is chosen."""

import importlib
import sys

# name: (module, what it does)
COMMANDS = {
    "train": ("train", "train a model"),
    "train_cascade": ("train_cascade", "train the stages of a cascade"),
    "sample": ("sample", "sample videos from prompts"),
    "edit": ("edit", "extend, interpolate, inpaint, ... videos with a trained model"),
    "stylise": ("stylise", "give a space-time U-Net the style of an image model"),
    "distill": ("distill", "distil a model into one that needs few steps and no guidance"),
    "evaluate": ("evaluate", "measure a model, or anyone's videos"),
    "prepare_data": ("prepare_data", "prepare a data set on disk"),
    "embed_text": ("embed_text", "embed the captions of a data set"),
    "compile": ("compile", "compile for TPUs or GPUs that are not here: memory and speed"),
    "describe": ("describe", "show the network of a configuration"),
    "gallery": ("gallery", "make a page of what the shipped models can do"),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs `vdm ARGUMENTS` (default: those of this process) and ends the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: vdm COMMAND [FLAGS]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:14}{text}")
        return
    if arguments[0] not in COMMANDS:
        print(f"error: {arguments[0]!r}: there is no such command", file=sys.stderr)
        sys.exit(2)
    from vdm_jax.cli import common

    module = importlib.import_module(f"vdm_jax.cli.{COMMANDS[arguments[0]][0]}")
    common.run(module.main, arguments[1:])
