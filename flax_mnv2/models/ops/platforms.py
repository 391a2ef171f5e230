"""Operations with one form for CPU and one for accelerators, chosen when a program is lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax import lax

Implementation = Literal["auto", "native", "shifted"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


def platform_op(native: Callable, cpu: Callable, cpu_gradient: Callable | None = None) -> Callable:
    """Builds ``op(static, implementation, *arrays)``, with ``static`` hashable, from two forms of the same result.

    ``native(static, *arrays)`` is plain JAX; XLA keeps one of what it computes in both directions. ``cpu`` is fast on
    CPU; ``cpu_gradient(static, arrays, cotangent)`` gives one gradient for each array, by default what JAX derives.
    ``implementation`` is ``"native"``, ``"shifted"`` for the form of CPUs on any platform, or ``"auto"``, by which
    ``jax.lax.platform_dependent`` chooses: a program lowered for a TPU on a CPU host holds the TPU's form. The
    operation can be differentiated in reverse as often as wanted; forward mode (``jax.jvp``) raises a TypeError.
    """
    if cpu_gradient is None:
        cpu_gradient = functools.partial(_derived_gradient, cpu)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def op(static, implementation, *arrays):
        return _choose(implementation, functools.partial(cpu, static), functools.partial(native, static), *arrays)

    def forward(static, implementation, *arrays):
        return op(static, implementation, *arrays), arrays

    def backward(static, implementation, arrays, cotangent):
        def on_cpu(arrays, cotangent):
            return tuple(cpu_gradient(static, arrays, cotangent))

        def on_accelerator(arrays, cotangent):
            return _derived_gradient(native, static, arrays, cotangent)

        return _choose(implementation, on_cpu, on_accelerator, arrays, cotangent)

    op.defvjp(forward, backward)

    def on_the_same_axes(static, implementation, *arrays):
        return op(static, implementation, *vary_like(arrays, arrays))

    return on_the_same_axes


def vary_like(tree: Any, *likes: Any) -> Any:
    """``tree``, typed by ``jax.shard_map`` as varying over every mesh axis over which any of ``likes`` does.

    The branches of a platform choice and the carry of a scan must agree in that type, which a fresh zero lacks.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(likes)))

    def vary(array):
        missing = tuple(sorted(axes - _varying(array)))
        return lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(vary, tree)


def _varying(array: jax.Array) -> frozenset[str]:
    kind = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # JAX renamed it


def _derived_gradient(function: Callable, static: Any, arrays: tuple, cotangent: Any) -> tuple:
    return jax.vjp(functools.partial(function, static), *arrays)[1](cotangent)


def by_platform(cpu: Callable, native: Callable, *arguments: Any) -> Any:
    """``cpu(*arguments)`` in a program lowered for a CPU, ``native(*arguments)`` elsewhere."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=native)


def _choose(implementation: Implementation, cpu: Callable, native: Callable, *arguments: Any):
    if implementation == "auto":
        return by_platform(cpu, native, *arguments)
    return {"shifted": cpu, "native": native}[implementation](*arguments)
