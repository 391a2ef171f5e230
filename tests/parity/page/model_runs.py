"""One line for the models of both libraries: the same weights, images channels last, each call made once."""

import functools
import pathlib
import tempfile

import numpy as np
from items import Item

FIELDS = {"depth_multiplier": 0.35, "depth_divisible_by": 4, "min_depth": 4, "num_labels": 5, "image_size": 64}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
MODEL, CLASSIFIER, SEGMENTER = (
    "MobileNetV2Model",
    "MobileNetV2ForImageClassification",
    "MobileNetV2ForSemanticSegmentation",
)
NAMES, HEADS = (MODEL, CLASSIFIER, SEGMENTER), (CLASSIFIER, SEGMENTER)
LABELS = {
    CLASSIFIER: np.array([1, 4]),
    SEGMENTER: np.random.default_rng(1).integers(0, 5, (2, 64, 48)),
}
LABELS[SEGMENTER][:, :8] = 255


def each(what, line, names=NAMES, ours=None, idiom=""):
    """An item for each of the models; lines take the library and the name of the class."""

    def of(line, name):
        return None if line is None else lambda lib: line(lib, name)

    return [
        Item(f"{name.removeprefix('MobileNetV2')}: {what}", of(line, name), ours=of(ours, name), idiom=idiom)
        for name in names
    ]


def is_ours(lib):
    return lib.__name__ == "flax_mnv2"


def config(lib, **fields):
    return lib.MobileNetV2Config(**{**FIELDS, **fields})


def fill(module):
    """Gives a torch module weights of a useful scale."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def uniform(tensor, low, high):
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            deviation = (2.0 / layer.weight[0].numel()) ** 0.5
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * deviation)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            uniform(layer.weight, 0.5, 1.5)
            uniform(layer.bias, -0.5, 1.0)
            uniform(layer.running_mean, -0.5, 0.5)
            uniform(layer.running_var, 0.5, 2.0)
    return module.eval()


@functools.cache
def _module(name, fields):
    """The class of transformers with those fields of its config, as items."""
    import transformers

    return fill(getattr(transformers, name)(config(transformers, **dict(fields))))


@functools.cache
def _folder(name):
    kept = tempfile.TemporaryDirectory()
    _module(name, ()).save_pretrained(kept.name)
    return kept


def path(name):
    """A folder that transformers wrote."""
    return pathlib.Path(_folder(name).name)


@functools.cache
def _variables(lib, name, fields):
    task = {MODEL: "backbone", CLASSIFIER: "classification", SEGMENTER: "segmentation"}[name]
    ours = config(lib, **dict(fields))
    return lib.from_state_dict(_module(name, fields).state_dict(), config=ours, task=task)[1]


@functools.cache
def made(lib, name, fields=()):
    """What is called: (model, variables) of ours, a module and None of theirs; always the same weights."""
    if not is_ours(lib):
        return _module(name, fields), None
    network = tuple(item for item in fields if item[0] not in ("return_dict", "output_hidden_states"))
    return getattr(lib, name)(config(lib, **dict(fields))), _variables(lib, name, network)


def _to_torch(value):
    import torch

    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(np.ascontiguousarray(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value))


def _from_torch(value):
    if hasattr(value, "detach"):
        value = value.detach().numpy()
        return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
    if isinstance(value, tuple):
        return tuple(map(_from_torch, value))
    if hasattr(value, "keys"):
        return type(value)(**{key: _from_torch(value[key]) for key in value})
    return value


def apply(lib, model, variables, *args, **kwargs):
    """Calls a model as it stands; arrays channels last."""
    if not is_ours(lib):
        import torch

        with torch.no_grad():
            return _from_torch(model(*map(_to_torch, args), **{key: _to_torch(value) for key, value in kwargs.items()}))
    return model.apply(variables, *args, **kwargs)  # not compiled: operations are, and most calls share theirs


_RUNS = {}


def run(lib, name, *args, fields=None, **kwargs):
    """The output of a model for ``IMAGES``, or whatever ``args`` and ``kwargs`` give; each call is made once."""
    args = args or (() if "pixel_values" in kwargs else (IMAGES,))
    items = tuple(sorted((fields or {}).items()))

    def keys(values):
        return tuple(value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in values)

    key = (lib.__name__, name, items, keys(args), tuple(sorted(kwargs)), keys(kwargs[k] for k in sorted(kwargs)))
    if key not in _RUNS:
        try:
            _RUNS[key] = apply(lib, *made(lib, name, items), *args, **kwargs), None
        except Exception as error:  # which is what some lines are about
            _RUNS[key] = None, error
    output, error = _RUNS[key]
    if error is not None:
        raise error
    return output
