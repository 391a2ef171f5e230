"""Is the network right on this device? Each form and dtype, forward and gradients, against float64 on the CPU.

The forms are ``native`` (XLA's grouped convolutions), ``shifted`` (sums of shifted maps, ours on CPU) and ``auto``,
what users get here; with ``--quick`` the last alone. Batch norm has the batch's statistics in float32, and the running
ones in bfloat16, where those of a few images magnify every rounding. Differences are shares of an array's largest
number (of a gradient at least a thousandth of the largest of all): of the logits, of the gradient that is worst, and
the median over all gradients; the cosine is that of all gradients together with the exact ones. Ends with status 1
where logits or cosine are beyond their limit.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import harness

FORMS = {"auto": "auto", "native": "default", "shifted": "cpu"}
LIMITS = {"float32": (1e-4, 0.99999), "bfloat16": (0.2, 0.5)}  # of logits at most, of the cosine at least


def main(argv: list[str] | None = None) -> int:
    """Compares and reports; returns the exit status."""
    arguments = harness.parse_arguments("numerics", __doc__, add_options, argv)
    comparison = Comparison(arguments.size or (64 if arguments.quick else 128), arguments.batch)
    rows = comparison.rows(("auto",) if arguments.quick else tuple(FORMS))
    harness.report("numerics", rows, settings=vars(arguments), json_path=arguments.json)
    return int(any(row["within"] == "NO" for row in rows))


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument("--size", type=harness.positive, metavar="PX", help="default 128, with --quick 64")
    parser.add_argument("--batch", type=harness.positive, default=4, metavar="N", help="images, default 4")


class Comparison:
    """One classifier, one batch, and what they give in float64."""

    def __init__(self, size: int, batch: int):
        import jax
        import numpy as np

        from benchmarks import workloads

        self._config = workloads.make_config("classification", "1.0_224", image_size=size)
        self._config = self._config.replace(classifier_dropout_prob=0.0)
        self._variables = workloads.random_variables(self._model("float32", "default"))
        self._images = workloads.random_images(self._config, batch)
        # A fixed direction in which the logits are summed: its gradient has every sign and no cancellation by chance.
        self._direction = np.random.default_rng(1).normal(size=(batch, self._config.num_labels)).astype(np.float32)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            self._exact = {train: self._run("float64", "default", train=train) for train in (True, False)}

    def rows(self, forms: tuple[str, ...]) -> list[harness.Row]:
        """One row for each dtype and form."""
        import jax

        found = []
        for dtype, (limit, least_cosine) in LIMITS.items():
            for name in forms:
                train = dtype == "float32"
                with jax.default_matmul_precision("highest" if train else "default"):
                    logits, gradients = self._run(dtype, FORMS[name], train=train)
                exact_logits, exact = self._exact[train]
                least = 1e-3 * max(abs(gradient).max() for gradient in exact)
                errors = sorted(_share(*pair, least) for pair in zip(gradients, exact, strict=True))
                row = {
                    "work": f"{jax.default_backend()}, {dtype}",
                    "case": name,
                    "logits": _share(logits, exact_logits),
                    "median gradient": errors[len(errors) // 2],
                    "worst gradient": errors[-1],
                }
                row["cosine"] = _cosine(gradients, exact)
                fits = row["logits"] <= limit and row["cosine"] >= least_cosine
                found.append({**row, "within": "yes" if fits else "NO"})
        return found

    def _model(self, dtype: str, form: str) -> Any:
        from benchmarks import workloads

        model = workloads.build_model(self._config, "classification", dtype=dtype)
        return model.clone(implementation=form)

    def _run(self, dtype: str, form: str, *, train: bool) -> tuple[Any, list[Any]]:
        """Logits, and the gradients of their sum in the fixed direction, float64 on the host."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        model, wide = self._model(dtype, form), dtype == "float64"
        variables, images, direction = jax.tree.map(
            lambda array: jnp.asarray(array, jnp.float64 if wide else jnp.float32),
            (self._variables, self._images, self._direction),
        )

        def loss(params):
            given = {**variables, "params": params}
            logits = model.apply(given, images, train=train, mutable=["batch_stats"])[0].logits
            return jnp.sum(logits * direction), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        return np.float64(logits), [np.float64(leaf) for leaf in jax.tree.leaves(gradients)]


def _cosine(found: list[Any], exact: list[Any]) -> float:
    """Of the angle between two lists of arrays, each taken as one vector."""

    def product(one: list[Any], other: list[Any]) -> float:
        return sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))

    return product(found, exact) / (product(found, found) * product(exact, exact)) ** 0.5


def _share(found: Any, exact: Any, least: float = 0.0) -> float:
    """The largest difference, as a share of the largest exact number, or of ``least`` where that is more."""
    return float(abs(found - exact).max() / (max(abs(exact).max(), least) or 1.0))


if __name__ == "__main__":
    sys.exit(main())
