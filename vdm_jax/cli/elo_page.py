"""A page on which a person votes on pairs of samples, one file that needs no server."""

import base64
import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem }
#pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
#pair[hidden] { display: none }
#pair button { padding: .5rem; font: inherit; cursor: pointer }
#pair img { width: 100%; max-width: 26rem; image-rendering: pixelated;
  display: block; margin: auto }
#caption { font-weight: 600; min-height: 1.5em }
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const key = "vdm votes " + data.name;
let votes = [];
try { votes = JSON.parse(localStorage.getItem(key)) || []; } catch (error) { votes = []; }
const at = (id) => document.getElementById(id);
function show() {
  const done = votes.length >= data.pairs.length;
  at("count").textContent = votes.length + " of " + data.pairs.length + " pairs";
  at("pair").hidden = done;
  at("caption").textContent = done ? "All pairs have votes. Save them." : "";
  if (done) return;
  const [left, right, sample] = data.pairs[votes.length];
  at("caption").textContent = data.prompts[sample];
  at("left").src = "data:image/gif;base64," + data.clips[left][sample];
  at("right").src = "data:image/gif;base64," + data.clips[right][sample];
}
function keep() {
  try { localStorage.setItem(key, JSON.stringify(votes)); } catch (error) { /* not kept */ }
  show();
}
function vote(share) {
  if (votes.length < data.pairs.length) { votes.push(share); keep(); }
}
function undo() { votes.pop(); keep(); }
function save() {
  const lines = votes.map((share, place) => {
    const [left, right, sample] = data.pairs[place];
    return JSON.stringify({
      first: data.players[left], second: data.players[right], sample: sample, share: share,
    }) + "\\n";
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "votes.jsonl";
  link.click();
}
at("left-button").onclick = () => vote(1);
at("right-button").onclick = () => vote(0);
at("equal").onclick = () => vote(0.5);
at("undo").onclick = undo;
at("save").onclick = save;
document.addEventListener("keydown", (event) => {
  const actions = {
    ArrowLeft: () => vote(1), ArrowRight: () => vote(0), ArrowDown: () => vote(0.5), u: undo,
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});
show();
"""
_BODY = """
<h1>Which clip is better?</h1>
<p>Judge how the clip looks, how it moves, and whether it shows its caption. Keys: ← left, → right,
↓ equal, u takes the last vote back. Votes stay in this browser. You can save them at any time; the
more pairs, the narrower the intervals.</p>
<p id="count"></p>
<p id="caption"></p>
<div id="pair">
<button id="left-button"><img id="left" alt="left clip">left</button>
<button id="right-button"><img id="right" alt="right clip">right</button>
</div>
<p><button id="equal">equal</button> <button id="undo">undo</button>
<button id="save">save votes.jsonl</button></p>
"""


def write(
    path: Path,
    videos: Mapping[str, "np.ndarray"],
    prompts: Sequence[str],
    fps: float,
    seed: int,
) -> None:
    """Writes the page. It shows every sample of every pair of players, in an order and on sides
    that the seed draws, without their names.

    videos: by player, uint8 `n f h w c`, of the same prompts.
    """
    players = list(videos)
    generator = random.Random(seed)
    pairs = [
        [*generator.sample(two, 2), sample]
        for two in itertools.combinations(range(len(players)), 2)
        for sample in range(len(prompts))
    ]
    generator.shuffle(pairs)
    data = {
        "players": players,
        "pairs": pairs,
        "prompts": list(prompts),
        "clips": [[_gif(clip, fps) for clip in clips] for clips in videos.values()],
    }
    # Votes that a browser keeps belong to these clips in this order.
    data["name"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    text = json.dumps(data).replace("<", "\\u003c")  # "</script>" in a caption ends nothing
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Votes</title><style>{_STYLE}</style>{_BODY}"
        f'<script type="application/json" id="data">{text}</script><script>{_SCRIPT}</script>\n',
        encoding="utf-8",
    )


def _gif(clip: "np.ndarray", fps: float) -> str:
    from vdm_jax.data import video_io

    return base64.b64encode(video_io.encode_gif(video_io.enlarge(clip), fps)).decode()
