"""Gen-1 on scenes, fine-tuned on a few pictures, so that its content is of their kind.

Command: vdm train --config=gen1/tiny/customise --workdir=DIR --config.train.init_from=MODEL \\
    --config.data.data_dir=FOLDER_OF_PICTURES --config.model.depth=FOLDER_OF_ESTIMATOR
    vdm edit restructure --model=DIR --num_frames=8 --input=clip.mp4 --image=PICTURE
Hardware: 2 CPU cores.

A picture is a clip of one frame, so the layers over frames stay for clips what they were but for
what a single frame teaches them. MODEL is of phase 4.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_structure(recipe.tiny_config(frames=1), 7)
    config.data.name = "video_folder"
    config.data.config = ""
    config.data.extras = ()
    config.train.learning_rate = 1e-4
    config.train.steps = 200
    config.train.batch_size = 8
    return config
