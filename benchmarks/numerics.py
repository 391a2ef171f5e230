"""Is the network right on this device? Each form and dtype, forward and gradients, against float64 on the CPU.

The forms are ``native`` (XLA's grouped convolutions), ``shifted`` (sums of shifted maps, ours on CPU) and ``auto``,
what users get here; with ``--quick`` the last alone. Batch norm is in train mode. Differences are shares of an array's
largest number: of the logits, of the gradient that is worst, and the median over all gradients. Ends with status 1
where one is above its limit.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import harness

FORMS = {"auto": "auto", "native": "default", "shifted": "cpu"}
# Of logits, and of the median gradient. A single gradient may be all but 0, and is reported without a limit.
LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (0.1, 0.3)}


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
            self._exact = self._run("float64", "default")

    def rows(self, forms: tuple[str, ...]) -> list[harness.Row]:
        """One row for each dtype and form."""
        import jax

        found = []
        for dtype, (limit, gradient_limit) in LIMITS.items():
            for name in forms:
                with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                    logits, gradients = self._run(dtype, FORMS[name])
                errors = sorted(map(_share, gradients, self._exact[1]))
                row = {
                    "work": f"{jax.default_backend()}, {dtype}",
                    "case": name,
                    "logits": _share(logits, self._exact[0]),
                    "median gradient": errors[len(errors) // 2],
                    "worst gradient": errors[-1],
                }
                fits = row["logits"] <= limit and row["median gradient"] <= gradient_limit
                found.append({**row, "within": "yes" if fits else "NO"})
        return found

    def _model(self, dtype: str, form: str) -> Any:
        from benchmarks import workloads

        model = workloads.build_model(self._config, "classification", dtype=dtype)
        return model.clone(implementation=form)

    def _run(self, dtype: str, form: str) -> tuple[Any, list[Any]]:
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
            logits = model.apply(given, images, train=True, mutable=["batch_stats"])[0].logits
            return jnp.sum(logits * direction), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        return np.float64(logits), [np.float64(leaf) for leaf in jax.tree.leaves(gradients)]


def _share(found: Any, exact: Any) -> float:
    """The largest difference, as a share of the largest exact number."""
    return float(abs(found - exact).max() / (abs(exact).max() or 1.0))


if __name__ == "__main__":
    sys.exit(main())
