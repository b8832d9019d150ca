"""The memory that a program takes beside its arguments, estimated from shapes: nothing is compiled.

The program is read in its order. An array lives from the operation that makes it to the last one
that uses it. An elementwise operation on one stored array is computed again wherever it is used, as
a compiler fuses it; on several it is an array of its own. Convolutions, products and what moves
data read stored arrays. The largest sum of living arrays is the estimate. Compilers reorder, reuse
and add buffers of their own: tests compare it with XLA's analysis on the CPU within a factor of 2.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

# Elementwise, or a change of shape alone.
_FUSED = {
    *("add", "add_any", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "square", "pow"),
    *("integer_pow", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "sqrt"),
    *("rsqrt", "cbrt", "sin", "cos", "floor", "ceil", "round", "rem", "clamp", "select_n", "not"),
    *("and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "nextafter"),
    *("convert_element_type", "bitcast_convert_type", "broadcast_in_dim", "reshape", "squeeze"),
    *("expand_dims", "iota", "copy", "copy_p", "stop_gradient", "shift_left", "transpose"),
    *("shift_right_logical", "sharding_constraint", "optimization_barrier", "rev", "slice"),
}
# Reductions read what they reduce as they go.
_READS_FUSED = ("reduce_", "argmax", "argmin")
# Calls that are parts of the program around them.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"}


@dataclasses.dataclass
class _Buffer:
    """A stored array: bytes, and the operations that make it and use it last."""

    size: int
    born: int
    last: int


class _Reading:
    """What is known of a program's arrays while it is read."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.transient: dict[int, int] = {}
        self.at = 0

    def use(self, stored: frozenset[int]) -> None:
        for number in stored:
            self.buffers[number].last = self.at

    def make(self, size: int) -> frozenset[int]:
        self.buffers.append(_Buffer(size, self.at, self.at))
        return frozenset([len(self.buffers) - 1])

    def peak(self) -> int:
        changes = [0] * (self.at + 2)
        for buffer in self.buffers:
            changes[buffer.born] += buffer.size
            changes[buffer.last + 1] -= buffer.size
        living, most = 0, 0
        for at, change in enumerate(changes):
            living += change
            most = max(most, living + self.transient.get(at, 0))
        return most


def peak_bytes(program: core.ClosedJaxpr, in_place: int = 0) -> int:
    """The most bytes of arrays that live at once, without the arguments.

    in_place: so many results, from the first, take the place of arguments.
    """
    return _peak(program.jaxpr, in_place)


def array_bytes(tree: Any) -> int:
    """The bytes of all arrays, or shapes of arrays, of a tree."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def _peak(jaxpr: core.Jaxpr, in_place: int = 0) -> int:
    reading = _Reading()
    stored: dict[Any, frozenset[int]] = {}
    for var in (*jaxpr.invars, *jaxpr.constvars):
        stored[var] = frozenset()
    _read(jaxpr, stored, reading)
    reading.at += 1
    for number, var in enumerate(jaxpr.outvars):
        reading.use(_of(var, stored))
        for one in _of(var, stored) if number < in_place else ():
            reading.buffers[one].size = 0
    return reading.peak()


def _read(jaxpr: core.Jaxpr, stored: dict[Any, frozenset[int]], reading: _Reading) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs = [_of(var, stored) for var in equation.invars]
        inner = list(_programs(equation.params))
        if name in _CALLS and inner:
            called = inner[0]
            # The last operands are those of the program; some calls have others before them.
            names = zip(called.invars, inputs[-len(called.invars) :], strict=False)
            local = {**dict.fromkeys(called.constvars, frozenset()), **dict(names)}
            _read(called, local, reading)
            for var, result in zip(equation.outvars, called.outvars, strict=False):
                stored[var] = _of(result, local)
            continue
        reading.at += 1
        together = frozenset().union(*inputs) if inputs else frozenset()
        reading.use(together)
        if name in _FUSED and len(together) <= 1:
            for var in equation.outvars:
                stored[var] = together
            continue
        transient = sum(_peak(one) for one in inner[:1]) if name != "cond" else 0
        if name == "cond":
            transient = max(map(_peak, inner), default=0)
        if name not in _FUSED and not name.startswith(_READS_FUSED):
            # An operand that was fused so far is stored while this operation reads it.
            for var, numbers in zip(equation.invars, inputs, strict=True):
                whole = sum(reading.buffers[number].size for number in numbers)
                if hasattr(var, "count") and _size(var.aval) != whole and numbers:
                    transient += _size(var.aval)
        reading.transient[reading.at] = transient
        for var in equation.outvars:
            stored[var] = reading.make(_size(var.aval))


def _of(var: Any, stored: dict[Any, frozenset[int]]) -> frozenset[int]:
    return frozenset() if isinstance(var, core.Literal) else stored.get(var, frozenset())


def _programs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs among an operation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _size(shaped: Any) -> int:
    if not hasattr(shaped, "dtype"):
        return 0
    width = 8 if jax.dtypes.issubdtype(shaped.dtype, jax.dtypes.extended) else shaped.dtype.itemsize
    return math.prod(shaped.shape) * width
