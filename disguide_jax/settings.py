"""How a key of a configuration is described: its default, bounds and help, and what follows."""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable, Sequence
from typing import Any

from disguide_jax.errors import UserError

REQUIRED = dataclasses.MISSING  # the default of a key that every configuration must set
TYPES = {  # of keys, and of what is taken for them
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a finite number"),
    str: (str, "text"),
}
RENAMED: dict[str, str] = {}  # old key: new key, for the message to who still uses the old one


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of one key: its default, its meaning, and which values are right."""

    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    fits: Callable[[Any], bool] | None = None  # for what the bounds cannot say, see must_be
    must_be: str = ""  # the right values in words, where the bounds do not say it best
    auto: bool = False  # the default leaves the choice to the program, and a resume keeps it
    resume: bool = False  # may differ from what a workdir was started with
    reports: bool = False  # changes what is said of a result, never the result
    type: Any = None  # of the field, or None where any will do

    def allows(self, value: Any) -> bool:
        """Whether the value is right; a number that is not finite never is."""
        return (
            _is_of(value, self.type)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.one_of or value in self.one_of)
            and (self.fits is None or self.fits(value))
        )

    def wanted(self, value: Any) -> str:
        """What a value that is not right must be, in words."""
        if _is_of(value, self.type):
            return self.right or "a finite number"
        if self.must_be or self.one_of:
            return self.right
        _, what = TYPES.get(self.type, (None, "finite numbers, such as (0.4, 0.8)"))
        return f"{what} {self.right}".rstrip()

    @property
    def right(self) -> str:
        """The right values in words, after "it must be"; empty where every finite one is."""
        if self.must_be:
            return self.must_be
        if self.one_of:
            return f"one of {', '.join(map(repr, self.one_of))}"
        if self.least is not None and self.most is not None:
            return f"from {self.least:,} to {self.most:,}"
        if self.least is not None and self.below is not None:
            return f"from {self.least:,} to below {self.below:,}"
        limits = {"at least": self.least, "above": self.above, "below": self.below}
        return " and ".join(f"{word} {x:,}" for word, x in limits.items() if x is not None)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field, and finite."""
    if typing.get_origin(kind) is tuple:
        element, _ = typing.get_args(kind)
        return isinstance(value, tuple | list) and all(_is_of(x, element) for x in value)
    taken, _ = TYPES.get(kind, (object, ""))
    is_one = isinstance(value, taken) and (kind is bool or not isinstance(value, bool))
    return is_one and (not isinstance(value, float) or math.isfinite(value))


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of a configuration; `limits` are those of `Setting`."""
    about = Setting(default, help, **limits)
    return dataclasses.field(default=default, metadata={"setting": about})


def settings(kind: type, prefix: str = "") -> dict[str, Setting]:
    """All keys of a kind of configuration, dotted, and what is known of them."""
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            found |= settings(field.default_factory, f"{prefix}{field.name}.")
        else:
            about = field.metadata["setting"]
            found[prefix + field.name] = dataclasses.replace(about, type=field.type)
    return found


def get_value(config: object, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def set_value(config: object, key: str, value: Any) -> None:
    """Sets the value of a dotted key, with the type that the default has for a tuple."""
    *path, last = key.split(".")
    place: Any = config
    for part in path:
        place = getattr(place, part)
    setattr(place, last, tuple(value) if isinstance(value, list) else value)


def check_values(config: Any) -> None:
    """Checks every value of a configuration by itself.

    Raises:
      UserError: names the key, its value, and what would be right.
    """
    for key, known in settings(type(config)).items():
        value = get_value(config, key)
        if not known.allows(value):
            raise UserError(f"config.{key} is {value!r}; it must be {known.wanted(value)}")


def is_among(key: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of `keys`, of which "GROUP." stands for all keys of a group."""
    return key in keys or key.startswith(tuple(name for name in keys if name.endswith(".")))


def refuse_ignored(config: Any, ignored: tuple[str, ...], by: str) -> None:
    """Refuses keys that something ignores and that are not at their defaults.

    Args:
      config: of the run.
      ignored: as `is_among` takes them.
      by: what ignores them, such as a method, for the message.

    Raises:
      UserError: names the first such key.
    """
    for key, known in settings(type(config)).items():
        value = get_value(config, key)
        if is_among(key, ignored) and value != known.default:
            raise UserError(
                f"config.{key} is {value!r}; {by} makes no use of it: leave it at its default, "
                f"{known.default!r}"
            )
