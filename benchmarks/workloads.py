"""The networks that are measured, as this project builds them: configs, weights, inputs and cases.

Nothing here needs more than JAX, Flax, Optax and NumPy.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import flax_mnv2
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.losses import detection_loss_sums
from flax_mnv2.detection.suppression import detect_all
from flax_mnv2.losses import cross_entropy_sums, segmentation_cross_entropy_sums
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import make_train_step
from flax_mnv2.weights.pretrained import make_model

VOC_CLASSES, COCO_CLASSES = 21, 80
MAX_BOXES, BOXES = 100, 8  # rows of boxes of an image, and how many are boxes; COCO has 7.3 an image
CANDIDATES = 300  # classes of anchors of an image that suppression is given
VOID_SHARE = 0.05  # of the pixels of a label map, about as in VOC
LEARNING_RATE, MOMENTUM = 0.01, 0.9
DROPOUT = {"classification": 0.2, "segmentation": 0.1, "detection": 0.0}
MIB = 2**20

Variables = dict[str, Any]


def make_config(task: str, variant: str, *, image_size: int | None = None) -> MobileNetV2Config:
    """The config of a published width.

    Args:
      task: ``"classification"`` (1001 classes), ``"segmentation"`` (DeepLab, 21 classes, output stride 16) or
        ``"detection"`` (SSDLite, 80 classes).
      variant: such as ``1.0_224``.
      image_size: side of the images in pixels; None takes the variant's, DeepLab's 513 or SSDLite's 320.
    """
    fields: dict[str, Any] = {"classifier_dropout_prob": DROPOUT[task]}
    if task == "segmentation":
        fields |= {"num_labels": VOC_CLASSES, "output_stride": 16, "image_size": image_size or 513}
    elif task == "detection":
        spec = DetectionSpec(mining_iou=1.0)  # hard negatives by a sort, as in torchvision's SSD
        fields |= {"num_labels": COCO_CLASSES, "finegrained_output": False, "image_size": image_size or 320}
        fields |= {"detection": spec}
    elif image_size is not None:
        fields["image_size"] = image_size
    return flax_mnv2.variant_config(f"mobilenet_v2_{variant}", **fields)


def random_variables(model: nn.Module, *, seed: int = 0) -> Variables:
    """Variables under which signals keep their scale and batch norm does something; float32 NumPy arrays.

    With Hugging Face's initialiser the activations of an untrained network all but vanish, and a comparison of
    outputs would show nothing.
    """
    key, image = jax.random.key(seed), jnp.zeros((1, 64, 64, model.config.num_channels))
    flat = traverse_util.flatten_dict(jax.eval_shape(model.init, key, image))
    generator = np.random.default_rng(seed)
    ranges = {"scale": (0.5, 1.5), "bias": (-0.25, 0.5), "mean": (-0.25, 0.25), "var": (0.5, 2.0)}

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "kernel":
            values = generator.normal(size=shape) * (2.0 / np.prod(shape[:-1])) ** 0.5
        else:
            values = generator.uniform(*ranges[path[-1]], size=shape)
        return values.astype(np.float32)

    return traverse_util.unflatten_dict({path: draw(path, leaf.shape) for path, leaf in flat.items()})


def random_images(config: MobileNetV2Config, batch: int, *, seed: int = 0) -> np.ndarray:
    """Images as a processor gives them, float32 (batch, H, W, 3), about -1 to 1."""
    size = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    shape = (batch, *size, config.num_channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def random_labels(task: str, config: MobileNetV2Config, batch: int, *, seed: int = 0) -> np.ndarray:
    """int32: (batch,) classes, or (batch, H, W) with some 255, which do not count.

    Of a detector float32 (batch, rows, 5): corners y, x, y, x as fractions of the image, and the class, -1 for none.
    """
    generator = np.random.default_rng(seed)
    if task == "detection":
        low = generator.uniform(0, 0.6, (batch, MAX_BOXES, 2))
        rows = np.concatenate(
            [low, low + generator.uniform(0.05, 0.4, low.shape), np.full((*low.shape[:2], 1), -1)], -1
        )
        rows[:, :BOXES, 4] = generator.integers(config.num_labels, size=(batch, BOXES))
        return rows.astype(np.float32)
    if task == "classification":
        return generator.integers(config.num_labels, size=batch, dtype=np.int32)
    labels = generator.integers(config.num_labels, size=(batch, config.image_size, config.image_size), dtype=np.int32)
    labels[generator.random(labels.shape) < VOID_SHARE] = config.semantic_loss_ignore_index
    return labels


def build_model(config: MobileNetV2Config, task: str, *, dtype: Any, native: bool = False) -> nn.Module:
    """The model; ``native`` has XLA's grouped convolutions, the network as one would write it first."""
    return make_model(config, task, dtype=dtype).clone(implementation="default" if native else "auto")


@dataclasses.dataclass
class Compiled:
    """A compiled program with what compiling cost.

    Attributes:
      call: the program.
      compile_s: seconds of tracing and compiling.
      temp_mib: temporary memory that the program takes, in MiB, as XLA states it; None where it does not.
      moved_mib: what its instructions read and write, in MiB, likewise.
    """

    call: Callable[..., Any]
    compile_s: float
    temp_mib: float | None
    moved_mib: float | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """For a row of the report."""
        return {"compile s": self.compile_s, "temp MiB": self.temp_mib, "moved MiB": self.moved_mib}


def compile_program(function: Callable[..., Any], *arguments: Any, **jit_options: Any) -> Compiled:
    """Compiles ``function`` for these arguments."""
    start = time.perf_counter()
    program = jax.jit(function, **jit_options).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, moved = program.memory_analysis(), (program.cost_analysis() or {}).get("bytes accessed")
    temporary = None if memory is None else memory.temp_size_in_bytes / MIB
    return Compiled(program, seconds, temporary, moved and moved / MIB)


# ---- inference -----------------------------------------------------------------------------------------


def inference_program(model: nn.Module, variables: Variables, images: jax.Array, *, fast: bool) -> Compiled:
    """``call()`` → logits, ready; ``fast`` is ``make_inference_fn``, otherwise ``model.apply`` under ``jit``."""
    if fast:
        function, images = flax_mnv2.make_inference_fn(model, variables), jax.device_put(images)
        start = time.perf_counter()
        jax.block_until_ready(function(images))
        seconds = time.perf_counter() - start
        return Compiled(lambda: jax.block_until_ready(function(images).logits), seconds, None)
    variables = jax.device_put(variables)
    compiled = compile_program(lambda variables, images: model.apply(variables, images).logits, variables, images)
    program = compiled.call
    compiled.call = lambda: jax.block_until_ready(program(variables, images))
    return compiled


def detection_program(model: nn.Module, variables: Variables, images: jax.Array, *, fast: bool) -> Compiled:
    """``call()`` → (logits, what is left of the boxes of each image), ready; ``fast`` as for ``inference_program``.

    Suppression is given about ``CANDIDATES`` an image, as of a trained network; a random one is sure of nothing.
    """
    start, spec, images = time.perf_counter(), model.spec, jax.device_put(images)
    if fast:
        apply = functools.partial(flax_mnv2.make_inference_fn(model, variables), images)
    else:
        apply = functools.partial(jax.jit(model.apply), jax.device_put(variables), images)

    left = jax.jit(detect_all, static_argnames="spec")

    def call(threshold=1.0):
        output = apply()
        return output.logits, left(output.logits, output.pred_boxes, spec, threshold=threshold)

    logits, _ = jax.block_until_ready(call())
    threshold = threshold_of(np.asarray(logits))
    return Compiled(lambda: jax.block_until_ready(call(threshold)), time.perf_counter() - start, None)


def threshold_of(logits: np.ndarray) -> float:
    """The probability that ``CANDIDATES`` of the classes of an image's anchors are above, background apart."""
    scores = np.sort(logits[..., 1:].reshape(len(logits), -1), axis=1)
    return float(1 / (1 + np.exp(-np.mean(scores[:, -CANDIDATES]))))


# ---- training ------------------------------------------------------------------------------------------


class BenchmarkTask:
    """What ``make_train_step`` asks of a job; as the library's own tasks, which need its data sets.

    Attributes:
      model: the linen model that is trained.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        segmentation = isinstance(model, flax_mnv2.MobileNetV2ForSemanticSegmentation)
        self._loss_sums = segmentation_cross_entropy_sums if segmentation else cross_entropy_sums
        self._detects = isinstance(model, flax_mnv2.MobileNetV2ForObjectDetection)

    def loss_sums(self, variables, batch, key, *, axis_name):
        """The summed loss with new batch statistics and the number of labels that count."""
        del axis_name
        output, updated = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        if self._detects:
            rows = {"boxes": batch["label"][..., :4], "class_labels": batch["label"][..., 4].astype(jnp.int32)}
            anchors = self.model.anchors(batch["image"].shape[1:3])
            sums = detection_loss_sums(output.logits, output.box_codes, rows, anchors, self.model.spec)
            return sums["class_loss"] + sums["box_loss"], (updated, {"weight": sums["positives"]})
        ignored = self.model.config.semantic_loss_ignore_index
        ignored = -100 if output.logits.ndim == 2 else ignored
        loss, weight = self._loss_sums(output.logits, batch["label"], ignore_label=ignored)
        return loss, (updated, {"weight": weight})


def train_program(model: nn.Module, variables: Variables, batch: dict[str, np.ndarray]) -> Compiled:
    """``call()`` makes one step of SGD with momentum on buffers that it owns, and returns its metrics, ready."""
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    step = make_train_step(BenchmarkTask(model), optimizer, optax.constant_schedule(LEARNING_RATE), seed=0)
    # Copies: the buffers are donated, and on CPU JAX may share the memory of NumPy arrays.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), TrainState.create(variables, optimizer))
    batch = jax.device_put(batch)
    compiled = compile_program(step, state, batch, donate_argnums=0)
    program = compiled.call

    def call():
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready(state)
        return metrics

    compiled.call = call
    return compiled


def train_loss(model: nn.Module, variables: Variables, batch: dict[str, np.ndarray]) -> float:
    """The loss in train mode without dropout, as a check against other libraries."""
    model = model.clone(config=model.config.replace(classifier_dropout_prob=0.0))
    task = BenchmarkTask(model)

    def loss(variables, batch):
        total, (_, sums) = task.loss_sums(variables, batch, jax.random.key(0), axis_name=None)
        return total / sums["weight"]

    return float(jit_once(loss)(variables, batch))


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` for what runs once and is not timed: on CPU without LLVM's optimizations, which take the time."""
    return jax.jit(function, compiler_options=None if on_gpu() else {"xla_backend_optimization_level": 0})


# ---- this version, this machine ----------------------------------------------------------------------


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"
