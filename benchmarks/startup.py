"""What a fresh process waits for: imports, the first finished training step, and a run of one step.

Every timing is a process of its own, from its start to its end. Imports: this library beside the packages that any
trainer with Flax needs, PyTorch and transformers. First step: ours without a compilation cache, ours-cached with
JAX's persistent cache filled by an earlier process, and PyTorch in eager mode (transformers, else torchvision).
Run: train.py with configs/quickstart.py, one step, its checkpoint and its evaluation, with an empty cache (ours) and
with the one that such a run filled (ours-cached).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import subprocess
import sys
import tempfile

from benchmarks import harness

IMPORTS = {
    "ours": "import flax_mnv2",
    "jax+flax+orbax": "import jax, flax.linen, orbax.checkpoint",
    "jax": "import jax",
    "torch": "import torch",
    "transformers": "import benchmarks.torch_setup as s; s.import_torch(); from transformers import "
    "MobileNetV2ForImageClassification",
}
# Variant and batch of a classifier's first step.
WORKS = {"tiny": ("0.35_96", 2), "full": ("1.0_224", 16)}
CACHE_MIN_COMPILE_S = 0.5


def main(argv: list[str] | None = None) -> None:
    """Measures and reports."""
    arguments = harness.parse_arguments("startup", __doc__, add_options, argv)
    arguments.works = arguments.works or (("tiny",) if arguments.quick else tuple(WORKS))
    rows = measure_imports(arguments.repeats or (3 if arguments.quick else 5), arguments.peers)
    for work in arguments.works:
        rows += measure_first_step(work, arguments.repeats or (1 if arguments.quick else 5), arguments.peers)
    rows += measure_run(arguments.repeats or (1 if arguments.quick else 3))
    harness.report("startup", rows, settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument("--works", nargs="*", choices=WORKS, help="first steps to measure; default both")


def measure_imports(repeats: int, peers: tuple[str, ...] | None) -> list[harness.Row]:
    """Rows for processes that import and end."""
    makers = {name: functools.partial(_process, code) for name, code in IMPORTS.items()}
    return _measure(makers, "import", repeats, peers)


def measure_first_step(work: str, repeats: int, peers: tuple[str, ...] | None) -> list[harness.Row]:
    """Rows for processes that make one training step and end."""
    variant, batch = WORKS[work]
    call = f"import benchmarks.startup as s; s.first_step_{{}}({variant!r}, {batch})"
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(CACHE_MIN_COMPILE_S),
        }
        makers = {
            "ours": functools.partial(_process, call.format("ours")),
            "ours-cached": functools.partial(_process, call.format("ours"), **cache),
            "torch": functools.partial(_process, call.format("torch")),
        }
        return _measure(makers, f"first step, classification {variant}, batch {batch}", repeats, peers)


def measure_run(repeats: int) -> list[harness.Row]:
    """Rows for ``train.py`` with one step and one evaluation; the data set is prepared by a start that is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()
        code = "import runpy, sys; sys.argv = {}; runpy.run_path('train.py', run_name='__main__')"

        def case(cache):
            workdir, programs = (f"{folder}/{name}" for name in (next(numbers), cache or next(numbers)))
            command = ["train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", "--config.num_steps=1"]
            _process(code.format([*command, f"--config.compilation_cache={programs}"]), PYTHONPATH=".")()

        makers = {"ours": lambda: lambda: case(""), "ours-cached": lambda: lambda: case("kept")}
        return _measure(makers, "train.py, quickstart, one step and one evaluation", repeats, None)


def _measure(makers, work: str, repeats: int, peers: tuple[str, ...] | None) -> list[harness.Row]:
    makers = {name: make for name, make in makers.items() if name == "ours" or peers is None or name in peers}
    cases = harness.build(makers)  # runs each once: fills the caches of Python, the disk and JAX
    return harness.summarise(harness.alternate(cases, repeats=repeats, warmup=0, calls=1), work=work)


def _process(code: str, **environment: str):
    """A case: a fresh Python that runs ``code`` to its end, with no compilation cache but one that is given."""
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def case():
        command = [sys.executable, "-c", code]
        environ = {**inherited, **environment}
        result = subprocess.run(command, cwd=harness.ROOT, env=environ, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])

    return case


# ---- in the fresh process ------------------------------------------------------------------------------


def first_step_ours(variant: str, batch: int) -> None:
    """Builds, compiles and makes one step of SGD on random images."""
    from benchmarks import workloads

    config = workloads.make_config("classification", variant)
    model = workloads.build_model(config, "classification", dtype="bfloat16" if workloads.on_gpu() else "float32")
    images, labels = workloads.random_images(config, batch), workloads.random_labels("classification", config, batch)
    variables = workloads.random_variables(model)
    workloads.train_program(model, variables, {"image": images, "label": labels}).call()


def first_step_torch(variant: str, batch: int) -> None:
    """The same in PyTorch's eager mode, float32, channels last."""
    import numpy as np

    from benchmarks.torch_setup import import_torch

    torch = import_torch()
    width, _, size = variant.partition("_")
    try:
        import transformers
    except ImportError:
        import torchvision

        module = torchvision.models.mobilenet_v2(num_classes=1001, width_mult=float(width))
    else:
        config = transformers.MobileNetV2Config(depth_multiplier=float(width), num_labels=1001)
        module = transformers.MobileNetV2ForImageClassification(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = module.to(device=device, memory_format=torch.channels_last).train()
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (batch, int(size), int(size), 3)).astype(np.float32)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(generator.integers(1001, size=batch)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, fused=True)
    output = module(images)
    torch.nn.functional.cross_entropy(getattr(output, "logits", output), labels).backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
