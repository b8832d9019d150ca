"""The models of `vdm data elo`: their clips, their training and their samples."""

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_ABOUT, _RUN = "player.json", "run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Player:
    """A model that is trained on some of the clips.

    Attributes:
      data: the name of its data set, `video_shards` or `video_folder`; folder: where that is.
      clips: how many clips, or films, it has.
      identity: changes when these do.
      flag: of `vdm data curate`, which keeps these clips; "" where none does.
    """

    name: str
    data: str
    folder: str
    clips: int
    identity: str
    flag: str = ""


def cuts(out: str, score: str, quantiles: Sequence[float]) -> list[Player]:
    """A player for each share of clips with the worst scores that is dropped; writes its shards.

    Raises DataError for an unknown score, and for cuts that keep no clips or the same ones.
    """
    import numpy as np

    from vdm_jax.data.curation import curate, settings
    from vdm_jax.data.source import DataError

    _, rows = curate.read(out, {score: ""})
    kept = [row for row in rows if row.kept]
    known = sorted({name for row in kept for name in row.scores})
    if score not in known:
        raise DataError(f"--score={score}: the kept clips have {', '.join(known) or 'no scores'}")
    values = [row.scores[score] for row in kept]
    drops_great = settings.RANGES.get(score, "").startswith(":")
    players: list[Player] = []
    for share in quantiles:
        text = ""
        if share:
            bound = float(np.quantile(values, 1 - share if drops_great else share))
            text = f"{_outward(bound, math.floor)}:"
            if drops_great:
                text = f":{_outward(bound, math.ceil)}"
        work, rows = curate.read(out, {score: text})
        players.append(_sharded(f"q{share:g}", work, rows, f"--config.keep.{score}={text}"))
        if len(players) > 1 and players[-1].identity == players[-2].identity:
            raise DataError(
                f"--quantiles: {players[-2].name} and {players[-1].name} keep the same clips, "
                f"because many have the same {score}"
            )
    return players


def _outward(bound: float, rounded: Callable[[float], float]) -> str:
    """A bound as text of six digits. rounded: `math.floor` or `math.ceil`, so that the clip at the
    bound stays inside."""
    if not bound:
        return "0"
    scale = 10.0 ** (5 - math.floor(math.log10(abs(bound))))
    return f"{rounded(bound * scale) / scale:.6g}"


def curation(out: str, workdir: Path, seed: int) -> list[Player]:
    """Players of the films as they are, of a random half of them, and of the kept clips."""
    from vdm_jax.data.curation import curate
    from vdm_jax.data.curation.settings import digest

    work, rows = curate.read(out, {})
    films = sorted({row.film for row in rows if row.digest})
    half = sorted(random.Random(seed).sample(films, len(films) // 2))
    folder = workdir / "half" / "films"
    for film in half:
        source, link = Path(work.videos, film).absolute(), folder / film
        link.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (source.suffix, ".txt", ".json"):  # the film's captions lie beside it
            if source.with_suffix(suffix).exists() and not link.with_suffix(suffix).is_symlink():
                link.with_suffix(suffix).symlink_to(source.with_suffix(suffix))
    raw, fewer = (
        Player(
            name=name,
            data="video_folder",
            folder=str(place),
            clips=len(names),
            identity=digest(names),
        )
        for name, place, names in (("raw", work.videos, films), ("half", folder, half))
    )
    return [raw, _sharded("curated", work, rows, ""), fewer]


def _sharded(name: str, work, rows, flag: str) -> Player:
    """A player of the kept clips. Raises DataError where none is."""
    from vdm_jax.data.curation import engine, output
    from vdm_jax.data.curation.settings import digest
    from vdm_jax.data.source import DataError

    names = [row.name for row in rows if row.kept]
    if not names:
        raise DataError(f"{name}: no clip of {work.out} is kept")
    identity = digest(names)
    folder = Path(work.out, "elo", "shards", identity)
    with engine.locked(Path(work.out)):
        workers = len(os.sched_getaffinity(0))
        output.write_shards(work, rows, engine.in_pool(workers), folder=folder)
    return Player(
        name=name,
        data="video_shards",
        folder=str(folder),
        clips=len(names),
        identity=identity,
        flag=flag,
    )


def configs(config, players: Sequence[Player], workdir: Path) -> list:
    """The configuration of each player: its own data, and the words of the first player's captions,
    so that the networks are equal and read all captions alike.

    Raises ConfigError where the text encoder needs embeddings beside the data.
    """
    from vdm_jax.config import ConfigError
    from vdm_jax.data import pipeline

    if config.text.encoder not in ("none", "words"):
        raise ConfigError(
            f"text.encoder = {config.text.encoder!r}: vdm data elo trains with words or none, "
            "because each cut would need embeddings of its own"
        )
    found = []
    for player in players:
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.data.name, own.data.data_dir = player.data, player.folder
            own.data.config = ""
            if found:
                own.text = found[0].text.copy_and_resolve_references()
        found.append(pipeline.with_vocabulary(own))
    return found


def choose_prompts(config, captions: Sequence[str], count: int, seed: int) -> list[str]:
    """The captions that are sampled: held-out ones, or those of the first player's clips.

    Captions with words that the players do not have are passed over. Raises DataError where none is
    left.
    """
    from vdm_jax import systems
    from vdm_jax.data import pipeline
    from vdm_jax.data.source import DataError

    if config.text.encoder == "none":
        return [""] * count
    stage = systems.build(config)
    known = []
    for caption in dict.fromkeys(captions or pipeline.source_info(config).captions):
        try:
            stage.check_prompts([caption])
        except ValueError:
            continue
        known.append(caption)
    if not known:
        raise DataError("no caption of the held-out clips has only words of the training's")
    random.Random(seed).shuffle(known)
    return [known[place % len(known)] for place in range(count)]


def train_and_sample(
    player: Player,
    config,
    workdir: Path,
    prompts: Sequence[str],
    seed: int,
    fit: Callable,
) -> "np.ndarray | None":
    """The samples of a player, uint8 `n f h w c`; None where training was stopped.

    What is in `workdir` already is not done again. fit: `train.fit`. Raises DataError where
    `workdir` holds a model of other clips.
    """
    import numpy as np

    from vdm_jax import config as config_lib
    from vdm_jax.data.curation.settings import digest
    from vdm_jax.data.source import DataError

    about, name = workdir / _ABOUT, digest(list(prompts), seed, config_lib.to_dict(config))
    if about.is_file() and json.loads(about.read_text())["identity"] != player.identity:
        raise DataError(
            f"{workdir}: its model was trained on other clips; delete the folder, or choose "
            "another --workdir"
        )
    samples = workdir / f"samples-{name}.npz"
    if samples.is_file():
        print(f"{player.name}: samples are in {samples}")
        return np.load(samples, allow_pickle=False)["video"]
    workdir.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(dataclasses.asdict(player), indent=1) + "\n")
    print(f"{player.name}: {player.clips} clips or films, {config.train.steps} updates", flush=True)
    _, result = fit(config, str(workdir / _RUN))
    if result.reason in ("SIGINT", "SIGTERM"):
        return None
    drawn = _sampled(workdir / _RUN, prompts, seed)
    partial = samples.with_suffix(".part.npz")
    np.savez(partial, video=drawn, prompts=np.array(prompts))
    partial.replace(samples)
    return drawn


def _sampled(run: Path, prompts: Sequence[str], seed: int) -> "np.ndarray":
    import jax

    from vdm_jax import pipelines

    model = pipelines.load(str(run))
    return model.sample(jax.random.key(seed), prompts=list(prompts))
