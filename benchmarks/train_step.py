"""One training step, forward, backward and update, batch norm in train mode: this project beside PyTorch.

SGD with momentum 0.9, the same weights, batch and dropout rate everywhere; the losses of one batch without dropout
are compared before anything is timed. Cases: ours, ours-native (XLA's grouped convolutions); transformers, timm and
torchvision in channels-last eager mode, and with -compile or -compile-autotune. Compiled peers run on a GPU by
default, elsewhere where --peers names them. Detection is SSDLite at 320 with hard negatives by a sort, as in
torchvision's SSD; timm has no other network there than torchvision.
"""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any

from benchmarks import harness

TASKS = ("classification", "segmentation", "detection")
SEGMENTATION_SIZE = 321
QUICK = ("transformers",)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of the loss


def main(argv: list[str] | None = None) -> None:
    """Measures and reports."""
    arguments = harness.parse_arguments("train_step", __doc__, add_options, argv)
    from benchmarks import workloads  # after --cores has taken effect

    gpu = workloads.on_gpu()
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    chosen = arguments.peers if arguments.peers is not None else QUICK if arguments.quick else None
    rows = []
    for task in arguments.task or TASKS:
        for batch in arguments.batches or default_batches(task, gpu=gpu, quick=arguments.quick):
            bench = TrainStep(task, arguments.variant, arguments.size, arguments.dtype, batch, gpu=gpu)
            rows += bench.measure(chosen, repeats=arguments.repeats or (2 if arguments.quick else 6))
    harness.report("train_step", rows, settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """This benchmark's own options."""
    parser.add_argument("--task", type=_tasks, metavar="TASK", help=f"one of {', '.join(TASKS)}; default all")
    parser.add_argument("--variant", default="1.0_224", metavar="α_SIZE", help="default 1.0_224")
    parser.add_argument(
        "--size",
        type=harness.positive,
        metavar="PX",
        help=f"default the variant's; segmentation {SEGMENTATION_SIZE}, detection 320",
    )
    parser.add_argument("--batches", type=harness.positives, metavar="N,N", help="images per step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default float32 on CPU, bfloat16 on a GPU")


def _tasks(text: str) -> tuple[str, ...]:
    if text not in TASKS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(TASKS)}; found {text!r}")
    return (text,)


def default_batches(task: str, *, gpu: bool, quick: bool) -> tuple[int, ...]:
    """Batch sizes worth a row."""
    if task == "segmentation":
        return (64,) if gpu else (2,) if quick else (8,)
    if task == "detection":
        return (128,) if gpu else (2,) if quick else (16,)
    return ((512,) if quick else (512, 1024)) if gpu else (4,) if quick else (16,)


class TrainStep:
    """One network and one batch, in all libraries.

    Attributes:
      config: the architecture.
      variables: the weights with which all cases start.
      batch: ``image`` float32 (N, H, W, 3) and ``label``, as ``random_labels`` gives it.
    """

    def __init__(self, task: str, variant: str, size: int | None, dtype: str, batch: int, *, gpu: bool):
        from benchmarks import workloads

        self.task, self.dtype, self.gpu = task, dtype, gpu
        size = size or (SEGMENTATION_SIZE if task == "segmentation" else None)
        self.config = workloads.make_config(task, variant, image_size=size)
        self.name = f"{task} {variant.partition('_')[0]}, {self.config.image_size}², {dtype}, batch {batch}"
        self.variables = workloads.random_variables(workloads.build_model(self.config, task, dtype="float32"))
        self.batch = {
            "image": workloads.random_images(self.config, batch),
            "label": workloads.random_labels(task, self.config, batch),
        }

    def measure(self, chosen: tuple[str, ...] | None, *, repeats: int) -> list[harness.Row]:
        """Rows of our network and of those cases that are ``chosen``; None for the default ones."""
        programs: dict[str, Any] = {}
        makers = {**self._ours(programs), **self._peers()}
        if unknown := sorted(set(chosen or ()) - makers.keys()):
            harness.skipped(", ".join(unknown), f"no such case; there are {', '.join(makers)}")
        if chosen is None:
            chosen = tuple(name for name in makers if self.gpu or "-compile" not in name)
        makers = {name: make for name, make in makers.items() if name == "ours" or name in chosen}
        cases = harness.build(makers)
        seconds = harness.alternate(cases, repeats=repeats, warmup=1)
        rows = harness.summarise(seconds, work=self.name, items=len(self.batch["label"]))
        losses = {name: float(case()) for name, case in cases.items()}
        for row in rows:
            loss = losses[row["case"]]
            row.update(programs[row["case"]].columns if row["case"] in programs else {}, loss=loss)
            state = "finite" if math.isfinite(loss) else "NOT FINITE: its time means nothing"
            print(f"{row['case']}: loss after training {loss:.4g}, {state}", flush=True)
        if any(not name.startswith("ours") for name in cases):
            from benchmarks import peers

            peers.forget()
        return rows

    def _ours(self, programs: dict[str, Any]) -> dict[str, Any]:
        from benchmarks import workloads

        def make(name: str, *, native: bool):
            model = workloads.build_model(self.config, self.task, dtype=self.dtype, native=native)
            programs[name] = workloads.train_program(model, self.variables, self.batch)
            step = programs[name].call
            return lambda: step()["loss"]

        return {name: functools.partial(make, name, native=name != "ours") for name in ("ours", "ours-native")}

    def _peers(self) -> dict[str, Any]:
        from benchmarks import peers

        def make(name: str, library: str, options: dict[str, Any] | None):
            module = peers.make_module(library, self.config, self.task, self.variables)
            theirs = peers.train_loss(module, self.batch, dtype=self.dtype)
            difference = abs(theirs - self._expected(library)) / abs(self._expected(library))
            if not difference <= TOLERANCE[self.dtype]:
                raise ValueError(f"its loss differs from ours by {difference:.2g}: wrong answers are not timed")
            print(f"{name}: loss without dropout {theirs:.5g}, within {difference:.1e} of ours", flush=True)
            return peers.train_case(module, self.batch, dtype=self.dtype, options=options)

        cases = peers.cases(gpu=self.gpu, training=True)
        return {name: functools.partial(make, name, *rest) for name, rest in cases.items()}

    @functools.lru_cache(maxsize=8)  # noqa: B019 (one object a batch)
    def _expected(self, library: str) -> float:
        """Our loss in train mode without dropout, with the numbers of ``library``."""
        from benchmarks import peers, workloads

        config = peers.peer_config(library, self.config)
        model = workloads.build_model(config, self.task, dtype=self.dtype)
        return workloads.train_loss(model, self.variables, self.batch)


if __name__ == "__main__":
    main()
