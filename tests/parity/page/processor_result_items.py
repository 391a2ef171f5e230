"""The page's part on what the image processor gives, on its files, and on label maps from logits."""

import json
import pathlib
import tempfile

import numpy as np
from processor_lib import FIRST, LABELS, PHOTO, PIXELS, SMALL, item, page, pixels, refused, segmented

PUBLISHED = {  # as the first release on the hub had it
    "crop_size": 513,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "MobileNetV2FeatureExtractor",
    "resample": 2,
    "size": 545,
}


def _features(lib, tensors="pt"):
    return lib.MobileNetV2ImageProcessor(**SMALL)(PIXELS, LABELS.copy(), return_tensors=tensors, **FIRST)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _to(lib, *args, **kwargs):
    features = _features(lib)
    moved = features.to(*args, **kwargs)
    return moved is features, {name: _name(value.dtype) for name, value in moved.items()}


def _torch():
    import torch

    return torch


def _set(lib):
    features = _features(lib)
    features["more"] = 3
    return features.more


FEATURES = [
    item("features.keys", lambda lib: list(_features(lib).keys())),
    item("features['pixel_values']", lambda lib: np.asarray(_features(lib)["pixel_values"])),
    item("features.pixel_values", lambda lib: np.asarray(_features(lib).pixel_values)),
    item("features.labels", lambda lib: np.asarray(_features(lib).labels)),
    item("features.data", lambda lib: {name: np.asarray(value) for name, value in _features(lib).data.items()}),
    item("features.items", lambda lib: [name for name, _ in _features(lib).items()]),
    item("features, in", lambda lib: ["labels" in _features(lib), "x" in _features(lib)]),
    item("features.get", lambda lib: _features(lib).get("x", 3)),
    item("features, length", lambda lib: len(_features(lib))),
    item("features, unpacked", lambda lib: sorted(dict(**_features(lib)))),
    item("features[0]", lambda lib: _features(lib)[0]),
    item("features['x']", lambda lib: _features(lib)["x"]),
    item("features.x", lambda lib: _features(lib).x),
    item("features, the class", lambda lib: type(_features(lib)).__name__),
    item("features, set", _set),
    item("features.to(device)", lambda lib: _to(lib, "cpu")),
    item("features.to(device=)", lambda lib: _to(lib, device="cpu")),
    item("features.to(dtype)", lambda lib: _to(lib, _torch().float16)),
    item("features.to(device, dtype)", lambda lib: _to(lib, "cpu", _torch().bfloat16)),
    item("features.to(dtype=)", lambda lib: _to(lib, dtype=_torch().float64)),
    item("features(data)", lambda lib: dict(type(_features(lib))({"a": [1, 2]}))),
    item(
        "features(data, tensor_type)",
        lambda lib: type(_features(lib))({"a": [np.zeros(3)] * 2}, tensor_type="np").a.shape,
    ),
    item(
        "features.convert_to_tensors",
        lambda lib: type(_features(lib))({"a": [np.zeros(3)] * 2}).convert_to_tensors("np")["a"].shape,
    ),
]


def _folder(lib, then, **values):
    """What ``then`` makes of a folder with a processor's file, written by hand."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({**SMALL, "image_processor_type": "MobileNetV2ImageProcessor", **values})
        pathlib.Path(folder, "preprocessor_config.json").write_text(text)
        return then(lib.MobileNetV2ImageProcessor, folder)


def _loaded(lib, *, file="", override=None, **values):
    def then(cls, folder):
        processor = cls.from_pretrained(str(pathlib.Path(folder, file)), **override or {})
        return np.asarray(processor(PHOTO, **FIRST).pixel_values[0]), dict(processor.size)

    return _folder(lib, then, **values)


def _saved(lib, write, **settings):
    with tempfile.TemporaryDirectory() as folder:
        result = write(lib.MobileNetV2ImageProcessor(**SMALL | settings), pathlib.Path(folder))
        texts = {path.name: json.loads(path.read_text()) for path in pathlib.Path(folder).iterdir()}
    return [pathlib.Path(path).name for path in result or []], dict(sorted(texts.items()))


def _made(lib, *args, **kwargs):
    processor = lib.MobileNetV2ImageProcessor.from_dict(*args, **kwargs)
    return dict(processor.size), np.asarray(processor(PHOTO, **FIRST).pixel_values[0])


def _json_file(cls, folder):
    return cls.from_json_file(pathlib.Path(folder, "preprocessor_config.json")).to_json_string()


STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
FILES = [
    item("from_pretrained(folder)", _loaded),
    item("from_pretrained(file)", lambda lib: _loaded(lib, file="preprocessor_config.json")),
    item("from_pretrained(…, size=14)", lambda lib: _loaded(lib, override={"size": 14})),
    item("from_pretrained(…, do_resize=None)", lambda lib: _loaded(lib, override={"do_resize": None})),
    item("from_pretrained(…, revision=)", lambda lib: _loaded(lib, override={"revision": "main"})),
    item("from_pretrained(…, cache_dir=)", lambda lib: _loaded(lib, override={"cache_dir": "/nowhere"})),
    item(
        "from_pretrained(…, local_files_only=True)",
        lambda lib: _loaded(lib, override={"local_files_only": True}),
        _loaded,
        "a folder needs no option; for a hub id the environment variable HF_HUB_OFFLINE=1",
    ),
    item(
        "from_pretrained(…, other keywords)",
        lambda lib: _loaded(lib, override={"do_resise": False}),
        lambda lib: refused(lambda: _loaded(lib, override={"do_resise": False})) and _loaded(lib),
        "a misspelt setting is an error; leave it out",
    ),
    item("from_pretrained(nothing there)", lambda lib: refused(lambda: _loaded(lib, file="absent"))),
    *(item(f"file: {name} null", lambda lib, name=name: _loaded(lib, **{name: None})) for name in STEPS),
    item("file: more keys", lambda lib: _loaded(lib, processor_class="AutoProcessor", note=[1])),
    item("file: as first published", lambda lib: _folder(lib, _published)),
    item(
        "AutoImageProcessor.from_pretrained",
        lambda lib: _folder(lib, lambda cls, folder: _auto(lib.AutoImageProcessor.from_pretrained(folder))),
        lambda lib: _folder(lib, lambda cls, folder: _auto(lib.load_processor(folder))),
        "load_processor is its name here",
    ),
    item("save_pretrained", lambda lib: _saved(lib, lambda one, folder: one.save_pretrained(folder))),
    item("save_pretrained(new folder)", lambda lib: _saved(lib, _below)),
    item("save_pretrained, null", lambda lib: _saved(lib, _below, do_resize=None)),
    item("to_json_file", lambda lib: _saved(lib, lambda one, folder: one.to_json_file(folder / "mine.json"))),
    item("from_json_file", lambda lib: _folder(lib, _json_file)),
    item("to_json_string", lambda lib: lib.MobileNetV2ImageProcessor(**SMALL).to_json_string()),
    item("to_json_string, do_convert_rgb", lambda lib: _converting(lib).to_json_string()),
    item("to_dict", lambda lib: dict(sorted(lib.MobileNetV2ImageProcessor(**SMALL).to_dict().items()))),
    item("from_dict", lambda lib: _made(lib, {**SMALL, "do_resize": None})),
    item("from_dict(…, size=42)", lambda lib: _made(lib, SMALL, size=42)),
    item("from_dict(to_dict)", lambda lib: _made(lib, lib.MobileNetV2ImageProcessor(size=9).to_dict())),
    item("printed", lambda lib: repr(lib.MobileNetV2ImageProcessor()).partition(" ")[2]),
]


def _published(cls, folder):
    pathlib.Path(folder, "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    processor = cls.from_pretrained(folder)
    return dict(processor.size), dict(processor.crop_size), processor.resample, list(processor.image_mean)


def _below(processor, folder):
    (path,) = processor.save_pretrained(folder / "new" / "folder")
    text = pathlib.Path(path).read_text()
    for part in (pathlib.Path(path), folder / "new" / "folder", folder / "new"):
        part.rmdir() if part.is_dir() else part.unlink()
    return [text]


def _auto(processor):
    return dict(processor.size), dict(processor.crop_size)


def _converting(lib):
    return lib.MobileNetV2ImageProcessor(do_convert_rgb=True)


def _post(lib, *args, **kwargs):
    return lib.MobileNetV2ImageProcessor().post_process_semantic_segmentation(*args, **kwargs)


def _segment(lib, *args, **kwargs):
    return [(np.asarray(labels), _name(labels.dtype)) for labels in _post(lib, segmented(lib), *args, **kwargs)]


def _scores(lib, sizes):
    return [
        (list(one.keys()), np.asarray(one.segmentation), np.asarray(one["segmentation_scores"]))
        for one in _post(lib, segmented(lib), target_sizes=sizes, return_segmentation_scores=True)
    ]


def _last(scores):
    return [(keys, labels, values.transpose(1, 2, 0)) for keys, labels, values in scores]


SIZES = [(9, 8), (31, 7)]
CLASSES_LAST = "scores have their classes last, as logits have"
LABEL_MAPS = [
    item("post_process", _segment),
    item("post_process.target_sizes", lambda lib: _segment(lib, SIZES)),
    item("post_process.target_sizes by name", lambda lib: _segment(lib, target_sizes=SIZES)),
    item("post_process.target_sizes: tensor", lambda lib: _segment(lib, _torch().tensor(SIZES))),
    item("post_process.target_sizes: too few", lambda lib: _segment(lib, SIZES[:1])),
    item("post_process.return_segmentation_scores=False", lambda lib: _segment(lib, None, False)),
    item(
        "post_process.return_segmentation_scores=True",
        lambda lib: _last(_scores(lib, SIZES)),
        lambda lib: _scores(lib, SIZES),
        CLASSES_LAST,
    ),
    item(
        "post_process.return_segmentation_scores, own size",
        lambda lib: _last(_scores(lib, None)),
        lambda lib: _scores(lib, None),
        CLASSES_LAST,
    ),
]
PER_FILE = [
    page(
        f"file: {name} null",
        lambda lib, value=value: pixels(lib, settings=value),
        lambda lib, name=name: (*_loaded(lib, **{name: None})[0:1], "float32"),
        "null stands for the default; there it is an error",
    )
    for name, value in {
        "size": {"size": {"shortest_edge": 256}},
        "crop_size": {"crop_size": {"height": 224, "width": 224}},
        "image_mean": {},
        "image_std": {},
        "resample": {},
        "rescale_factor": {},
    }.items()
]

ITEMS = [*FEATURES, *FILES, *PER_FILE, *LABEL_MAPS]
