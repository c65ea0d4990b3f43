"""What the value of a config key may be, stated where the key and its default are.

    config.batch_size = whole(128, least=1)  # per process

bct.config checks every value against its key once, before anything else reads it.
"""

import ast
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

HUGE = 10**9  # above any count that makes sense
LARGE = 1e30  # a float32 holds its products with what a network computes
_UNSAID = (None, LARGE, -LARGE)
LARGEST_IMAGE = 4096  # pixels: height and width of what a network may see


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key's default, and what it takes.

    Attributes:
        advice: what to do about a value that does not fit, e.g. "give a whole number from 1 on".
        check: a value -> the value as it is used, of a plain type; raises ValueError.
        optional: None fits, too.
        is_text: a command line's text is the value, whatever number it may look like.
        is_path: relative ones start at the repository or, on a command line, where the user is.
    """

    default: Any
    advice: str
    check: Callable[[Any], Any]
    optional: bool = False
    is_text: bool = False
    is_path: bool = False

    def taken(self, value: Any) -> Any:
        """The value as it is used. Raises ValueError if it does not fit."""
        return None if value is None and self.optional else self.check(value)

    def parsed(self, text: str) -> Any:
        """What the text of a key=value argument stands for, not yet checked."""
        if self.optional and text.lower() == "none":
            return None
        literal = _literal(text)
        if self.is_text:
            return literal if isinstance(literal, str) else text
        return {"true": True, "false": False}.get(text.lower(), literal)


def text(default: str | None) -> Key:
    """Text that is not empty."""
    return Key(default, "give a text that is not empty", _text, default is None, is_text=True)


def path(default: str | None) -> Key:
    """The path of a file or folder; it need not be there."""
    return Key(default, "give a path", _text, default is None, is_text=True, is_path=True)


def choice(default: str | None, *others: str | None) -> Key:
    """One of some words; None among them is the key left out."""
    words = [word for word in (default, *others) if word is not None]

    def check(value: Any) -> str:
        _must(isinstance(value, str) and value in words)
        return str(value)

    advice = f"choose from {', '.join(map(repr, words))}"
    return Key(default, advice, check, None in (default, *others), is_text=True)


def flag(default: bool | None) -> Key:
    """True or False."""

    def check(value: Any) -> bool:
        _must(isinstance(value, bool))
        return value

    return Key(default, "give True or False", check, default is None)


def whole(default: int | None, least: int = 0, most: int = HUGE) -> Key:
    """A whole number; both bounds are allowed."""

    def check(value: Any) -> int:
        _must(isinstance(value, int) and not isinstance(value, bool) and least <= value <= most)
        return int(value)

    bounds = f"from {least} on" if most >= HUGE else f"from {least} to {most}"
    return Key(default, f"give a whole number {bounds}", check, default is None)


def image_size(default: int | tuple[int, int] | None) -> Key:
    """What a network sees: one side of a square, or (height, width); two equal sides are one."""
    side = whole(None, least=1, most=LARGEST_IMAGE)

    def check(value: Any) -> int | tuple[int, int]:
        if not isinstance(value, list | tuple):
            return side.check(value)
        _must(len(value) == 2)
        height, width = (side.check(one) for one in value)
        return height if height == width else (height, width)

    return Key(default, f"{side.advice}, or (height, width)", check, default is None)


def number(
    default: float | None,
    least: float = -LARGE,
    most: float = LARGE,
    above: float | None = None,
    below: float | None = None,
) -> Key:
    """A finite number; `least` and `most` are allowed, `above` and `below` are not."""

    def check(value: Any) -> float:
        _must(isinstance(value, int | float) and not isinstance(value, bool))
        _must(least <= value <= most)  # no NaN is
        _must((above is None or value > above) and (below is None or value < below))
        return float(value)

    said = {"from": least, "above": above, "below": below, "up to": most}
    bounds = [f"{word} {bound:g}" for word, bound in said.items() if bound not in _UNSAID]
    return Key(default, f"give a number {', '.join(bounds)}".strip(), check, default is None)


def several(each: Key, default: list | tuple | None, length: int | None = None) -> Key:
    """A list or tuple of values that fit `each`, none of them twice if they are names."""
    kind = list if default is None else type(default)

    def check(value: Any) -> list | tuple:
        _must(isinstance(value, list | tuple) and length in (None, len(value)))
        values = [each.check(item) for item in value]
        _must(not each.is_text or len(set(values)) == len(values))
        return kind(values)

    item = each.advice.partition(" ")[2]  # without its "give"
    count = "" if length is None else f" of {length}"
    once = ", none of them twice" if each.is_text else ""
    return Key(default, f"give a list{count}, each value {item}{once}", check, default is None)


def either(default: Any, *kinds: Key) -> Key:
    """What one of several kinds takes."""

    def check(value: Any) -> Any:
        for kind in kinds:
            with suppress(ValueError):
                return kind.check(value)
        raise ValueError

    return Key(default, ", or ".join(kind.advice for kind in kinds), check, default is None)


def weights(default: Mapping[str, float], *names: str) -> Key:
    """A dict of weights above 0 by name."""
    weight = number(None, above=0)

    def check(value: Any) -> dict[str, float]:
        _must(isinstance(value, dict) and len(value) > 0 and set(value) <= set(names))
        return {name: weight.check(given) for name, given in value.items()}

    return Key(default, f"give weights above 0 of some of {', '.join(names)}", check)


def key_of(value: Any) -> Key:
    """A default as a Key: one that is a plain value takes what is of its type."""
    if isinstance(value, Key):
        return value
    for kind, made in ((bool, flag), (str, text), (float, number)):
        if isinstance(value, kind):
            return made(value)
    if isinstance(value, int):
        return whole(value, least=-HUGE)
    if isinstance(value, list | tuple):
        return several(Key(None, "give any value", lambda item: item), value)
    if isinstance(value, dict):
        return Key(value, "give a dict", _dict)
    return Key(value, "give a value", lambda given: given, optional=value is None)


def known_keys(base: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Key]:
    """The keys of configs/base.py, and a method's: new ones, and other defaults of base's."""
    keys = {name: key_of(value) for name, value in base.items()}
    for name, value in added.items():
        changed = name in keys and not isinstance(value, Key)
        keys[name] = dataclasses.replace(keys[name], default=value) if changed else key_of(value)
    return keys


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with each Key's default in its place."""
    return {k: v.default if isinstance(v, Key) else v for k, v in values.items()}


def shown(value: Any) -> str:
    """A value as an error shows it, on one line and not too long."""
    try:
        said = repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return said if len(said) <= 80 else f"{said[:60]}...{said[-12:]}"


def _must(fits: bool) -> None:
    if not fits:
        raise ValueError


def _text(value: Any) -> str:
    _must(isinstance(value, str) and value.strip() != "" and "\0" not in value)
    value.encode("utf-8", "surrogateescape")  # what has no such form is no file name either
    return str(value)


def _dict(value: Any) -> dict:
    _must(isinstance(value, dict) and all(isinstance(name, str) for name in value))
    return value


def _literal(text: str) -> Any:
    """The Python literal that a text is, else the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1is" and "\d" are no literals, but warned of
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
