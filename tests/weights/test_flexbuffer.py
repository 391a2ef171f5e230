"""Options of TFLite's detection, as Google's object localizer has them."""

import pytest

from flax_mnv2 import CheckpointError
from flax_mnv2.weights.tensorflow.flexbuffer import read_map

OPTIONS = (
    b"w_scale\x00nms_iou_threshold\x00h_scale\x00num_classes\x00_support_output_type_float_in_quantized_op\x00"
    b"detections_per_class\x00max_detections\x00x_scale\x00use_regular_nms\x00max_classes_per_detection\x00y_scale\x00"
    b"_output_quantized\x00nms_score_threshold\x00\r'\xb1\x87\xc7Mu\xdc\x1c\xc4b\xe8l;\x00\x0e\x00\x00\x00\x01\x00\x00\x00"
    b"\r\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00d\x00\x00\x00\x00\x00\xa0@\x01\x00\x00\x00d\x00\x00\x00\x9a\x99\x19?"
    b"w\xcc+2\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\xa0@\x00\x00 A\x00\x00 A"
    b"jj\x06\x0e\x06\x06\x0e\x0e\x06j\x0e\x0e\x0eA&\x01"
)


def test_numbers_by_name():
    found = read_map(OPTIONS)
    assert len(found) == 13
    assert [found[f"{side}_scale"] for side in "yxhw"] == [10.0, 10.0, 5.0, 5.0]
    assert (found["num_classes"], found["max_detections"], found["use_regular_nms"]) == (1, 100, 0)
    assert found["nms_iou_threshold"] == pytest.approx(0.6, abs=1e-7)


def test_a_cut_or_changed_map_is_one_error_or_other_numbers():
    for end in range(len(OPTIONS)):
        with pytest.raises(CheckpointError, match="cut or damaged"):
            read_map(OPTIONS[:end])
    refused = 0
    for place in range(len(OPTIONS)):
        try:
            read_map(OPTIONS[:place] + bytes([OPTIONS[place] ^ 255]) + OPTIONS[place + 1 :])
        except CheckpointError:
            refused += 1
    assert refused > 100
