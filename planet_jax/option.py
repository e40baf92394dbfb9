"""Describe one option of a config and check a value for it."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

LARGEST_NUMBER = 10**9  # larger integers can overflow an array index or a float32


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
      default: the value in `get_config()`. Its type is the option's type.
      help: the meaning, and the reason where it is not obvious.
      unit: the unit of a number.
      low, high: inclusive bounds of a number, or of every number in a tuple.
      above, below: exclusive bounds.
      choices: the strings that are allowed; () allows all.
      required: the string must not be blank.
      item_type, lengths: the type of a tuple's items, and its allowed lengths; () allows all.
      on_resume: "free" options change no trained number, so a resumed run may change them.
      per_process: each process of a run may have its own value.
      path: the string, or each string of the tuple, is a path; `~` and `$NAME` are expanded.
      url: a path that may also be a URL of another store: gs://BUCKET/NAME.
      per_member: each member of `score.ensemble` keeps the value it was trained with.
    """

    default: Any
    help: str
    _: KW_ONLY
    unit: str = ""
    low: float | None = None
    high: float = LARGEST_NUMBER
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    item_type: type = float
    lengths: tuple[int, ...] = ()
    on_resume: Literal["fixed", "free"] = "fixed"
    per_process: bool = False
    per_member: bool = False
    path: bool = False
    url: bool = False

    def accepts(self, value: Any) -> bool:
        """Return whether `value` has the option's type and is within its bounds."""
        if not isinstance(self.default, tuple):
            return self._accepts_item(value, type(self.default))
        return (
            isinstance(value, tuple)
            and len(value) in (self.lengths or (len(value),))
            and all(self._accepts_item(item, self.item_type) for item in value)
        )

    def _accepts_item(self, value: Any, kind: type) -> bool:
        if isinstance(value, bool) or kind is bool:
            return kind is bool and isinstance(value, bool)
        if kind is str:
            is_path = isinstance(value, str) and "\0" not in value  # no path can hold a NUL
            blank = self.required and is_path and not value.strip()
            return is_path and not blank and (not self.choices or value in self.choices)
        return (
            isinstance(value, int if kind is int else (int, float))
            and (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or self.low <= value)
            and (self.above is None or self.above < value)
            and (self.below is None or value < self.below)
            and value <= self.high
        )

    @property
    def rule(self) -> str:
        """The allowed values in words: "a whole number, at least 32 and at most 1,024 pixels"."""
        if not isinstance(self.default, tuple):
            return self._item_rule(type(self.default))
        lengths = f" of {' or '.join(map(str, self.lengths))} items" if self.lengths else ""
        return f"a tuple{lengths}, each {self._item_rule(self.item_type)}"

    def _item_rule(self, kind: type) -> str:
        if kind is bool:
            return "True or False"
        if kind is str:
            name = "a name that is not blank" if self.required else "a name"
            return f"one of {', '.join(self.choices)}" if self.choices else name
        limits = {"at least": self.low, "above": self.above, "below": self.below}
        if self.below is None:
            limits["at most"] = self.high
        bounds = " and ".join(f"{word} {n:,}" for word, n in limits.items() if n is not None)
        number = "a whole number" if kind is int else "a number"
        return f"{number}, {bounds} {self.unit}".rstrip()
