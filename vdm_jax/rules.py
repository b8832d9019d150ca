"""What a field of a configuration may be; every component lists its own fields in RULES.

A rule has `allows(value)`, and its text completes the sentence "must be ...".
"""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """An allowed interval, closed unless `open_low` / `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low:g}"
        high = "" if self.high == math.inf else f"{'<' if self.open_high else '<='} {self.high:g}"
        return " and ".join(part for part in (low, high) if part) or "a number"


@dataclasses.dataclass(frozen=True)
class Choice:
    """An allowed set of values."""

    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


POSITIVE = Number(low=0, open_low=True)
COUNT = Number(low=1)
NOT_NEGATIVE = Number(low=0)
FRACTION = Number(low=0, high=1)
DECAY = Number(low=0, high=1, open_high=True)
