"""Logits of prepared images: this project beside transformers, timm, torchvision and ONNX Runtime.

All cases have the same weights and images, and each is checked against our plain float32 network before it is timed.
Cases: ours (make_inference_fn), ours-apply (model.apply under jit), ours-native (XLA's grouped convolutions);
transformers, timm and torchvision in eager mode, and with -compile, -compile-freeze (CPU) or -compile-autotune (GPU);
onnxruntime (CPU). Detection is timed with its post-processing, about 300 candidates an image.
"""

from __future__ import annotations

import argparse
import functools
import os
from typing import Any

from benchmarks import harness

QUICK = ("ours-apply", "transformers", "onnxruntime")
CHECKED = 2  # images of the batch whose logits are compared
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # largest difference, as a share of the largest logit


def main(argv: list[str] | None = None) -> None:
    """Measures and reports."""
    arguments = harness.parse_arguments("inference", __doc__, add_options, argv)
    from benchmarks import workloads  # after --cores has taken effect

    gpu = workloads.on_gpu()
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    batches = arguments.batches or default_batches(arguments.task, gpu=gpu, quick=arguments.quick)
    bench = Inference(arguments.task, arguments.variant, arguments.size, arguments.dtype, gpu=gpu)
    rows = []
    for batch in batches:
        rows += bench.measure(
            batch,
            chosen=arguments.peers if arguments.peers is not None else QUICK if arguments.quick else None,
            repeats=arguments.repeats or (3 if arguments.quick else 8),
        )
    harness.report("inference", rows, settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument("--task", choices=("classification", "segmentation", "detection"), default="classification")
    parser.add_argument("--variant", default="1.0_224", metavar="α_SIZE", help="default 1.0_224")
    parser.add_argument(
        "--size", type=harness.positive, metavar="PX", help="default the variant's; DeepLab's is 513, SSDLite's 320"
    )
    parser.add_argument("--batches", type=harness.positives, metavar="N,N", help="images per call")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default float32 on CPU, bfloat16 on a GPU")


def default_batches(task: str, *, gpu: bool, quick: bool) -> tuple[int, ...]:
    """Batch sizes worth a row."""
    if task != "classification":
        return (1, 16, 64) if gpu else (1, 4)
    return (1, 16, 128, 1024)[: 3 if quick else 4] if gpu else (1, 16)


class Inference:
    """One network, in all libraries.

    Attributes:
      config: the architecture.
      variables: the weights of all cases.
    """

    def __init__(self, task: str, variant: str, size: int | None, dtype: str, *, gpu: bool):
        from benchmarks import workloads

        self.task, self.dtype, self.gpu, self.detects = task, dtype, gpu, task == "detection"
        self.config = workloads.make_config(task, variant, image_size=size)
        self.name = f"{task} {variant.partition('_')[0]}, {self.config.image_size}², {dtype}"
        model = workloads.build_model(self.config, task, dtype="float32")
        self.variables = workloads.random_variables(model)

    def measure(self, batch: int, *, chosen: tuple[str, ...] | None, repeats: int) -> list[harness.Row]:
        """Rows for one batch size, of our network and those cases that are ``chosen``; None for all."""
        from benchmarks import workloads

        images = workloads.random_images(self.config, batch)
        programs: dict[str, workloads.Compiled] = {}
        makers = {**self._ours(images, programs), **self._peers(images)}
        unknown = set(chosen or ()) - makers.keys()
        if unknown:
            harness.skipped(", ".join(sorted(unknown)), f"no such case; there are {', '.join(makers)}")
        makers = {name: make for name, make in makers.items() if name == "ours" or chosen is None or name in chosen}
        seconds = harness.alternate(harness.build(makers), repeats=repeats)
        rows = harness.summarise(seconds, work=f"{self.name}, batch {batch}", items=batch)
        for row in rows:
            row.update(programs[row["case"]].columns if row["case"] in programs else {})
        if any(not name.startswith("ours") for name in seconds):
            from benchmarks import peers

            peers.forget()
        return rows

    def _ours(self, images, programs: dict[str, Any]) -> dict[str, Any]:
        from benchmarks import workloads

        def make(name: str, *, fast: bool = False, native: bool = False):
            model = workloads.build_model(self.config, self.task, dtype=self.dtype, native=native)
            make_program = workloads.detection_program if self.detects else workloads.inference_program
            programs[name] = make_program(model, self.variables, images, fast=fast)
            return self._checked(name, programs[name].call, "transformers", to_numpy=_float32)

        return {
            "ours": functools.partial(make, "ours", fast=True),
            "ours-apply": functools.partial(make, "ours-apply"),
            "ours-native": functools.partial(make, "ours-native", native=True),
        }

    def _peers(self, images) -> dict[str, Any]:
        from benchmarks import peers

        def make(name: str, library: str, options: dict[str, Any] | None):
            module = peers.make_module(library, self.config, self.task, self.variables)
            if self.detects:
                config = peers.peer_config(library, self.config)
                case = peers.detection_case(module, config, images, dtype=self.dtype, options=options)
            else:
                case = peers.inference_case(module, images, dtype=self.dtype, options=options)
            return self._checked(name, case, library, to_numpy=peers.to_numpy)

        def make_onnxruntime():
            module = peers.make_module("transformers", self.config, self.task, self.variables)
            cores = len(os.sched_getaffinity(0))
            case = peers.onnxruntime_case(module.to("cpu"), images, cores=cores)
            return self._checked("onnxruntime", case, "transformers", to_numpy=peers.to_numpy)

        cases = peers.cases(gpu=self.gpu)
        makers = {name: functools.partial(make, name, *rest) for name, rest in cases.items()}
        return makers if self.gpu or self.detects else {**makers, "onnxruntime": make_onnxruntime}

    def _checked(self, name: str, case, library: str, *, to_numpy):
        """``case``, whose logits are ours: it is printed by how much they differ.

        Raises:
          ValueError: they differ by more than rounding.
        """
        answer = case()
        logits = to_numpy(answer[0] if self.detects else answer)[:CHECKED]
        expected = self._expected(library)[: len(logits)]
        if logits.shape != expected.shape:
            raise ValueError(f"logits have shape {logits.shape}, not {expected.shape}")
        difference = float(abs(logits - expected).max() / abs(expected).max())
        if not difference <= TOLERANCE[self.dtype]:
            raise ValueError(f"logits differ by {difference:.2g} of the largest: wrong answers are not timed")
        print(f"{name}: logits within {difference:.1e} of the largest", flush=True)
        return case

    @functools.lru_cache(maxsize=8)  # noqa: B019 (one object a run)
    def _expected(self, library: str):
        """Logits of our plain float32 network with the numbers of ``library``, for the first images."""
        import jax

        from benchmarks import peers, workloads

        config = peers.peer_config(library, self.config)
        model = workloads.build_model(config, self.task, dtype="float32")
        images = workloads.random_images(config, CHECKED)
        with jax.default_matmul_precision("highest"):
            return _float32(workloads.jit_once(lambda images: model.apply(self.variables, images).logits)(images))


def _float32(logits):
    import numpy as np

    return np.asarray(logits, np.float32)


if __name__ == "__main__":
    main()
