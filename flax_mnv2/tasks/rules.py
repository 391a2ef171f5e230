"""Rules for the fields of a run's config: what a value must satisfy, and the words for it in a message."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from flax_mnv2.errors import ConfigError

Rule = tuple[Callable[[Any], bool], str]  # what a value must satisfy, and the words that follow "must be"


def check_field(fields: Mapping[str, Any], name: str, rule: Rule) -> None:
    """Raises a ConfigError unless the field ``name`` of a flattened config satisfies a rule."""
    holds, expected = rule
    try:
        right = holds(fields[name])
    except TypeError:  # a word among numbers
        right = False
    if not right:
        raise ConfigError(f"config.{name} must be {expected}; found {fields[name]!r}.")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields by dotted name."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):  # a mapping or a ConfigDict, which is none
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def jsonable(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with lists for tuples, also for those inside, as JSON gives them back."""
    return {name: _with_lists(value) for name, value in flat.items()}


def _with_lists(value: Any) -> Any:
    return [_with_lists(item) for item in value] if isinstance(value, tuple | list) else value


def one_of(*choices: Any) -> Rule:
    """Returns the rule for one of a few words or numbers."""
    return (lambda value: value in choices), "one of " + ", ".join(map(repr, choices))


def at_least(low: float) -> Rule:
    """Returns the rule for a finite number from ``low`` on."""
    return (lambda value: low <= value < math.inf), f"at least {low}"


def pair_from(low: int) -> Rule:
    """Returns the rule for a pair of integers (height, width)."""

    def holds(value: Any) -> bool:
        return len(value) == 2 and all(isinstance(side, int) and side >= low for side in value)

    return holds, f"a pair of integers (height, width), each at least {low}"


def range_within(high: float) -> Rule:
    """Returns the rule for a pair (smallest, largest) of positive numbers."""

    def holds(value: Any) -> bool:
        return len(value) == 2 and 0 < value[0] <= value[1] <= high and value[1] < math.inf

    return holds, f"a pair (smallest, largest) above 0{'' if high == math.inf else f', at most {high:g}'}"


def numbers(count: int, rule: Callable[[float], bool], words: str) -> Rule:
    """Returns the rule for so many numbers, each of which satisfies ``rule``."""
    return (lambda value: len(value) == count and all(map(rule, value))), f"{count} numbers {words}"


POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0")
FRACTION: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
BELOW_1: Rule = (lambda value: 0 <= value < 1, "from 0 to below 1")
FRACTIONS: Rule = (lambda values: bool(values) and all(0 <= value <= 1 for value in values), "numbers from 0 to 1")
