"""What a config has as one field: a frozen dataclass of plain values, checked, with a way from and to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

from flax_mnv2.errors import ConfigError

Rule = tuple[Callable[[Any], bool], str]  # what a value must satisfy, and the words that follow "must be"
JointRule = tuple[Callable[[Any], bool], str]  # the same of a field together with others: it gets the whole spec


class Spec:
    """Base of such dataclasses; sequences become tuples, so that a spec can be hashed.

    Class attributes:
      section: name of the field of ``MobileNetV2Config``, for messages.
      rules: by field.
      joint_rules: by field too, those that look at others as well; checked once ``rules`` hold.
    """

    section: ClassVar[str]
    rules: ClassVar[Mapping[str, Rule]]
    joint_rules: ClassVar[Mapping[str, JointRule]] = MappingProxyType({})

    def __post_init__(self):
        for name, _ in self._defaults():
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        for name, (holds, expected) in self.rules.items():
            self._check(name, holds, getattr(self, name), expected)
        for name, (holds, expected) in self.joint_rules.items():
            self._check(name, holds, self, expected)

    def _check(self, name: str, holds: Callable[[Any], bool], subject: Any, expected: str) -> None:
        try:
            right = holds(subject)
        except (TypeError, ValueError):
            right = False
        if not right:
            raise ConfigError(f"{self.section}.{name} must be {expected}; found {getattr(self, name)!r}.")

    def __repr__(self) -> str:
        """Returns the fields that differ from their default."""
        changed = (
            f"{name}={getattr(self, name)!r}" for name, value in self._defaults() if getattr(self, name) != value
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return {name: _thawed(getattr(self, name)) for name, _ in self._defaults()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns what ``to_dict`` gave; fields that are absent have their default, unknown ones are a ConfigError."""
        known = [name for name, _ in cls._defaults()]
        if not isinstance(values, Mapping) or set(values) - set(known):
            found = sorted(set(values) - set(known)) if isinstance(values, Mapping) else type(values).__name__
            raise ConfigError(f"{cls.section} must have fields among {', '.join(known)}; found {found}.")
        return cls(**values)

    @classmethod
    def _defaults(cls) -> list[tuple[str, Any]]:
        return [
            (field.name, field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
            for field in dataclasses.fields(cls)
        ]


def is_count(value: Any, low: int, high: int) -> bool:
    """Returns whether a value is an integer in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _thawed(value: Any) -> Any:
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
