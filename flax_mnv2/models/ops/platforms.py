"""Operations with a table of forms by platform, one of which is chosen when a program is lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax import lax

Implementation = Literal["auto", "default", "cpu", "gpu", "tpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


class Form(NamedTuple):
    """One way to compute an operation.

    ``compute(static, *arrays)`` is plain JAX. ``gradient(static, arrays, cotangent)`` gives one gradient for each
    array; without it JAX derives it, and XLA keeps one of what both directions compute.
    """

    compute: Callable
    gradient: Callable | None = None

    def pull_back(self, static: Any, arrays: tuple, cotangent: Any) -> tuple:
        """Returns the gradients of the arrays."""
        if self.gradient is not None:
            return tuple(self.gradient(static, arrays, cotangent))
        return jax.vjp(functools.partial(self.compute, static), *arrays)[1](cotangent)


def platform_op(forms: Mapping[str, Form]) -> Callable:
    """Builds ``op(static, implementation, *arrays)``, with ``static`` hashable, from forms of the same result.

    ``forms`` has an entry ``"default"``, and ``"cpu"``, ``"gpu"`` and ``"tpu"`` where another form is faster there.
    ``implementation`` names the entry to use on any platform, or is ``"auto"``, by which ``jax.lax.platform_dependent``
    chooses: a program lowered for a TPU on a CPU host holds the TPU's form. The operation can be differentiated in
    reverse as often as wanted; forward mode (``jax.jvp``) raises a TypeError.

    Where an array has a symbolic dimension (``jax.export``) the default form is taken whatever ``implementation`` says:
    the others cut arrays into parts whose number must be known.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    @functools.partial(jax.jit, static_argnums=(0, 1))
    def op(static, implementation, *arrays):
        computations = {name: functools.partial(form.compute, static) for name, form in forms.items()}
        return _choose(implementation, computations, *arrays)

    def forward(static, implementation, *arrays):
        return op(static, implementation, *arrays), arrays

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def backward(static, implementation, arrays, cotangent):
        gradients = {name: functools.partial(form.pull_back, static) for name, form in forms.items()}
        return _choose(implementation, gradients, arrays, cotangent)

    op.defvjp(forward, backward)

    def on_the_same_axes(static, implementation, *arrays):
        if not has_known_shape(*arrays):
            implementation = "default"
        return op(static, implementation, *vary_like(arrays, arrays))

    return on_the_same_axes


def has_known_shape(*arrays: Any) -> bool:
    """Returns whether no array of some trees has a symbolic dimension, such as ``jax.export.symbolic_shape`` gives."""
    return all(isinstance(side, int) for array in jax.tree.leaves(arrays) for side in array.shape)


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


def by_platform(functions: Mapping[str, Callable], *arguments: Any) -> Any:
    """Calls the function of the platform that the program is lowered for; keys as in ``platform_op``."""
    functions = dict(functions)
    if (gpu := functions.pop("gpu", None)) is not None:
        functions |= {"cuda": gpu, "rocm": gpu}
    return lax.platform_dependent(*arguments, **functions)


def _choose(implementation: Implementation, functions: Mapping[str, Callable], *arguments: Any) -> Any:
    if implementation == "auto":
        return by_platform(functions, *arguments)
    return functions.get(implementation, functions["default"])(*arguments)
