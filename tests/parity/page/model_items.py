"""The page's part on the three models: their arguments, and what they return."""

import numpy as np
from items import Item, refused
from model_runs import (
    CLASSIFIER,
    HEADS,
    IMAGES,
    LABELS,
    MODEL,
    SEGMENTER,
    apply,
    config,
    each,
    is_ours,
    made,
    run,
)

REGRESSION = {"num_labels": 1}
MULTI_LABEL = {"problem_type": "multi_label_classification"}
MULTI_LABELS = np.random.default_rng(2).integers(0, 2, (2, 5)).astype(np.float32)


def _hidden(lib, name, **options):
    return run(lib, name, output_hidden_states=True, **options).hidden_states


def loss(lib, name, **options):
    options = {"labels": LABELS[name], **options}
    return run(lib, name, **options).loss


ITEMS = [
    *each("of a config", lambda lib, name: getattr(lib, name)(config(lib)).config.depth_multiplier),
    *each("config", lambda lib, name: made(lib, name)[0].config.num_labels),
    *each("main_input_name", lambda lib, name: made(lib, name)[0].main_input_name),
    *each("base_model_prefix", lambda lib, name: made(lib, name)[0].base_model_prefix),
    *each("config_class", lambda lib, name: made(lib, name)[0].config_class is lib.MobileNetV2Config),
    *each("is a PreTrainedModel", lambda lib, name: isinstance(made(lib, name)[0], lib.MobileNetV2PreTrainedModel)),
    *each("pixel_values", lambda lib, name: run(lib, name)[0]),
    *each("pixel_values by name", lambda lib, name: run(lib, name, pixel_values=IMAGES)[0]),
    *each("pixel_values left out", lambda lib, name: run(lib, name, output_hidden_states=True, pixel_values=None)),
    *each(
        "pixel_values of other channels",
        lambda lib, name: refused(lambda lib: run(lib, name, IMAGES[..., :2]))(lib),
    ),
    *each("class of the output", lambda lib, name: type(run(lib, name)).__name__),
    *each("keys", lambda lib, name: list(run(lib, name).keys())),
    *each("len", lambda lib, name: len(run(lib, name))),
    *each("to_tuple", lambda lib, name: run(lib, name).to_tuple()),
    *each("output[0]", lambda lib, name: run(lib, name)[0]),
    *each("output[-1]", lambda lib, name: run(lib, name)[-1]),
    *each("output[:1]", lambda lib, name: run(lib, name)[:1]),
    *each("output['hidden_states'] that is not there", lambda lib, name: run(lib, name)["hidden_states"]),
    *each("'hidden_states' in output", lambda lib, name: "hidden_states" in run(lib, name)),
    *each("hidden_states is None", lambda lib, name: run(lib, name).hidden_states is None),
    *each("output.get", lambda lib, name: run(lib, name).get("hidden_states")),
    *each("output_hidden_states=True", _hidden),
    *each("output_hidden_states=False", lambda lib, name: run(lib, name, output_hidden_states=False).hidden_states),
    *each(
        "output_hidden_states of the config",
        lambda lib, name: run(lib, name, fields={"output_hidden_states": True}).hidden_states,
    ),
    *each(
        "output_hidden_states=False before the config's",
        lambda lib, name: (
            run(lib, name, output_hidden_states=False, fields={"output_hidden_states": True}).hidden_states
        ),
    ),
    *each("return_dict=True", lambda lib, name: list(run(lib, name, return_dict=True).keys())),
    *each("return_dict=False", lambda lib, name: run(lib, name, return_dict=False)),
    *each("return_dict=False is a tuple", lambda lib, name: type(run(lib, name, return_dict=False)) is tuple),
    *each("return_dict=None", lambda lib, name: list(run(lib, name, return_dict=None).keys())),
    *each("return_dict of the config", lambda lib, name: len(run(lib, name, fields={"return_dict": False}))),
    *each(
        "return_dict=True before the config's",
        lambda lib, name: list(run(lib, name, return_dict=True, fields={"return_dict": False}).keys()),
    ),
    *each(
        "return_dict=False with hidden states",
        lambda lib, name: len(run(lib, name, return_dict=False, output_hidden_states=True)),
    ),
    Item("Model: last_hidden_state", lambda lib: run(lib, MODEL).last_hidden_state),
    Item("Model: pooler_output", lambda lib: run(lib, MODEL).pooler_output),
    Item("Model: output['pooler_output']", lambda lib: run(lib, MODEL)["pooler_output"]),
    Item("Model: add_pooling_layer=False", lambda lib: _without_pooling(lib, False)),
    Item("Model: add_pooling_layer=False by name", lambda lib: _without_pooling(lib, add_pooling_layer=False)),
    Item("Model: output_hidden_states second", lambda lib: run(lib, MODEL, IMAGES, True).hidden_states),
    Item("Model: return_dict third", lambda lib: run(lib, MODEL, IMAGES, None, False)),
    Item("Model: no attentions", lambda lib: run(lib, MODEL).attentions),
    Item("Model: no logits", lambda lib: run(lib, MODEL).logits),
    *each("logits", lambda lib, name: run(lib, name).logits, HEADS),
    *each("output['logits']", lambda lib, name: run(lib, name)["logits"], HEADS),
    *each("loss is None", lambda lib, name: run(lib, name).loss is None, HEADS),
    *each("labels", loss, HEADS),
    *each("labels: logits", lambda lib, name: run(lib, name, labels=LABELS[name]).logits, HEADS),
    *each("labels: keys", lambda lib, name: list(run(lib, name, labels=LABELS[name]).keys()), HEADS),
    *each("labels: output[0]", lambda lib, name: run(lib, name, labels=LABELS[name])[0], HEADS),
    *each("labels, return_dict=False", lambda lib, n: run(lib, n, labels=LABELS[n], return_dict=False), HEADS),
    *each("num_labels", lambda lib, name: run(lib, name, fields={"num_labels": 3}).logits, HEADS),
    Item(
        "ForImageClassification: output_hidden_states second",
        lambda lib: run(lib, CLASSIFIER, IMAGES, True).hidden_states,
    ),
    Item(
        "ForImageClassification: labels third", lambda lib: run(lib, CLASSIFIER, IMAGES, None, LABELS[CLASSIFIER]).loss
    ),
    Item("ForImageClassification: return_dict fourth", lambda lib: run(lib, CLASSIFIER, IMAGES, None, None, False)),
    Item("ForImageClassification: no attentions", lambda lib: run(lib, CLASSIFIER).attentions),
    Item("ForImageClassification: num_labels=0", lambda lib: run(lib, CLASSIFIER, fields={"num_labels": 0}).logits),
    Item(
        "ForImageClassification: mean squared error where num_labels=1",
        lambda lib: loss(lib, CLASSIFIER, labels=np.array([0.5, -2.0], np.float32), fields=REGRESSION),
    ),
    Item(
        "ForImageClassification: regression",
        lambda lib: loss(lib, CLASSIFIER, labels=MULTI_LABELS, fields={"problem_type": "regression"}),
    ),
    Item(
        "ForImageClassification: multi-label",
        lambda lib: loss(lib, CLASSIFIER, labels=MULTI_LABELS, fields=MULTI_LABEL),
    ),
    Item(
        "ForImageClassification: single label",
        lambda lib: loss(lib, CLASSIFIER, fields={"problem_type": "single_label_classification"}),
    ),
    Item("ForSemanticSegmentation: labels second", lambda lib: run(lib, SEGMENTER, IMAGES, LABELS[SEGMENTER]).loss),
    Item(
        "ForSemanticSegmentation: output_hidden_states third",
        lambda lib: run(lib, SEGMENTER, IMAGES, None, True).hidden_states,
    ),
    Item("ForSemanticSegmentation: return_dict fourth", lambda lib: run(lib, SEGMENTER, IMAGES, None, None, False)),
    Item("ForSemanticSegmentation: attentions", lambda lib: run(lib, SEGMENTER).attentions),
    Item("ForSemanticSegmentation: no attentions among the keys", lambda lib: "attentions" in run(lib, SEGMENTER)),
    Item(
        "ForSemanticSegmentation: semantic_loss_ignore_index",
        lambda lib: loss(
            lib, SEGMENTER, labels=np.minimum(LABELS[SEGMENTER], 4), fields={"semantic_loss_ignore_index": 0}
        ),
    ),
    Item(
        "ForSemanticSegmentation: labels of another size",
        lambda lib: loss(lib, SEGMENTER, labels=np.ascontiguousarray(LABELS[SEGMENTER][:, ::4, ::4])),
    ),
    Item(
        "ForSemanticSegmentation: labels where num_labels=1",
        lambda lib: loss(lib, SEGMENTER, labels=0 * LABELS[SEGMENTER], fields=REGRESSION),
    ),
]


def _without_pooling(lib, *args, **kwargs):
    model = getattr(lib, MODEL)(config(lib), *args, **kwargs)
    if is_ours(lib):
        return apply(lib, model, made(lib, MODEL)[1], IMAGES).pooler_output
    return apply(lib, model.eval(), None, IMAGES).pooler_output
