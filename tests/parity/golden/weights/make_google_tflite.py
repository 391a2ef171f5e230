"""Writes google_tflite.npz beside it: what LiteRT makes of Google's own TFLite files and of photos.

    pip install ai-edge-litert
    python tests/parity/golden/weights/make_google_tflite.py FOLDER      # with weights/tflite/ and images/

By file: the checksum of every constant as LiteRT's scales and zero points make it real, with the number of its tensor;
of classifiers the first class of each photo, of the DeepLab label maps, of the localizer the best boxes of one photo.
"""

import pathlib
import sys
import zlib

import google_inputs as given
import numpy as np
from ai_edge_litert.interpreter import Interpreter


def checksums(path: pathlib.Path) -> np.ndarray:
    """Rows of (tensor, CRC-32 of (q - z)·s in float64, rounded once), of all that is quantised and constant."""
    interpreter = Interpreter(str(path))  # in which constants alone have values, before anything is allocated
    found = []
    for detail in interpreter.get_tensor_details():
        parameters, index = detail["quantization_parameters"], detail["index"]
        try:
            values = interpreter.get_tensor(index)
        except ValueError:
            continue
        scale, zero = parameters["scales"].astype(np.float64), parameters["zero_points"].astype(np.int64)
        if scale.size:
            channels = [-1 if axis == parameters["quantized_dimension"] else 1 for axis in range(values.ndim)]
            shape = channels if scale.size > 1 else [1] * values.ndim
            real = (values.astype(np.int64) - zero.reshape(shape)) * scale.reshape(shape)
            found.append((index, zlib.crc32(np.ascontiguousarray(real.astype(np.float32)))))
    return np.array(found, np.int64)


def find_boxes(path: pathlib.Path, photo: pathlib.Path) -> np.ndarray:
    """Returns the five best boxes of a detector, rows of score, y, x, y, x."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    [place] = interpreter.get_input_details()
    interpreter.set_tensor(place["index"], given.pixels(photo, place["shape"][1])[None])
    interpreter.invoke()
    boxes, _, scores, _ = (interpreter.get_tensor(output["index"])[0] for output in interpreter.get_output_details())
    return np.concatenate([scores[:, None], boxes], axis=1)[:5]


def run(path: pathlib.Path, photos: list[pathlib.Path]) -> list[np.ndarray]:
    """Returns the output for each photo."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    [place], [out, *_] = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for photo in photos:
        interpreter.set_tensor(place["index"], given.pixels(photo, place["shape"][1])[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(out["index"])[0])
    return results


if __name__ == "__main__":
    shared = pathlib.Path(sys.argv[1])
    files = {name: shared / "weights" / "tflite" / f"{name}.tflite" for name in (*given.CLASSIFIERS, given.DEEPLAB)}
    results = {f"checksums/{name}": checksums(path) for name, path in files.items()}
    localizer = shared / "weights" / "tflite" / f"{given.LOCALIZER}.tflite"
    results[f"checksums/{given.LOCALIZER}"] = checksums(localizer)
    results[given.LOCALIZER] = find_boxes(localizer, shared / "images" / given.DETECTED)
    for name in given.CLASSIFIERS:
        results[name] = np.array([output.argmax() for output in run(files[name], given.photos(shared / "images"))])
    maps = run(files[given.DEEPLAB], [shared / "images" / name for name in given.SEGMENTED])
    results[given.DEEPLAB] = np.stack(maps).astype(np.uint8)
    np.savez_compressed(pathlib.Path(__file__).with_name("google_tflite.npz"), **results)
    print(f"{len(results)} arrays by LiteRT")
