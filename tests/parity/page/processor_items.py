"""The page's part on ``MobileNetV2ImageProcessor``: every argument of the constructor and of ``preprocess``."""

import http.server
import pathlib
import tempfile
import threading
import types
import unittest.mock

import numpy as np
import processor_result_items
from PIL import Image
from processor_lib import FIRST, LABELS, PHOTO, PIXELS, SMALL, item, labels, page, pixels, refused, warned

STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
VALUES = ("size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std")
DEFAULTS = (*STEPS, "resample", "rescale_factor", "image_mean", "image_std", "do_reduce_labels")
SETTINGS = {
    "do_resize": False,
    "size": {"shortest_edge": 14},
    "resample": 3,
    "do_center_crop": False,
    "crop_size": {"height": 17, "width": 8},
    "do_rescale": False,
    "rescale_factor": 1 / 127.5,
    "do_normalize": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
OWN = "None leaves the processor's own; there it switches the step off or is an error. Write False"
LAST = "channels_last"


def _default(name):
    return item(f"processor.{name}", lambda lib: getattr(lib.MobileNetV2ImageProcessor(), name))


def _set(name, value):
    return item(f"processor.{name}={value}", lambda lib: pixels(lib, settings={name: value}))


def _of_a_call(name, value):
    return item(f"preprocess.{name}={value}", lambda lib: pixels(lib, **{name: value}))


def _own(name):
    return page(f"preprocess.{name}=None", pixels, lambda lib: pixels(lib, **{name: None}), OWN)


def _value_none(name):
    return page(
        f"processor.{name}=None",
        lambda lib: pixels(lib, settings=_page_default(name)),
        lambda lib: pixels(lib, settings={name: None}),
        "None stands for the default; there it is an error",
    )


def _page_default(name):
    return {
        "size": {"size": {"shortest_edge": 256}},
        "crop_size": {"crop_size": {"height": 224, "width": 224}},
    }.get(name, {})


def _changed(lib):
    processor = lib.MobileNetV2ImageProcessor(**SMALL)
    processor.do_resize = False
    return np.asarray(processor(PIXELS, **FIRST).pixel_values[0])


CONSTRUCTOR = [
    *map(_default, DEFAULTS),
    item("processor.size", lambda lib: dict(lib.MobileNetV2ImageProcessor().size)),
    item("processor.crop_size", lambda lib: dict(lib.MobileNetV2ImageProcessor().crop_size)),
    *(_set(name, value) for name, value in SETTINGS.items()),
    *(_set(name, None) for name in STEPS),
    *map(_value_none, VALUES),
    _set("size", 14),
    _set("size", [13, 17]),
    _set("size", {"height": 13, "width": 17}),
    _set("crop_size", 11),
    _set("crop_size", [7, 9]),
    _set("resample", Image.Resampling.LANCZOS),
    _set("image_mean", 0.25),
    _set("image_std", 0.25),
    _set("do_convert_rgb", True),
    item("processor.do_reduce_labels=None", lambda lib: labels(lib, settings={"do_reduce_labels": None})),
    item("processor.size['shortest_edge']", lambda lib: lib.MobileNetV2ImageProcessor(size=14).size["shortest_edge"]),
    item("processor.crop_size['height']", lambda lib: lib.MobileNetV2ImageProcessor(crop_size=14).crop_size["height"]),
    item("processor.size: other keys", lambda lib: lib.MobileNetV2ImageProcessor(size={"edge": 3})),
    item(
        "processor.size: longest_edge alone",
        lambda lib: lib.MobileNetV2ImageProcessor(size={"longest_edge": 14})(PIXELS),
    ),
    item(
        "processor.crop_size: a shortest edge",
        lambda lib: refused(lambda: pixels(lib, settings={"crop_size": {"shortest_edge": 3}})),
    ),
    page(
        "processor, by position",
        lambda lib: pixels(lib, settings=SETTINGS),
        lambda lib: (
            np.asarray(lib.MobileNetV2ImageProcessor(*SETTINGS.values())(PIXELS, **FIRST).pixel_values[0]),
            "uint8",
        ),
        "it takes names only",
    ),
    item(
        "processor, other keywords",
        lambda lib: lib.MobileNetV2ImageProcessor(note=3).note,
        lambda lib: lib.MobileNetV2ImageProcessor(extra={"note": 3}).extra["note"],
        "what is no setting stands in extra, so that a misspelt one is an error",
    ),
    item("processor.model_input_names", lambda lib: lib.MobileNetV2ImageProcessor.model_input_names),
    item(
        "processor.image_mean of one number",
        lambda lib: [lib.MobileNetV2ImageProcessor(image_mean=0.25).image_mean] * 3,
        lambda lib: lib.MobileNetV2ImageProcessor(image_mean=0.25).image_mean,
        "it is stored as three",
    ),
    item("processor, a setting changed", _changed),
]


def _turned(lib, *, opened):
    with tempfile.TemporaryDirectory() as folder:
        path, exif = pathlib.Path(folder, "turned.png"), Image.Exif()
        exif[0x0112] = 6
        PHOTO.save(path, exif=exif)
        if not opened:
            return pixels(lib, str(path))
        with Image.open(path) as image:
            return pixels(lib, image)


def _transparent(lib, convert):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "glass.png")
        image = PHOTO.copy()
        image.putalpha(Image.fromarray(LABELS))
        image.save(path)
        return pixels(lib, convert(str(path)))


def _served(lib):
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.dict("os.environ", no_proxy="127.0.0.1"):
        PHOTO.save(pathlib.Path(folder, "photo.png"))

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=folder)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                return pixels(lib, f"http://127.0.0.1:{server.server_port}/photo.png")
            finally:
                server.shutdown()
                thread.join()


def _torch(array):
    import torch

    return torch.from_numpy(array.copy())


IMAGES = [
    item("preprocess.images: PIL", lambda lib: pixels(lib, PHOTO)),
    item("preprocess.images: NumPy", lambda lib: pixels(lib, PIXELS)),
    item("preprocess.images: channels first", lambda lib: pixels(lib, PIXELS.transpose(2, 0, 1))),
    item("preprocess.images: torch", lambda lib: pixels(lib, _torch(PIXELS.transpose(2, 0, 1)))),
    item("preprocess.images: a list", lambda lib: _shapes(lib, [PHOTO, PIXELS, PIXELS[:15]])),
    item("preprocess.images: nested", lambda lib: _shapes(lib, [[PHOTO, PHOTO], [PHOTO]])),
    item("preprocess.images: a batch", lambda lib: _shapes(lib, np.stack([PIXELS] * 3))),
    item("preprocess.images: a path", lambda lib: _turned(lib, opened=False)),
    item("preprocess.images: a turned PIL image", lambda lib: _turned(lib, opened=True)),
    item(
        "preprocess.images: a transparent file",
        lambda lib: _transparent(lib, str),
        lambda lib: _transparent(lib, lambda path: Image.open(path).convert("RGB")),
        "transparency is laid on white, as under do_convert_rgb; convert('RGB') drops it",
    ),
    item("preprocess.images: an address", _served),
    item("preprocess.images: by name", lambda lib: _by_name(lib, images=PHOTO)),
    item("preprocess.images: nothing", lambda lib: refused(lambda: pixels(lib, None))),
    item("preprocess.images: a number", lambda lib: refused(lambda: pixels(lib, 3))),
    item("preprocess.images: fractions", lambda lib: pixels(lib, PIXELS / 255, do_rescale=False)),
    item("preprocess.images: smaller than the crop", lambda lib: pixels(lib, crop_size={"height": 40, "width": 40})),
    item("preprocess.images: bytes stay", lambda lib: pixels(lib, do_rescale=False, do_normalize=False)),
    page(
        "preprocess.images: fractions to rescale",
        [UserWarning],
        lambda lib: warned(lambda: pixels(lib, PIXELS / 255)),
        "there is no warning",
    ),
    *(
        item(
            f"preprocess.do_convert_rgb=True of {mode}",
            lambda lib, mode=mode: pixels(lib, PHOTO.convert(mode), do_convert_rgb=True),
        )
        for mode in ("L", "RGBA", "P", "CMYK")
    ),
    item(
        "preprocess.images: grey, as RGB",
        lambda lib: pixels(lib, PHOTO.convert("L"), do_convert_rgb=True),
        lambda lib: pixels(lib, PHOTO.convert("L")),
        "every image becomes RGB, without do_convert_rgb=True",
    ),
]


def _shapes(lib, images):
    return [np.asarray(values).shape for values in lib.MobileNetV2ImageProcessor(**SMALL)(images, **FIRST).pixel_values]


def _by_name(lib, **given):
    return np.asarray(lib.MobileNetV2ImageProcessor(**SMALL)(**given, **FIRST).pixel_values[0])


def _kind(lib, tensors):
    values = lib.MobileNetV2ImageProcessor(**SMALL)([PHOTO], return_tensors=tensors, **FIRST).pixel_values
    return type(values).__module__.partition(".")[0], type(values).__name__, tuple(np.shape(values))


def _tensor_type(value):
    from transformers.utils import TensorType

    return TensorType(value)


def _channels(value):
    from transformers.image_utils import ChannelDimension

    return ChannelDimension(value)


CALL = [
    *(_of_a_call(name, value) for name, value in SETTINGS.items()),
    _of_a_call("size", 14),
    _of_a_call("crop_size", [7, 9]),
    *map(_own, (*STEPS, *VALUES)),
    item("preprocess, as a method", lambda lib: np.asarray(_method(lib)(PIXELS, **FIRST).pixel_values[0])),
    item("preprocess, other keywords", lambda lib: refused(lambda: pixels(lib, do_flip=True))),
    item("preprocess, a third by position", lambda lib: refused(lambda: _method(lib)(PIXELS, None, False))),
    item("preprocess.return_tensors=None", lambda lib: type(_method(lib)([PHOTO] * 2).pixel_values).__name__),
    item("preprocess.return_tensors='np'", lambda lib: _kind(lib, "np")),
    item("preprocess.return_tensors='pt'", lambda lib: _kind(lib, "pt")),
    page(
        "preprocess.return_tensors='jax'",
        (1, 3, 12, 10),
        lambda lib: _kind(lib, "jax")[2],
        "it has no JAX",
    ),
    item("preprocess.return_tensors: TensorType", lambda lib: _kind(lib, _tensor_type("np"))),
    item("preprocess.return_tensors: another", lambda lib: refused(lambda: _kind(lib, "mx"))),
    item(
        "preprocess.return_tensors: several shapes",
        lambda lib: lib.MobileNetV2ImageProcessor(do_center_crop=False)([PIXELS, PIXELS[:10]], return_tensors="np"),
    ),
    item("preprocess.data_format='channels_first'", lambda lib: pixels(lib, data_format="channels_first")),
    item(
        "preprocess.data_format: ChannelDimension",
        lambda lib: pixels(lib, data_format=_channels("channels_first")),
    ),
    item(
        "preprocess.data_format left out",
        lambda lib: np.asarray(_method(lib)(PIXELS).pixel_values[0]).transpose(1, 2, 0),
        lambda lib: _method(lib)(PIXELS).pixel_values[0],
        "channels last, which this library's models take",
    ),
    page(
        "preprocess.data_format='channels_last'",
        lambda lib: pixels(lib)[0].transpose(1, 2, 0),
        lambda lib: pixels(lib, data_format=LAST)[0],
        "it has the channels first in any case",
    ),
    page(
        "preprocess.data_format=None",
        lambda lib: [pixels(lib)[0].transpose(1, 2, 0), pixels(lib)[0]],
        lambda lib: [pixels(lib, image, data_format=None)[0] for image in (PIXELS, PIXELS.transpose(2, 0, 1))],
        "it has the channels first in any case",
    ),
    item("preprocess.input_data_format='channels_last'", lambda lib: pixels(lib, PIXELS[:3], input_data_format=LAST)),
    item(
        "preprocess.input_data_format='channels_first'",
        lambda lib: pixels(lib, PIXELS[:, :3].transpose(2, 0, 1), input_data_format="channels_first"),
    ),
    item("preprocess.input_data_format: either", lambda lib: pixels(lib, PIXELS[:3])),
    page(
        "preprocess.input_data_format='none'",
        lambda lib: pixels(lib, Image.fromarray(PIXELS[..., 0]), do_convert_rgb=True),
        lambda lib: pixels(lib, PIXELS[..., 0], input_data_format="none"),
        "it takes no arrays of two axes",
    ),
]


def _method(lib):
    return lib.MobileNetV2ImageProcessor(**SMALL).preprocess


MAPS = [
    item("preprocess.segmentation_maps: NumPy", labels),
    item("preprocess.segmentation_maps: PIL", lambda lib: labels(lib, Image.fromarray(LABELS))),
    item("preprocess.segmentation_maps: torch", lambda lib: labels(lib, _torch(LABELS))),
    item("preprocess.segmentation_maps: a list", lambda lib: labels(lib, [LABELS])),
    item("preprocess.segmentation_maps left out", lambda lib: sorted(_method(lib)(PIXELS))),
    item("preprocess.segmentation_maps by name", lambda lib: sorted(_method(lib)(PIXELS, segmentation_maps=LABELS))),
    item("preprocess.do_reduce_labels=True", lambda lib: labels(lib, do_reduce_labels=True)),
    item("processor.do_reduce_labels=True", lambda lib: labels(lib, settings={"do_reduce_labels": True})),
    item("preprocess.segmentation_maps: steps", lambda lib: labels(lib, do_resize=False, crop_size=[33, 7])),
    item("preprocess.segmentation_maps: tensors", lambda lib: labels(lib, return_tensors="np")),
]


def _extractor(lib):
    return lib.MobileNetV2FeatureExtractor(**SMALL)


EXTRACTOR = [
    page("extractor warns", [FutureWarning], lambda lib: warned(lambda: _extractor(lib)), "it has no such class"),
    page(
        "extractor is a processor",
        True,
        lambda lib: isinstance(_extractor(lib), lib.MobileNetV2ImageProcessor),
        "it has no such class",
    ),
    item("extractor.preprocess", lambda lib: np.asarray(_extractor(lib).preprocess(PIXELS, **FIRST).pixel_values[0])),
    item("extractor()", lambda lib: np.asarray(_extractor(lib)(PIXELS, **FIRST).pixel_values[0])),
    item("extractor.size", lambda lib: dict(_extractor(lib).size)),
    item(
        "extractor.post_process_semantic_segmentation",
        lambda lib: _extractor(lib).post_process_semantic_segmentation(types.SimpleNamespace(logits=_torch(LOGITS))),
        lambda lib: _extractor(lib).post_process_semantic_segmentation(
            types.SimpleNamespace(logits=LOGITS.transpose(0, 2, 3, 1))
        ),
        "logits have their classes last",
    ),
]
LOGITS = np.random.default_rng(3).normal(size=(1, 4, 5, 6)).astype(np.float32)

ITEMS = [*CONSTRUCTOR, *IMAGES, *CALL, *MAPS, *EXTRACTOR, *processor_result_items.ITEMS]
