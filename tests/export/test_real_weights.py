"""The real weights, once a format: outputs on a photo, and the labels that come of them."""

import pytest
from exporting import TOLERANCE
from PIL import Image

import flax_mnv2 as fm
from flax_mnv2.export import export
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor

NAMES = {
    "classifier": ("mobilenet_v2_1.0_224", 224),
    "deeplab": ("deeplabv3_mobilenet_v2_1.0_513", (257, 193)),
    "detector": ("tflite/mobile_object_localizer_v1_1_meta.tflite", 192),
}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_on_a_photo(shared, tmp_path, name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    folder, size = NAMES[name]
    model, variables = fm.from_pretrained(shared / "weights" / folder)
    steps = {"do_rescale": False, "do_normalize": False, "do_center_crop": False}
    sides = size if isinstance(size, tuple) else (size, size)
    photo = Image.open(shared / "images" / "pets.jpg")
    image = MobileNetV2ImageProcessor().preprocess(photo, size=sides, **steps).pixel_values[0]
    for to in ("onnx", "tflite"):
        path = tmp_path / f"model.{to}"
        compared = export(model, variables, path, size=size, image=image)
        assert max(compared.differences.values()) <= TOLERANCE
        assert path.stat().st_size < 15e6
