"""A job in one file: how red is a photo? All that a new task needs beside its row in ``tasks.registry.TASKS``."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.datasets.registry import load_classification
from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import ImageClassifierOutputWithNoAttention, MobileNetV2Model
from flax_mnv2.tasks import rules
from flax_mnv2.tasks.base import Evaluator, Task
from flax_mnv2.tasks.prediction import Example, Predictor
from flax_mnv2.visualize.sheets import Panel
from flax_mnv2.weights.source import variable_shapes

REDNESS = np.array([0.0, 0.0, 1.0], np.float32)  # of blue, green and red photos


class RednessModel(nn.Module):
    config: MobileNetV2Config
    dtype: jnp.dtype = jnp.float32
    sync_batch_norm: bool = True

    @nn.compact
    def __call__(self, images, *, train=False):
        features = MobileNetV2Model(self.config, dtype=self.dtype, name="backbone")(images, train=train).pooler_output
        kernel = self.param("kernel", nn.initializers.normal(0.1), (features.shape[-1], 1))
        return ImageClassifierOutputWithNoAttention(logits=(features @ kernel)[:, 0])


@dataclasses.dataclass(frozen=True)
class Row:
    source: object
    size: int

    def __call__(self, index, rng=None):
        if index >= len(self.source):
            return self._row(np.zeros((self.size, self.size, 3), np.uint8), 0.0, position=-1)
        stored = self.source[index]
        image = np.asarray(decode_rgb(stored["image"]).resize((self.size, self.size)))
        image = image[:, ::-1] if rng is not None and rng.random() < 0.5 else image
        return self._row(np.ascontiguousarray(image), REDNESS[stored["label"]], position=index)

    @staticmethod
    def _row(image, redness, *, position):
        return {
            "image": image,
            "redness": np.float32(redness),
            "index": np.int64(position),
            "mask": np.bool_(position >= 0),
        }


class RednessEvaluator(Evaluator):
    """Keeps every pair, as metrics do that are no sums."""

    def __init__(self):
        self.pairs = []

    def needs_examples(self, batch):
        return True

    def add(self, batch, sums, examples):
        del sums
        self.pairs += zip(batch["redness"][batch["mask"]], examples[batch["mask"]], strict=True)

    def metrics(self):
        truth, predicted = np.array(self.pairs).T
        return {"r2": float(1 - np.mean((truth - predicted) ** 2) / truth.var())}

    def to_dict(self, *, per_class):
        return self.metrics()

    def format_table(self, *, per_class):
        return f"R2  {self.metrics()['r2']:.4f}"

    def write_files(self, folder):
        (folder / "pairs.json").write_text(json.dumps([list(map(float, pair)) for pair in self.pairs]))
        return {"pairs": folder / "pairs.json"}


class RednessPredictor(Predictor):
    task = "redness"

    def __init__(self, model, variables, processor, *, top, threshold):
        self._processor = processor
        self._compute = jax.jit(lambda pixels: model.apply(variables, pixels).logits)

    def prepare(self, photo):
        return Example(self._processor.preprocess(photo).pixel_values[0])

    def compute(self, pixels):
        return np.asarray(self._compute(pixels))

    def finish(self, example, answer):
        return float(answer)

    def record(self, prediction, files):
        return {"redness": prediction}

    def format_record(self, record):
        return [f"redness {record['redness']:.3f}"]


class RednessTask(Task):
    name = "redness"
    best_metric = "r2"
    titles = {"r2": "R2"}
    batch_fields = ("image", "redness")
    model_defaults = {"output_stride": 32}
    rules = {"data.size": rules.at_least(32)}
    load_dataset = staticmethod(load_classification)
    predictor = RednessPredictor

    @classmethod
    def add_defaults(cls, config):
        config.data.dataset, config.data.size = "image_folder", 32

    @classmethod
    def check_config(cls, config, fields):
        pass

    @classmethod
    def batch_shapes(cls, config):
        count, size = config.batch_size, config.data.size
        return {
            "image": jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8),
            "redness": jax.ShapeDtypeStruct((count,), jnp.float32),
        }

    @classmethod
    def make_model(cls, model_config, *, dtype=jnp.float32, **_):
        return RednessModel(model_config, dtype=dtype)

    @classmethod
    def load_pretrained(cls, source, *, dtype=jnp.float32):
        model = cls.make_model(source.config, dtype=dtype)
        return model, traverse_util.unflatten_dict(source.select(variable_shapes(model)))

    @classmethod
    def for_training(cls, config, labels, *, axis_name=None):
        model_config = MobileNetV2Config(**config.model.to_dict(), num_labels=1)
        return cls(config, model_config, processor=_processor(config), axis_name=axis_name)

    @classmethod
    def for_evaluation(cls, config, model_config, dataset, *, processor=None):
        return cls(config, model_config, processor=_processor(config))

    def train_row(self, source):
        return Row(source, self.config.data.size)

    def eval_row(self, source, dataset, split):
        return Row(source, self.config.data.size)

    def loss_sums(self, variables, batch, key, *, axis_name):
        predicted, statistics = self.train_outputs(variables, _normalize(batch["image"]), key, axis_name=axis_name)
        loss = jnp.sum((predicted - batch["redness"]) ** 2)
        return loss, (statistics, {"weight": jnp.float32(len(predicted))})

    def evaluate_batch(self, variables, batch):
        predicted = self.eval_model.apply(variables, _normalize(batch["image"])).logits
        return jnp.sum(batch["mask"]), predicted

    def evaluator(self, *, report):
        return RednessEvaluator()

    @classmethod
    def describe_augmentation(cls, config):
        return "flip"

    def seen_inputs(self, batch, key):
        return batch["image"], batch["redness"]

    def contact_sheet(self, source, seen):
        return {"tiles": [(Panel(one.image, (f"{one.target:.1f}",)),) for one in seen], "rows": ("network input",)}


def _processor(config):
    return MobileNetV2ImageProcessor(size={"height": config.data.size, "width": config.data.size}, do_center_crop=False)


def _normalize(images):
    return images.astype(jnp.float32) / 127.5 - 1.0
