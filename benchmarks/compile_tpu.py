"""Compiles the training step for a TPU pod, without a TPU, and prints what the compiled program moves and keeps.

    pip install --no-deps --target /tmp/tpu_compiler -r benchmarks/requirements-tpu.txt
    PYTHONPATH=/tmp/tpu_compiler python -m benchmarks.compile_tpu --topology v5e:4x4 --batch 128

The step is the real one, ``training.steps`` with ``training.parallel``: uint8 images split over the chips, one
replicated state. Nothing is allocated and nothing runs. Figures are per chip or per image:

HBM MB/image
    operands and results of every instruction that lie in HBM, counted from the program's text with the padding of
    tiles; an upper bound, since an operand of which a part is read counts whole. ``--by-layer`` shows where it arises.
accessed MB/image
    "bytes accessed" of XLA's cost analysis. It also counts what lies in the chip's own memory (VMEM), and the copies
    there and back; in a program that uses none the two columns agree.
peak GiB
    arguments, results and temporaries of a chip, what the step reuses counted once.
estimated ms
    the compiler's estimated cycles of all instructions at 1.5 GHz (v5e); no measurement.

The compiler takes about five minutes on one core, whatever the number of chips; the time goes into the choice of tiles
for each convolution and the use of VMEM. ``--quick`` asks for its least effort: half a minute. The program then keeps
everything in HBM, so that both columns are the traffic between fusions, which is what a change of the model moves.
FLOPs, memory and collectives stay much the same; estimated times mean nothing then. The number of images per chip
matters: with less than 128 the lanes of a tile are filled with padding, or other dimensions are laid along them.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks import harness, hlo_traffic

if TYPE_CHECKING:  # the package loads JAX, which must come after the command line
    from flax_mnv2.tools.tpu_compile import hlo

GIGAHERTZ = 1.5  # TPU v5e


def main() -> None:
    arguments = harness.parse_arguments("compile_tpu", __doc__, add_options)
    from flax_mnv2.errors import UserError
    from flax_mnv2.tools.tpu_compile import hlo
    from flax_mnv2.tools.tpu_compile.slices import open_slice

    try:
        chips = open_slice(arguments.topology).devices
    except UserError as error:
        sys.exit(str(error))
    program = build(arguments, chips)
    print(f"{program.name}, {program.case} ({len(chips)} chips in all); lowering …", flush=True)
    start = time.perf_counter()
    lowered = program.step.lower(program.state, program.batch)
    lowering = time.perf_counter() - start
    print(f"lowered in {lowering:.0f} s; compiling …", flush=True)
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=compiler_options(arguments) or None)
    compiling = time.perf_counter() - start
    print(f"compiled in {compiling:.0f} s", flush=True)
    text = compiled.as_text()
    if arguments.dump_hlo:
        arguments.dump_hlo.parent.mkdir(parents=True, exist_ok=True)
        arguments.dump_hlo.write_text(text)
        print(f"written: {arguments.dump_hlo}", flush=True)

    module = hlo.Module(text)
    row = figures(compiled, module, arguments.batch)
    row = {"work": program.name, "case": program.case, **row, "compile s": compiling}
    if arguments.by_layer:
        print_layers(module, arguments.batch, arguments.by_layer)
    harness.report("compile_tpu", [row], settings=vars(arguments), json_path=arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", default="v5e:4x4", help="chips, such as v5e:4x4 (the default) or v5e:16x16")
    parser.add_argument("--chips", type=harness.positive, metavar="N", help="use the first N chips only")
    parser.add_argument("--batch", type=harness.positive, default=128, metavar="N", help="images per chip (128)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--size", type=harness.positive, metavar="PX", help="image side; default 224, or 513")
    parser.add_argument("--variant", default="1.0_224", help="width and size (1.0_224)")
    parser.add_argument(
        "--implementation", default="auto", help="forms of the operations: auto, or default, cpu, gpu, tpu"
    )
    parser.add_argument("--parallel", choices=("jit", "pmap"), help="default: jit, and with --no-sync pmap")
    parser.add_argument(
        "--sync", action=argparse.BooleanOptionalAction, default=True, help="batch norm over all chips (the default)"
    )
    parser.add_argument("--remat", action="store_true", help="compute the inside of blocks again in the backward pass")
    parser.add_argument("--by-layer", type=harness.positive, metavar="N", help="print the N largest contributors")
    parser.add_argument("--dump-hlo", type=pathlib.Path, metavar="PATH", help="write the optimised HLO text")
    parser.add_argument(
        "--compiler-option", action="append", default=[], metavar="NAME=VALUE", help="may be given several times"
    )


def compiler_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options for the compiler: those given, numbers as numbers."""
    options: dict[str, Any] = {"exec_time_optimization_effort": -1.0} if arguments.quick else {}
    for text in arguments.compiler_option:
        name, _, value = text.partition("=")
        try:
            options[name] = int(value)
        except ValueError:
            try:
                options[name] = float(value)
            except ValueError:
                options[name] = {"true": True, "false": False}.get(value, value)
    return options


def figures(compiled: Any, module: hlo.Module, images: int) -> dict[str, Any]:
    """What the report says of a compiled program; ``images`` are those of one chip."""
    cost, memory, traffic = compiled.cost_analysis(), compiled.memory_analysis(), hlo_traffic.traffic_of(module)
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    collectives = {
        kind: {"number": len(sizes), "bytes": sum(sizes), "largest": max(sizes)}
        for kind, sizes in sorted(module.collectives().items())
    }
    return {
        "HBM MB/image": sum(each.bytes for each in traffic) / images / 1e6,
        "accessed MB/image": cost["bytes accessed"] / images / 1e6,
        "GFLOP/image": cost["flops"] / images / 1e9,
        "peak GiB": peak / 2**30,
        "temporaries GiB": memory.temp_size_in_bytes / 2**30,
        "estimated ms": sum(each.cycles for each in traffic) / GIGAHERTZ / 1e6,
        "collectives": "; ".join(
            f"{found['number']} {kind}, {found['bytes'] / 1e6:.1f} MB" for kind, found in collectives.items()
        ),
        "convolutions": hlo_traffic.count(module, "convolution"),
        "fusions": sum(each.instruction.opcode == "fusion" for each in traffic),
        "collectives by kind": collectives,
        "memory": {
            name: getattr(memory, f"{name}_size_in_bytes")
            for name in ("argument", "output", "alias", "temp", "generated_code")
        },
        "layers": [
            {"layer": layer, "bytes": size, "cycles": cycles}
            for layer, (size, cycles) in hlo_traffic.by_layer(traffic).items()
        ],
    }


def print_layers(module: hlo.Module, images: int, number: int) -> None:
    """Prints the largest contributors to HBM traffic: layers, and single instructions."""
    traffic = hlo_traffic.traffic_of(module)
    total = sum(each.bytes for each in traffic)
    rows = [
        {"layer": layer, "MB/image": size / images / 1e6, "%": 100 * size / total, "estimated µs": cycles / 1.5e3}
        for layer, (size, cycles) in hlo_traffic.by_layer(traffic).items()
    ]
    print(f"\nHBM traffic by layer (of the root of each fusion)\n\n{harness.markdown_table(rows[:number])}")
    rows = [
        {
            "instruction": f"{each.instruction.opcode} {each.instruction.name}",
            "layer": hlo_traffic.layer_of(each.op_name, depth=4),
            "MB/image": each.bytes / images / 1e6,
            "%": 100 * each.bytes / total,
            "estimated µs": each.cycles / 1.5e3,
            "arrays (MB per chip)": ", ".join(
                f"{way} {array.dtype}[{','.join(map(str, array.dims))}] {array.bytes / 1e6:.0f}"
                for way, array in each.arrays
                if array.bytes > each.bytes / 50
            ),
        }
        for each in sorted(traffic, key=lambda each: -each.bytes)[:number]
    ]
    print(f"\nHBM traffic by instruction\n\n{harness.markdown_table(rows)}", flush=True)


# ---- the program ---------------------------------------------------------------------------------------


def build(arguments: argparse.Namespace, chips: list[Any]) -> SimpleNamespace:
    """The ``step``, not yet lowered, its abstract ``state`` and ``batch``, and the ``name`` and ``case`` of it all."""
    import jax
    import jax.numpy as jnp

    from benchmarks import workloads
    from flax_mnv2.training.config.defaults import default_config
    from flax_mnv2.training.optimizer import make_optimizer, make_schedule
    from flax_mnv2.training.parallel import AXIS
    from flax_mnv2.training.state import TrainState
    from flax_mnv2.training.step import make_train_step

    parallel = arguments.parallel or ("jit" if arguments.sync else "pmap")
    axis_name = AXIS if parallel == "pmap" else None
    variant = arguments.variant.removeprefix("mobilenet_v2_")
    config = workloads.make_config(arguments.task, variant, image_size=arguments.size)
    size = config.image_size
    model = make_model(arguments, config, axis_name)
    settings = default_config().optimizer
    schedule = make_schedule(settings, 100_000)
    optimizer = make_optimizer(settings, schedule)
    task = pixels_task(workloads.BenchmarkTask(model), average=arguments.sync is False and axis_name is not None)
    step = make_train_step(task, optimizer, schedule, seed=0, axis_name=axis_name)

    devices = chips[: arguments.chips]
    images = arguments.batch * len(devices)
    labels = (images, size, size) if arguments.task == "segmentation" else (images,)
    batch = {
        "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(labels, jnp.int32),
    }
    init = make_model(arguments, config, None).init
    image = jnp.zeros((1, 64, 64, 3), jnp.float32)
    state = jax.eval_shape(lambda key: TrainState.create(init(key, image), optimizer), jax.random.key(0))
    return SimpleNamespace(
        step=compile_step(step, devices, parallel),
        state=state,
        batch=batch,
        name=f"{arguments.task} {variant.partition('_')[0]} {size}²",
        case=(
            f"{arguments.topology}, {len(devices)} × {arguments.batch} images, {arguments.dtype}, {parallel}, batch "
            f"norm {'global' if arguments.sync else 'per chip'}{', remat' if arguments.remat else ''}, "
            f"{arguments.implementation}{', quick' if arguments.quick else ''}"
        ),
    )


def make_model(arguments: argparse.Namespace, config: Any, axis_name: str | None) -> Any:
    """The model; ``axis_name`` is the mapped axis. Ends the program where it cannot do what is asked."""
    import jax.numpy as jnp

    from flax_mnv2.weights.pretrained import make_model

    if not arguments.sync and arguments.parallel == "jit":
        sys.exit("--no-sync needs --parallel pmap: under jit a batch is global, and its statistics with it")
    axis_name = axis_name if arguments.sync else None
    options = {"dtype": jnp.dtype(arguments.dtype), "remat": arguments.remat}
    model = make_model(config, arguments.task, axis_name=axis_name, **options)
    if "implementation" in {field.name for field in dataclasses.fields(model)}:
        return model.clone(implementation=arguments.implementation)
    if arguments.implementation != "auto":
        sys.exit(f"--implementation {arguments.implementation}: the models have no such attribute")
    return model


def pixels_task(task: Any, *, average: bool) -> SimpleNamespace:
    """``task`` for uint8 pixels, as the loaders give them; ``average`` makes batch statistics the same on all chips."""
    import jax
    import jax.numpy as jnp

    def loss_sums(variables, batch, key, *, axis_name):
        batch = {**batch, "image": batch["image"].astype(jnp.float32) / 127.5 - 1.0}
        loss, (statistics, sums) = task.loss_sums(variables, batch, key, axis_name=axis_name)
        return loss, (jax.lax.pmean(statistics, axis_name) if average else statistics, sums)

    return SimpleNamespace(loss_sums=loss_sums)


def compile_step(step: Any, devices: list[Any], parallel: str) -> Any:
    """The step over the chips, to be lowered.

    ``jax.pmap`` takes only devices of this process, which a pod's are not; ``shard_map`` makes the same program.
    """
    from flax_mnv2.training.parallel import JitParallel

    return JitParallel(devices, per_device=parallel == "pmap").compile_train_step(step)


if __name__ == "__main__":
    main()
