"""The page's part on ``MobileNetV2Config``: every argument, its default, and what comes with every config."""

import functools
import json
import pathlib
import tempfile

from items import Item, refused

FIELDS = {  # of the page, each with a value that is not its default
    "num_channels": 1,
    "image_size": 96,
    "depth_multiplier": 0.35,
    "depth_divisible_by": 4,
    "min_depth": 16,
    "expand_ratio": 4.0,
    "output_stride": 8,
    "first_layer_is_expansion": False,
    "finegrained_output": False,
    "hidden_act": "relu",
    "tf_padding": False,
    "classifier_dropout_prob": 0.2,
    "initializer_range": 0.1,
    "layer_norm_eps": 1e-5,
    "semantic_loss_ignore_index": 0,
}
COMMON = {  # keywords of every config
    "output_hidden_states": True,
    "return_dict": False,
    "output_attentions": True,
    "chunk_size_feed_forward": 2,
    "is_encoder_decoder": True,
    "architectures": ["MobileNetV2Model"],
    "problem_type": "regression",
    "id2label": {0: "cat", 1: "dog", 2: "cow"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
}
OF_RELEASE_4 = {  # defaults that release 5 reads no more
    "torchscript": False,
    "use_bfloat16": False,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "finetuning_task": None,
    "task_specific_params": None,
    "tokenizer_class": None,
}
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2"),
    *("relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)
FROZEN = "A config does not change; replace gives a changed copy"


def of(lib):
    return lib.MobileNetV2Config


def config(lib, **fields):
    return lib.MobileNetV2Config(**fields)


_KEPT = tempfile.TemporaryDirectory()


@functools.cache
def folder():
    """A model's folder as the hub has it: only its config."""
    place = pathlib.Path(_KEPT.name)
    labels = {str(index): name for index, name in enumerate(("background", "tench", "goldfish"))}
    values = {
        "model_type": "mobilenet_v2",
        "architectures": ["MobileNetV2ForImageClassification"],
        "depth_multiplier": 1.4,
        "tf_padding": True,
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
        "torch_dtype": "float32",
        "transformers_version": "4.37.0",
        "our_note": [1, {"a": None}],
    }
    (place / "config.json").write_text(json.dumps(values))
    return place


def _read(lib, **options):
    return of(lib).from_pretrained(str(folder()), **options)


def _json(lib, use_diff=True):
    return json.loads(config(lib, output_stride=8).to_json_string(use_diff=use_diff))


def _full(lib):
    """All of ``to_dict`` but who wrote it, and from where."""
    values = config(lib).to_dict()
    return {name: values[name] for name in sorted(values) if name not in ("transformers_version", "_name_or_path")}


def _written(lib, **fields):
    """What ``save_pretrained`` writes, without what says who wrote it, and without labels that are generic."""
    with tempfile.TemporaryDirectory() as place:
        config(lib, **fields).save_pretrained(place)
        values = json.loads((pathlib.Path(place) / "config.json").read_text())
    generic = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    return {
        name: values[name]
        for name in sorted(values)
        if name not in ("transformers_version",) and values[name] != generic.get(name)
    }


def _dtype(value):
    return str(value).removeprefix("torch.")


def _assigned(name, value):
    def line(lib):
        changed = config(lib)
        setattr(changed, name, value)
        return getattr(changed, name)

    return line


def _refused_activation(name):
    """That the error names the activation."""

    def line(lib):
        try:
            config(lib, hidden_act=name)
        except ValueError as error:
            return next(part for part in str(error).split("'") if part == name)

    return line


def _default(name):
    return Item(f"config.{name}", lambda lib: getattr(config(lib), name))


def _given(name, value):
    return Item(f"config({name}={value!r})", lambda lib: getattr(config(lib, **{name: value}), name))


def _saved(name, value):
    return Item(f"config.json {name}={value!r}", lambda lib: _written(lib, **{name: value}))


def _loaded(name, value):
    return Item(f"from_pretrained({name}={value!r})", lambda lib: getattr(_read(lib, **{name: value}), name))


ITEMS = [
    *map(_default, (*FIELDS, *COMMON, "num_labels", "use_return_dict", "dtype", "torch_dtype", "name_or_path")),
    *map(_default, ("model_type", "transformers_version")),
    *(_given(name, value) for name, value in {**FIELDS, **COMMON, "num_labels": 5}.items()),
    *(
        _saved(name, value)
        for name, value in {**FIELDS, **COMMON, "num_labels": 5, "torchscript": True}.items()
        if name != "id2label"
    ),
    Item("config.json id2label", lambda lib: _written(lib, id2label={0: "cat", 1: "dog", 2: "cow"})["id2label"]),
    *(
        Item(f"config.{name} of release 4", lambda lib, name=name: getattr(config(lib), name), page=lambda lib, v=v: v)
        for name, v in OF_RELEASE_4.items()
    ),
    *(
        Item(f"config.hidden_act={name}", lambda lib, n=name: config(lib, hidden_act=n).hidden_act)
        for name in ACTIVATIONS
    ),
    *(
        Item(
            f"config.hidden_act={name}",
            lambda lib, n=name: config(lib, hidden_act=n).hidden_act,
            ours=_refused_activation(name),
            idiom="It has parameters of its own, which a checkpoint of ours does not hold; refused by name",
        )
        for name in ("prelu", "xielu")
    ),
    Item(
        "config.hidden_act as a function",
        lambda lib: config(lib, hidden_act=abs).hidden_act is abs,
        page=lambda lib: True,
    ),
    *(
        Item(f"config.output_stride={s}", lambda lib, s=s: config(lib, output_stride=s).output_stride)
        for s in (1, 5, 64)
    ),
    Item("config.image_size as a list", lambda lib: config(lib, image_size=[96, 128]).image_size),
    Item("config.image_size as a pair", lambda lib: config(lib, image_size=(96, 128)).image_size),
    Item("config.depth_multiplier as an int", lambda lib: config(lib, depth_multiplier=1).depth_multiplier),
    Item("config.depth_multiplier=0 is refused", refused(lambda lib: config(lib, depth_multiplier=0))),
    Item("config.depth_multiplier as a string is refused", refused(lambda lib: config(lib, depth_multiplier="1.0"))),
    Item("config.output_stride as a float is refused", refused(lambda lib: config(lib, output_stride=16.0))),
    Item("config positional is refused", refused(lambda lib: lib.MobileNetV2Config(16))),
    Item("config.num_labels=0", lambda lib: config(lib, num_labels=0).id2label),
    Item("config.num_labels names classes", lambda lib: config(lib, num_labels=3).id2label),
    Item("config.num_labels maps names", lambda lib: config(lib, num_labels=3).label2id),
    Item("config.num_labels from id2label", lambda lib: config(lib, id2label={0: "a", 1: "b", 2: "c"}).num_labels),
    Item("config.id2label with strings", lambda lib: config(lib, id2label={"0": "cat", "1": "dog"}).id2label),
    Item(
        "config.label2id with strings",
        lambda lib: {
            k: int(v) for k, v in config(lib, id2label={0: "a", 1: "b"}, label2id={"a": "0", "b": "1"}).label2id.items()
        },
    ),
    Item(
        "config.output_hidden_states=None",
        lambda lib: bool(config(lib, output_hidden_states=None).output_hidden_states),
    ),
    Item("config.return_dict=False by its former name", lambda lib: config(lib, return_dict=False).use_return_dict),
    Item("config(dtype='float16')", lambda lib: _dtype(config(lib, dtype="float16").dtype)),
    Item("config(torch_dtype='bfloat16')", lambda lib: _dtype(config(lib, torch_dtype="bfloat16").torch_dtype)),
    Item("config.torch_dtype is dtype", lambda lib: _dtype(config(lib, torch_dtype="bfloat16").dtype)),
    Item("config keeps keywords that it does not know", lambda lib: config(lib, my_note={"a": [1]}).my_note),
    Item("config.json keeps them too", lambda lib: _written(lib, my_note={"a": [1]})["my_note"]),
    Item("config has no other attributes", lambda lib: config(lib).hidden_size),
    Item(
        "config.num_labels=1 with single labels is refused",
        refused(lambda lib: config(lib, num_labels=1, problem_type="single_label_classification")),
    ),
    # what comes with every config
    Item("config == config", lambda lib: config(lib, output_stride=8) == config(lib, output_stride=8)),
    Item("config != config", lambda lib: config(lib, output_stride=8) == config(lib)),
    Item("config.to_dict", _full),
    Item("config.to_diff_dict", lambda lib: config(lib).to_diff_dict().keys() >= {*FIELDS, "model_type"}),
    Item("config.to_json_string", lambda lib: _json(lib)["output_stride"]),
    Item("config.to_json_string has no defaults of every config", lambda lib: "return_dict" in _json(lib)),
    Item("config.to_json_string(use_diff=False)", lambda lib: _json(lib, use_diff=False)["return_dict"]),
    Item("config.from_dict", lambda lib: of(lib).from_dict({"min_depth": 4}).min_depth),
    Item("config.from_dict(**overrides)", lambda lib: of(lib).from_dict({"min_depth": 4}, min_depth=2).min_depth),
    Item("config.from_dict(to_dict())", lambda lib: of(lib).from_dict(config(lib, min_depth=4).to_dict()).min_depth),
    Item("config.from_json_file", lambda lib: of(lib).from_json_file(folder() / "config.json").num_labels),
    Item("config.from_pretrained", lambda lib: _read(lib).depth_multiplier),
    Item(
        "config.from_pretrained of the file",
        lambda lib: of(lib).from_pretrained(str(folder() / "config.json")).depth_multiplier,
    ),
    Item("config.from_pretrained of a Path", lambda lib: of(lib).from_pretrained(folder()).depth_multiplier),
    Item("config.from_pretrained of nothing is refused", refused(lambda lib: of(lib).from_pretrained("/no/such"))),
    Item("config.from_pretrained: id2label", lambda lib: _read(lib).id2label),
    Item("config.from_pretrained: label2id", lambda lib: _read(lib).label2id),
    Item("config.from_pretrained: architectures", lambda lib: _read(lib).architectures),
    Item("config.from_pretrained: dtype", lambda lib: _dtype(_read(lib).dtype)),
    Item("config.from_pretrained: transformers_version", lambda lib: _read(lib).transformers_version),
    Item("config.from_pretrained: keys that it does not know", lambda lib: _read(lib).our_note),
    Item("tip: from_pretrained(tf_padding=False)", lambda lib: _read(lib, tf_padding=False).tf_padding),
    *(
        _loaded(name, value)
        for name, value in {**COMMON, "num_labels": 5, "output_stride": 16}.items()
        if name not in ("id2label", "label2id")
    ),
    Item("from_pretrained(num_labels=5): id2label", lambda lib: _read(lib, num_labels=5).id2label),
    Item(
        "from_pretrained(id2label=…)",
        lambda lib: _read(lib, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}).id2label,
    ),
    Item("from_pretrained ignores other keywords", lambda lib: hasattr(_read(lib, foo=1), "foo")),
    Item(
        "from_pretrained(return_unused_kwargs=True)",
        lambda lib: _read(lib, foo=1, min_depth=4, return_unused_kwargs=True)[1],
    ),
    Item("config.save_pretrained", lambda lib: _written(lib, depth_multiplier=0.5)["depth_multiplier"]),
    Item("config.save_pretrained: model_type", lambda lib: _written(lib)["model_type"]),
    *(
        Item(
            f"config.{name} = {value!r}",
            _assigned(name, value),
            ours=lambda lib, n=name, v=value: getattr(config(lib).replace(**{n: v}), n),
            idiom=FROZEN,
        )
        for name, value in {
            "num_labels": 3,
            "output_stride": 16,
            "tf_padding": False,
            "id2label": {0: "a"},
            "return_dict": False,
        }.items()
    ),
    Item(
        "config.update",
        lambda lib: config(lib).update({"min_depth": 4}) or 4,
        ours=lambda lib: config(lib).replace(min_depth=4).min_depth,
        idiom=FROZEN,
    ),
]
