"""Exported files on CPU: ours in ONNX Runtime and LiteRT beside PyTorch's own export, and make_inference_fn.

All cases have the same weights and images, and each is checked against our plain network before it is timed.
``torch-onnxruntime`` is transformers' module through torch.onnx.export. ``int8`` has the ranges of the images, and is
checked loosely: its numbers are rounded. Threads that wait do not spin.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import tempfile
from typing import Any

from benchmarks import harness

TOLERANCE = 1e-3  # largest difference, as a share of the largest logit
INTEGER_TOLERANCE = 0.5  # of random weights, with which little but noise is left after sixty roundings


def main(argv: list[str] | None = None) -> None:
    """Measures and reports."""
    arguments = harness.parse_arguments("export", __doc__, add_options, argv)
    batches = arguments.batches or ((1,) if arguments.quick else (1, 16))
    repeats = arguments.repeats or (3 if arguments.quick else 8)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Export(arguments.task, arguments.variant, arguments.size, pathlib.Path(folder))
        for batch in batches:
            rows += bench.measure(batch, chosen=arguments.peers, repeats=repeats)
    harness.report("export", rows, settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--variant", default="1.0_224", metavar="α_SIZE", help="default 1.0_224")
    parser.add_argument("--size", type=harness.positive, metavar="PX", help="default the variant's; DeepLab's is 513")
    parser.add_argument("--batches", type=harness.positives, metavar="N,N", help="images per call, default 1,16")


class Export:
    """One network, in all files."""

    def __init__(self, task: str, variant: str, size: int | None, folder: pathlib.Path):
        from benchmarks import workloads

        self._task, self._folder, self._cores = task, folder, len(os.sched_getaffinity(0))
        self._config = workloads.make_config(task, variant, image_size=size)
        self._name = f"{task} {variant.partition('_')[0]}, {self._config.image_size}²"
        self._model = workloads.build_model(self._config, task, dtype="float32")
        self._variables = workloads.random_variables(self._model)

    def measure(self, batch: int, *, chosen: tuple[str, ...] | None, repeats: int) -> list[harness.Row]:
        """Rows for one number of images, of our ONNX file and those cases that are ``chosen``; None for all."""
        from benchmarks import workloads

        images, sizes = workloads.random_images(self._config, batch), {}
        makers = {
            "ours": self._onnx,
            "ours-litert": self._litert,
            "int8": functools.partial(self._onnx, integers=True),
            "int8-litert": functools.partial(self._litert, integers=True),
            "torch-onnxruntime": self._torch,
            "make_inference_fn": self._inference,
        }
        makers = {
            name: functools.partial(self._checked, name, make, images, sizes)
            for name, make in makers.items()
            if name == "ours" or chosen is None or name in chosen
        }
        seconds = harness.alternate(harness.build(makers), repeats=repeats)
        rows = harness.summarise(seconds, work=f"{self._name}, batch {batch}", items=batch)
        for row in rows:
            row["file MB"] = sizes.get(row["case"], "")
        return rows

    def _onnx(self, images, *, integers: bool = False) -> tuple[Any, pathlib.Path]:
        from benchmarks import peers

        path = self._exported("onnx", integers=integers)
        return peers.onnx_file_case(path, images, cores=self._cores, spinning=False), path

    def _litert(self, images, *, integers: bool = False) -> tuple[Any, pathlib.Path]:
        from ai_edge_litert.interpreter import Interpreter

        path = self._exported("tflite", batch=len(images), integers=integers)
        interpreter = Interpreter(model_path=str(path), num_threads=self._cores)
        interpreter.allocate_tensors()
        [image], [logits] = interpreter.get_input_details(), interpreter.get_output_details()

        def call():
            interpreter.set_tensor(image["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(logits["index"])

        return call, path

    def _torch(self, images) -> tuple[Any, pathlib.Path]:
        from benchmarks import peers

        path = self._folder / f"torch_{len(images)}.onnx"
        module = peers.make_module("transformers", self._config, self._task, self._variables)
        peers.write_onnx(module.to("cpu"), images, path)
        return peers.onnx_file_case(path, images, cores=self._cores, spinning=False), path

    def _inference(self, images) -> tuple[Any, None]:
        from benchmarks import workloads

        return workloads.inference_program(self._model, self._variables, images, fast=True).call, None

    def _exported(self, to: str, batch: int | str = "dynamic", *, integers: bool = False) -> pathlib.Path:
        from flax_mnv2.export import export

        path = self._folder / f"ours_{batch}{'_int8' * integers}.{to}"
        if not path.exists():
            model, variables = self._quantized() if integers else (self._model, self._variables)
            print(export(model, variables, path, batch=batch), flush=True)
        return path

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one object a run)
    def _quantized(self):
        """Our network in integers, with the ranges of a few images."""
        from benchmarks import workloads
        from flax_mnv2 import calibrate

        model = self._model.clone(config=self._config.replace(quantization="int8"))
        return model, calibrate(model, self._variables, [workloads.random_images(self._config, 4)])

    def _checked(self, name: str, make, images, sizes: dict[str, float]):
        """The case, whose logits are the model's; a ValueError where they differ by more than rounding."""
        import numpy as np

        call, path = make(images)
        if path is not None:
            sizes[name] = round(path.stat().st_size / 1e6, 1)
        logits, expected = np.asarray(call(), np.float32)[:1], self._expected()
        if logits.shape != expected.shape:  # maps of ONNX have the channels first
            logits = logits.transpose(0, 2, 3, 1)
        difference = float(abs(logits - expected).max() / abs(expected).max())
        if not difference <= (INTEGER_TOLERANCE if name.startswith("int8") else TOLERANCE):
            raise ValueError(f"logits differ by {difference:.2g} of the largest: wrong answers are not timed")
        print(f"{name}: logits within {difference:.1e} of the largest", flush=True)
        return call

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one object a run)
    def _expected(self):
        """Logits of our plain network for the first image."""
        import numpy as np

        from benchmarks import workloads

        images = workloads.random_images(self._config, 1)
        return np.asarray(workloads.jit_once(lambda images: self._model.apply(self._variables, images).logits)(images))


if __name__ == "__main__":
    main()
