"""What the processes of one run decide together, so that all of them act alike.

Every process calls the same functions in the same order. They talk through JAX's coordination
service, never through devices, so a thread may do so while a step is being computed. One process
alone talks to nobody.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the service has no public interface yet

from vdm_jax.training.integrity import CheckpointError, DamagedError, plain

T = TypeVar("T")
PATIENCE = 3600  # seconds that one process waits for another; one that died is noticed before
_KINDS = {kind.__name__: kind for kind in (CheckpointError, DamagedError)}
_tickets = itertools.count()


def ticket() -> int:
    """The number of a decision. A thread takes its tickets from the main thread, in order."""
    return next(_tickets)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return index() == 0


def index() -> int:
    """The number of this process."""
    return jax.process_index()


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def all_do(work: Callable[[], T], number: int | None = None) -> T:
    """The result of `work`, done by every process.

    An exception in one is raised in all: as CheckpointError, or DamagedError if it was that.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    _raise(_decide(number, _encode(error), lambda errors: next(filter(None, errors), None)), error)
    return result


def first_does(work: Callable[[], T], number: int | None = None) -> T:
    """The result of `work` (something that JSON can say), done by the first process alone.

    An exception in it is raised in all, as by `all_do`.
    """
    error = None

    def decide(_) -> list[Any]:
        nonlocal error
        try:
            return [None, work()]
        except Exception as caught:
            error = caught
            return [_encode(caught), None]

    told, result = _decide(number, None, decide)
    _raise(told, error)
    return result


def _decide(number: int | None, own: Any, decision: Callable[[list[Any]], Any]) -> Any:
    """What the first process makes of the word of every process, told to all."""
    if number is None:
        number = ticket()
    if count() == 1:
        return decision([own])
    client = distributed.global_state.client
    key = f"vdm_jax/decisions/{number}"
    if not is_first():
        client.key_value_set(f"{key}/words/{index()}", json.dumps(own))
        return json.loads(client.blocking_key_value_get(f"{key}/result", PATIENCE * 1000))
    words = [own] + [
        json.loads(client.blocking_key_value_get(f"{key}/words/{other}", PATIENCE * 1000))
        for other in range(1, count())
    ]
    result = decision(words)
    client.key_value_set(f"{key}/result", json.dumps(result))
    client.key_value_delete(f"{key}/words/")
    return result


def _encode(error: Exception | None) -> list[str] | None:
    if error is None:
        return None
    kind = type(error).__name__
    if kind in _KINDS:
        return [kind, str(error)]
    where = "" if is_first() else f" (process {index()})"
    return [CheckpointError.__name__, plain(error) + where]


def _raise(told: list[str] | None, own: Exception | None) -> None:
    if told is None:
        return
    kind, text = told
    raise _KINDS[kind](text) from own
