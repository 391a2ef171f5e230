"""Compares what a checkpoint holds with what a model needs, and says every difference by name."""

from __future__ import annotations

from collections.abc import Mapping

from flax_mnv2.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 12


def check_same_tensors(
    *,
    found: Shapes,
    expected: Shapes,
    source: str,
    owner: str = "the checkpoint has",
    advice: str = "Check that the config beside the weights is theirs, and that the file is whole.",
) -> None:
    """Raises a CheckpointError that lists every difference, unless names and shapes agree exactly.

    In its message ``source`` is the checkpoint, ``owner`` stands before a shape that was found, ``advice`` at the end.
    """
    missing = [f"{name} {tuple(expected[name])}" for name in sorted(set(expected) - set(found))]
    unexpected = [f"{name} {tuple(found[name])}" for name in sorted(set(found) - set(expected))]
    misshapen = [
        f"{name}: {owner} {tuple(found[name])}, the model needs {tuple(expected[name])}"
        for name in sorted(set(found) & set(expected))
        if tuple(found[name]) != tuple(expected[name])
    ]
    if not (missing or unexpected or misshapen):
        return
    parts = [f"The weights of {source} do not fit the model:"]
    for title, lines in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if lines:
            more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            parts.append(f"  {len(lines)} {title}:")
            parts += [f"    {line}" for line in [*lines[:_SHOWN], *more]]
    raise CheckpointError("\n".join([*parts, advice]))
