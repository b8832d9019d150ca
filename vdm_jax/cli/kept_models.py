"""Models that stay loaded between the commands of one process, with the programs they compiled."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

MOST = 3
_KEPT: contextvars.ContextVar["KeptModels | None"] = contextvars.ContextVar(
    "kept_models", default=None
)


class KeptModels:
    """The models that were loaded last, by what names their files' content.

    most: models that are kept; another one takes the place of the one that was used longest ago.
    """

    def __init__(self, most: int = MOST):
        self._most = most
        self._models: dict[tuple, Any] = {}

    def get(self, name: tuple, load: Callable[[], Any]) -> Any:
        """The model of that name, loaded if it is not here."""
        model = self._models.pop(name, None)
        if model is None:
            while len(self._models) >= self._most:
                del self._models[next(iter(self._models))]
            model = load()
        self._models[name] = model
        return model


@contextlib.contextmanager
def keeping(kept: KeptModels) -> Iterator[None]:
    """Within it, commands of this thread take their models from `kept`."""
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def load(source: str, mesh: str, loras: dict[str, float] | None, offload: bool = False) -> Any:
    """The model or the cascade of `pipelines.load`, one that is kept where its files, mesh, LoRA
    files and `offload` are the same. mesh: as in --mesh. Raises what `pipelines.load` raises."""
    from vdm_jax import pipelines
    from vdm_jax.parallel import mesh as mesh_lib
    from vdm_jax.weights import published

    def read() -> Any:
        return pipelines.load(source, mesh=mesh_lib.parse_mesh(mesh), loras=loras, offload=offload)

    if (kept := _KEPT.get()) is None:
        return read()
    added = tuple((published.file_digest(file), scale) for file, scale in (loras or {}).items())
    return kept.get((source, _content(source), mesh, added, offload), read)


def _content(source: str) -> object:
    """What changes when the files of a model or a cascade do. Raises what `load` raises."""
    from vdm_jax.pipelines import cascade_file
    from vdm_jax.pipelines import model as pretrained

    if (folder := pretrained.find_cascade(source)) is None:
        return pretrained.digest(source)
    # A cascade's digest needs all of its models read: the time that a file was changed must do.
    files = sorted(folder.rglob("*.safetensors"))
    times = tuple((str(file), file.stat().st_mtime_ns) for file in files)
    return cascade_file.read(folder).digest, times
