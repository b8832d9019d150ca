"""The page of `vdm watch` in Gradio: it reads the runs' files again every few seconds."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.studio import markup, runs, server

PERIOD = 5.0  # seconds


class Watched:
    """What the page shows of runs, made anew only when their files have changed."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = list(folders)
        self._seen: tuple = ()
        self._shown = ""
        self._lock = threading.Lock()  # several visitors ask at once

    def show(self) -> str:
        """The page's content now."""
        with self._lock:
            folders = runs.find(self._folders)
            seen = tuple((folder, runs.signature(folder)) for folder in folders)
            if seen != self._seen or not self._shown:
                named = zip(folders, runs.names(folders), strict=True)
                self._shown = markup.watched([runs.read(folder, name) for folder, name in named])
                self._seen = seen
            return self._shown


def build(gradio: Any, watched: Watched, period: float = PERIOD) -> Any:
    """The page, a Gradio app. period: seconds from one look at the files to the next."""
    with server.blocks(gradio, "vdm watch") as page:
        gradio.Markdown("# vdm watch")
        shown = gradio.HTML(elem_id="runs")
        last = gradio.State("")

        def look(before: str) -> tuple[Any, Any]:
            now = watched.show()
            # An unchanged page is not sent again: its GIFs would begin anew.
            return (gradio.skip(), gradio.skip()) if now == before else (now, now)

        for event in (page.load, gradio.Timer(period).tick):
            event(look, [last], [shown, last], show_progress="hidden")
    page.queue(default_concurrency_limit=64, api_open=False)
    return page
