"""The page's part on loading, saving and training the models, its tips, and what is a Flax idiom here."""

import functools
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from items import Item, refused
from model_runs import CLASSIFIER, HEADS, IMAGES, MODEL, SEGMENTER, apply, config, each, is_ours, made, path

VARIABLES = "A linen module holds no weights: they are its variables, the second of the pair that loading gives"
CALL = "Mode is an argument of the call, and statistics are returned, not kept in the model"
ATTRIBUTE = "An attribute of the module, given when it is made"
NO_DROPOUT = (("classifier_dropout_prob", 0.0),)  # a module of its own: training renews its statistics
_KEPT = tempfile.TemporaryDirectory()


def _load(lib, name, where, **options):
    loaded = getattr(lib, name).from_pretrained(where, **options)
    return loaded if is_ours(lib) else (loaded, None)


_load_once = functools.cache(_load)


def load(lib, name, where=None, **options):
    """(model, variables) or a module and None, from a folder of transformers; the same call is made once."""
    once = _load if "config" in options else _load_once  # theirs has no hash
    return once(lib, name, str(where or path(name)), **options)


def output(lib, name, where=None, **options):
    return apply(lib, *load(lib, name, where, **options), IMAGES)


def saved(lib, name, library):
    """What ``library`` loads of what ``lib`` saved."""
    with tempfile.TemporaryDirectory() as place:
        model, variables = made(lib, name)
        if is_ours(lib):
            model.save_pretrained(place, variables)
        else:
            model.save_pretrained(place)
        return output(library or lib, name, place)[0]


@functools.cache
def edited(name, key, value):
    """The same folder with another value in its config.json."""
    place = pathlib.Path(_KEPT.name) / f"{name}_{key}"
    shutil.copytree(path(name), place)
    values = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(values | {key: value}))
    return place


def _outputs_of(key, value):
    return lambda lib, name: output(lib, name, edited(name, key, value))[:]


def _changed(field, value):
    return lambda lib, name: getattr(load(lib, name, **{field: value})[0].config, field)


def dtype(value):
    return str(value).removeprefix("torch.")


def shape(lib, name, size=(64, 48), **fields):
    """Shape of the last hidden state or of the logits, channels last."""
    images = np.zeros((1, *size, fields.get("num_channels", 3)), np.float32)
    model, variables = made(lib, name, tuple(fields.items()))
    if not is_ours(lib):
        return list(apply(lib, model, variables, images)[0].shape)
    return list(jax.eval_shape(model.apply, variables, images)[0].shape)


def _trained(lib, name):
    """Shape of the logits and number of statistics that a training step renews; parity/training/ has their values."""
    model, _ = made(lib, name, NO_DROPOUT)
    try:
        logits = apply(lib, model.train(), None, IMAGES).logits
    finally:
        model.eval()
    return logits.shape, sum(key.endswith(("running_mean", "running_var")) for key in model.state_dict())


def _trained_ours(lib, name):
    model, variables = made(lib, name, NO_DROPOUT)
    call = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    output, updated = jax.eval_shape(call, variables, IMAGES)
    return output.logits.shape, len(jax.tree.leaves(updated))


def _state(state):
    """What a segmentation model of ours has too, by name."""
    kept = sorted(key for key in state if "conv_1x1" not in key and "num_batches" not in key)
    return {key: np.asarray(state[key]) for key in kept}


def _count(lib, name):
    unused = made(lib, name)[0].mobilenet_v2.conv_1x1.parameters() if name == SEGMENTER else ()
    return made(lib, name)[0].num_parameters() - sum(parameter.numel() for parameter in unused)


def _count_ours(lib, name):
    return sum(leaf.size for leaf in jax.tree.leaves(made(lib, name)[1]["params"]))


ITEMS = [
    *each("from_pretrained", lambda lib, name: output(lib, name)[0]),
    *each("from_pretrained: config", lambda lib, name: load(lib, name)[0].config.depth_multiplier),
    *each("from_pretrained: its class", lambda lib, name: type(load(lib, name)[0]).__name__),
    *each("from_pretrained: isinstance", lambda lib, name: isinstance(load(lib, name)[0], getattr(lib, name))),
    *each("config.json with output_hidden_states", _outputs_of("output_hidden_states", True)),
    *each("config.json with return_dict", _outputs_of("return_dict", False)),
    *each(
        "from_pretrained(config=…)", lambda lib, n: load(lib, n, config=config(lib, min_depth=4))[0].config.min_depth
    ),
    *each("from_pretrained(output_hidden_states=True)", _changed("output_hidden_states", True)),
    *each("from_pretrained(return_dict=False)", _changed("return_dict", False)),
    *each("from_pretrained(output_stride=8)", _changed("output_stride", 8)),
    *each("tip: from_pretrained(tf_padding=False)", _changed("tf_padding", False)),
    Item("Model: from_pretrained(tf_padding=False), its output", lambda lib: output(lib, MODEL, tf_padding=False)[0]),
    *each("from_pretrained(dtype='auto')", lambda lib, name: dtype(load(lib, name, dtype="auto")[0].dtype)),
    *each("from_pretrained(torch_dtype='auto')", lambda lib, name: dtype(load(lib, name, torch_dtype="auto")[0].dtype)),
    *each("from_pretrained(dtype='bfloat16')", lambda lib, name: dtype(load(lib, name, dtype="bfloat16")[0].dtype)),
    *each(
        "from_pretrained of nothing is refused", lambda lib, name: refused(lambda lib: load(lib, name, "/no/such"))(lib)
    ),
    *each("save_pretrained", lambda lib, name: saved(lib, name, None)),
    *each(
        "num_labels of another head is refused",
        lambda lib, name: refused(lambda lib: load(lib, name, num_labels=3))(lib),
        HEADS,
    ),
    *each(
        "num_labels with ignore_mismatched_sizes",
        lambda lib, name: output(lib, name, num_labels=3, ignore_mismatched_sizes=True)[0].shape,
        HEADS,
    ),
    *each("num_parameters()", _count, ours=_count_ours, idiom=VARIABLES),
    *each(
        "state_dict()",
        lambda lib, name: _state(made(lib, name)[0].state_dict()),
        ours=lambda lib, name: _state(lib.to_state_dict(*made(lib, name), "hf")),
        idiom=VARIABLES,
    ),
    *each("train()", _trained, (CLASSIFIER,), ours=_trained_ours, idiom=CALL),
    Item(
        "Model: the backbone of a classifier",
        lambda lib: output(lib, MODEL, path(CLASSIFIER)).pooler_output,
    ),
    Item(
        "ForImageClassification: gradient_checkpointing_enable()",
        lambda lib: refused(lambda lib: made(lib, CLASSIFIER)[0].gradient_checkpointing_enable())(lib) or True,
        ours=lambda lib: getattr(lib, CLASSIFIER)(config(lib), remat=True).remat,
        idiom=ATTRIBUTE,
    ),
    # tips
    Item("tip: any size from 32", lambda lib: shape(lib, MODEL, (32, 32))),
    Item("tip: images that are not square", lambda lib: shape(lib, MODEL, (64, 96))),
    Item("tip: output stride of segmentation", lambda lib: shape(lib, SEGMENTER, (65, 65), output_stride=16)),
    Item("tip: output stride 8", lambda lib: shape(lib, SEGMENTER, (65, 65), output_stride=8)),
    Item("tip: 1001 classes", lambda lib: shape(lib, CLASSIFIER, num_labels=1001)),
    Item("tip: 1280 features where the multiplier is below 1", lambda lib: shape(lib, MODEL)),
    Item("tip: finegrained_output=False", lambda lib: shape(lib, MODEL, finegrained_output=False)),
    Item("tip: num_channels", lambda lib: shape(lib, MODEL, num_channels=4)),
]
