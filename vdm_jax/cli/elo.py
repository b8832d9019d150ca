"""Finds a threshold of a score: trains a small model on each cut of the clips, and lets votes on
pairs of their samples rank the models (Stable Video Diffusion, appendix E).

    vdm data elo --out=DIR --score=motion --quantiles=0,0.25,0.5 --config=CONFIG --reference=CLIPS
    vdm data elo --out=DIR --score=motion --config=CONFIG --votes=page
    vdm data elo --out=DIR --score=motion --config=CONFIG --votes=VOTES.jsonl
    vdm data elo --out=DIR --curated --config=CONFIG --reference=CLIPS

DIR is the folder of vdm data curate, whose films must still be there. For each quantile q the share
q of the kept clips with the worst scores is dropped. The range of the score itself is ignored, all
others hold. --curated compares the whole curation with none: the films as they are (raw), a random
half of them (half), and the kept clips (curated).

Each model is trained as CONFIG says, with equally many updates; --config.FIELD=VALUE sets a field
of all, such as --config.train.steps=500. All draw samples of the same captions and noise. Votes:

    features   I3D logits nearer to the clips of --reference (default with --reference)
    judge      more of the caption is right; for rendered data (docs/evaluation.md)
    warp       smaller warp error
    page       yours: writes WORKDIR/votes.html. Open it, vote with the arrow keys, save the votes,
               and give the file that it saves as --votes=FILE (default without --reference)
    FILE       a JSONL file: {"first": "q0", "second": "q0.5", "sample": 3, "share": 1} a line;
               share is 1 where the first is better, 0 where the second is, 0.5 where they are equal

Prints the ratings with 95% intervals (bootstrap over samples) and the flag of vdm data curate that
sets the best threshold. WORKDIR/elo.json has the same. The command can be stopped and run again:
what is trained or sampled is not trained or sampled again. Other votes need neither.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.cli import common, elo_players, outputs, parsing, train
from vdm_jax.cli.curate import check_installed

_RESULTS, _PAGE = "elo.json", "votes.html"


def main(arguments: list[str]) -> int:
    from vdm_jax import config as config_lib

    parser = _parser()
    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if bool(options.score) == options.curated:
        parser.error("give either --score, to compare its cuts, or --curated")
    votes = options.votes or ("features" if options.reference else "page")
    if votes == "features" and not options.reference:
        parser.error("--votes=features needs --reference, a folder of held-out clips")
    check_installed()
    name = options.score or "curated"
    workdir = Path(options.workdir or Path(options.out, "elo", name))
    outputs.check_folder(str(workdir), "--workdir")
    config = config_lib.load_config(options.config, overrides)
    if "stages" in config:
        parser.error(f"--config={options.config} is a cascade: give the configuration of one stage")
    common.setup(config.device)
    if options.curated:
        players = elo_players.curation(options.out, workdir, config.train.seed)
    else:
        players = elo_players.cuts(options.out, options.score, options.quantiles)
    return _compare(options, votes, config, players, workdir)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.parser("vdm data elo", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="of vdm data curate")
    parser.add_argument("--score", metavar="NAME", help="a score of clips.parquet")
    parser.add_argument(
        "--quantiles",
        type=_quantiles,
        default=(0.0, 0.25, 0.5),
        metavar="Q,Q",
        help="shares of the clips that are dropped (default 0,0.25,0.5)",
    )
    parser.add_argument("--curated", action="store_true", help="compare raw, half and curated")
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="of each model: a name or a file"
    )
    parser.add_argument(
        "--reference", metavar="PATH", help="a folder or an archive of held-out clips"
    )
    parser.add_argument(
        "--votes", metavar="VOTES", help="features, judge, warp, page, or a file of votes"
    )
    parser.add_argument(
        "--num_samples",
        type=parsing.positive,
        default=64,
        metavar="N",
        help="of each model (default 64)",
    )
    parser.add_argument(
        "--i3d", metavar="FILE", help="weights of I3D, where they cannot be fetched"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="where models and results go (default OUT/elo/NAME)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of samples (default 0)")
    return parser


def _quantiles(text: str) -> tuple[float, ...]:
    """An argparse type: different numbers from 0 to below 1."""
    try:
        found = tuple(sorted({float(one) for one in text.split(",")}))
    except ValueError:
        found = ()
    if len(found) < 2 or not all(0 <= one < 1 for one in found):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be two or more different numbers from 0 to below 1, such as 0,0.25,0.5"
        )
    return found


def _compare(options, votes: str, config, players, workdir: Path) -> int:
    from vdm_jax.evaluation import elo
    from vdm_jax.evaluation import votes as votes_lib

    names = [player.name for player in players]
    if votes not in (*votes_lib.METRICS, "page"):  # before hours of training
        votes_lib.read(votes, names, options.num_samples)
    configs = elo_players.configs(config, players, workdir)
    reference = None
    if options.reference:
        reference = _reference(options, config)
    prompts = elo_players.choose_prompts(
        configs[0], reference.captions if reference else (), options.num_samples, options.seed
    )
    videos = {}
    for player, own in zip(players, configs, strict=True):
        drawn = elo_players.train_and_sample(
            player, own, workdir / player.name, prompts, options.seed, train.fit
        )
        if drawn is None:
            print("the same command goes on from there")
            return common.PREEMPTED
        videos[player.name] = drawn
    if votes == "page":
        from vdm_jax.cli import elo_page

        page = workdir / _PAGE
        elo_page.write(page, videos, prompts, config.data.fps or 8.0, options.seed)
        print(f"{page}: open it, vote, and run this command again with --votes=FILE")
        return 0
    cast = _vote(options, votes, videos, prompts, reference)
    ratings = elo.rate(names, cast, seed=options.seed)
    rows = [
        {**dataclasses.asdict(player), **dataclasses.asdict(rating)}
        for rating in ratings
        for player in players
        if player.name == rating.name
    ]
    result = {
        "votes": votes,
        "number_of_votes": len(cast),
        "samples": options.num_samples,
        "updates": config.train.steps,
        "seed": options.seed,
        "players": rows,
    }
    _print(rows, len(cast), votes)
    (workdir / _RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    print(workdir / _RESULTS)
    return 0


def _reference(options, config):
    from vdm_jax.evaluation import clips

    data = config.data
    return clips.from_path(
        options.reference,
        num_frames=data.num_frames,
        size=(data.image_size, data.image_width or data.image_size),
        stride=data.frame_stride,
        count=None,
        seed=options.seed,
        fps=data.fps,
    )


def _vote(options, votes: str, videos, prompts: Sequence[str], reference):
    from vdm_jax.evaluation import votes as votes_lib

    if votes == "features":
        from vdm_jax.evaluation import i3d, i3d_weights

        network = i3d.I3DFeatures(params=i3d_weights.load_weights(source=options.i3d))
        held_out = network(reference.videos)[0]
        quality = {
            name: votes_lib.nearness(network(drawn)[0], held_out) for name, drawn in videos.items()
        }
    elif votes == "judge":
        quality = {name: votes_lib.correctness(drawn, prompts) for name, drawn in videos.items()}
    elif votes == "warp":
        from vdm_jax.evaluation import fidelity

        quality = {name: -fidelity.warp_error(drawn).clips for name, drawn in videos.items()}
    else:
        return votes_lib.read(votes, list(videos), len(prompts))
    return votes_lib.by_quality(quality)


def _print(rows: Sequence[dict], count: int, votes: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("model", "clips", "range", "rating", "95% interval", "votes won"):
        table.add_column(name, justify="left" if name in ("model", "range") else "right")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["clips"]),
            row["flag"].rpartition("=")[2] or "-",
            f"{row['value']:.0f}",
            f"{row['low']:.0f} … {row['high']:.0f}",
            f"{row['share']:.1%}",
        )
    Console().print(table)
    print(f"{count} votes ({votes})")
    best, second = rows[:2]
    print(f"best: {best['name']}" + (f"; vdm data curate {best['flag']}" if best["flag"] else ""))
    if best["low"] <= second["high"]:
        print(
            f"note: its interval overlaps that of {second['name']}; --num_samples, more votes or "
            "longer training may tell them apart"
        )
