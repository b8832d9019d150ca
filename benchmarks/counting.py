"""Operations of a traced function, counted as torch's FlopCounterMode counts a peer's."""

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any


def count_flops(jaxpr) -> int:
    """Floating point operations of the matrix products and convolutions of a traced function.

    Two a multiply-add, the taps in the padding included: as torch's FlopCounterMode counts.
    """
    return sum(count_by_kind(jaxpr).values())


def count_by_kind(jaxpr) -> Counter[str]:
    """The same, apart: "product" and "convolution". What rematerialisation does again counts."""
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out = prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            sizes = (equation.invars[0].aval.shape[axis] for axis in contracted)
            total["product"] += 2 * out * prod(sizes)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = params["dimension_numbers"].rhs_spec[0]
            taps = prod(kernel) // kernel[features]
            total["convolution"] += 2 * out * taps // prod(params["lhs_dilation"])
        inner = [count_by_kind(sub) for sub in _sub_jaxprs(params)]
        if name == "cond" and inner:
            # One branch runs. Branches by platform do the same work; what one of them holds beyond
            # that is dead code, which the compiler removes.
            inner = [min(inner, key=lambda counts: sum(counts.values()))]
        for counts in inner:
            for kind, count in counts.items():
                total[kind] += count * (params["length"] if name == "scan" else 1)
    return total


def _sub_jaxprs(params: dict) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
