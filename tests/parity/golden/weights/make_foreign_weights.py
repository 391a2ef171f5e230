"""Writes foreign_weights.tar.xz and foreign_outputs.npz beside it: files as TensorFlow and Keras write them.

    pip install "tensorflow-cpu>=2.20,<3"        # which brings Keras
    python tests/parity/golden/weights/make_foreign_weights.py

The networks are written here in TensorFlow's operations, as TF-slim and TF DeepLab describe them; Keras' is its own.
"""

import os
import pathlib
import shutil
import tarfile
import tempfile

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # before TensorFlow is imported

import foreign_inputs as given
import keras
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
EMA = "ExponentialMovingAverage"


class Network:
    """Builds a graph and its variables, named as TF-slim and TF DeepLab name them."""

    def __init__(self, seed: int, *, symmetric: bool = False, widths: dict = given.WIDTHS, parent: str = ""):
        self.rng, self.variables = np.random.default_rng(seed), {}
        self.symmetric = symmetric  # zeros on both sides at stride 2, as in networks that came from PyTorch
        self.widths, self.root, self.expansions = widths, f"{parent}MobilenetV2", {}
        self.depthwises = {}

    def variable(self, name: str, shape: tuple[int, ...], kind: str) -> tf.Tensor:
        if name not in self.variables:
            value = given.levels(self.rng, shape, kind=kind)
            self.variables[name] = v1.get_variable(name, initializer=value, use_resource=False)
        return self.variables[name]

    def normalised(self, x: tf.Tensor, scope: str, epsilon: float) -> tf.Tensor:
        width = x.shape[-1:]
        kinds = {"gamma": "gamma", "beta": "offset", "moving_mean": "offset", "moving_variance": "variance"}
        gamma, beta, mean, variance = (
            self.variable(f"{scope}/BatchNorm/{name}", width, kind) for name, kind in kinds.items()
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)

    def padded(self, x, kernel, stride):
        if not self.symmetric or stride == 1:
            return x, kernel, stride, "SAME"
        return tf.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), kernel, stride, "VALID"

    def conv(self, x, scope, width, *, side=1, stride=1, act=tf.nn.relu6, epsilon=1e-3):
        kernel = self.variable(f"{scope}/weights", (side, side, x.shape[-1], width), "kernel")
        y = self.normalised(tf.nn.conv2d(*self.padded(x, kernel, stride)), scope, epsilon)
        return y if act is None else act(y)

    def depthwise(self, x, scope, *, stride, rate):
        kernel = self.variable(f"{scope}/depthwise_weights", (3, 3, x.shape[-1], 1), "kernel")
        x, kernel, _, padding = self.padded(x, kernel, stride)
        y = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding, dilations=(rate, rate))
        return tf.nn.relu6(self.normalised(y, scope, 1e-3))

    def backbone(self, x, output_stride=32):
        root, (first, out) = self.root, self.widths["stem"]
        x = self.conv(x, f"{root}/Conv", first, side=3, stride=2)
        y = self.depthwise(x, f"{root}/expanded_conv/depthwise", stride=1, rate=1)
        y = self.conv(y, f"{root}/expanded_conv/project", out, act=None)
        x = x + y if first == out else y  # as slim's blocks do wherever widths agree
        strides = [step if index == 0 else 1 for _, repeats, step in given.BLOCKS for index in range(repeats)]
        total, rate = 2, 1
        for number, (width, stride) in enumerate(zip(self.widths["blocks"], strides, strict=True), start=1):
            used = 1
            if total == output_stride:
                used, rate, stride = rate, rate * stride, 1
            total *= stride
            scope = f"{root}/expanded_conv_{number}"
            y = self.expansions[number] = self.conv(x, f"{scope}/expand", 6 * x.shape[-1])
            y = self.depthwises[number] = self.depthwise(y, f"{scope}/depthwise", stride=stride, rate=used)
            y = self.conv(y, f"{scope}/project", width, act=None)
            x = x + y if stride == 1 and x.shape[-1] == width else y
        return x

    def classifier(self, x):
        x = self.conv(self.backbone(x), "MobilenetV2/Conv_1", self.widths["last"])
        x = tf.reduce_mean(x, (1, 2), keepdims=True)
        scope, classes = "MobilenetV2/Logits/Conv2d_1c_1x1", given.NUM_CLASSES
        kernel = self.variable(f"{scope}/weights", (1, 1, x.shape[-1], classes), "kernel")
        logits = tf.nn.conv2d(x, kernel, 1, "SAME") + self.variable(f"{scope}/biases", (classes,), "offset")
        return tf.squeeze(logits, (1, 2), name="logits")

    def deeplab(self, x):
        x = self.backbone(x, given.OUTPUT_STRIDE)
        head = {"act": tf.nn.relu, "epsilon": 1e-5}
        pooled = self.conv(tf.reduce_mean(x, (1, 2), keepdims=True), "image_pooling", 256, **head)
        pooled = v1.image.resize_bilinear(pooled, x.shape[1:3], align_corners=True)
        x = tf.concat([pooled, self.conv(x, "aspp0", 256, **head)], -1)
        x = self.conv(x, "concat_projection", 256, **head)
        kernel = self.variable("logits/semantic/weights", (1, 1, 256, given.NUM_SEGMENTED), "kernel")
        bias = self.variable("logits/semantic/biases", (given.NUM_SEGMENTED,), "offset")
        return tf.add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias, name="logits")

    def separable(self, x, scope, width, *, rate=1):
        kernel = self.variable(f"{scope}_depthwise/depthwise_weights", (3, 3, x.shape[-1], 1), "kernel")
        x = tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "SAME", dilations=(rate, rate))
        x = tf.nn.relu(self.normalised(x, f"{scope}_depthwise", 1e-5))
        return self.conv(x, f"{scope}_pointwise", width, act=tf.nn.relu, epsilon=1e-5)

    def deeplab_plus(self, x):
        """DeepLabV3+ as TF DeepLab builds it: atrous branches, and a decoder on the depthwise map of block 1."""
        x, width, head = self.backbone(x, given.OUTPUT_STRIDE), given.PLUS_WIDTH, {"act": tf.nn.relu, "epsilon": 1e-5}
        pooled = self.conv(tf.reduce_mean(x, (1, 2), keepdims=True), "image_pooling", width, **head)
        branches = [
            v1.image.resize_bilinear(pooled, x.shape[1:3], align_corners=True),
            self.conv(x, "aspp0", width, **head),
        ]
        for index in (1, 2, 3):
            rate = 6 * index * 16 // given.OUTPUT_STRIDE
            branches.append(self.separable(x, f"aspp{index}", width, rate=rate))
        x = self.conv(tf.concat(branches, -1), "concat_projection", width, **head)
        low = self.conv(self.depthwises[2], "decoder/feature_projection0", given.LOW_WIDTH, **head)
        x = tf.concat([v1.image.resize_bilinear(x, low.shape[1:3], align_corners=True), low], -1)
        for index in (0, 1):
            x = self.separable(x, f"decoder/decoder_conv{index}", width)
        kernel = self.variable("logits/semantic/weights", (1, 1, width, given.NUM_SEGMENTED), "kernel")
        bias = self.variable("logits/semantic/biases", (given.NUM_SEGMENTED,), "offset")
        return tf.add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias, name="logits")

    def ssdlite(self, x):
        """The TF Object Detection API's: the last maps of the backbone, extra ones, predictors of boxes and classes."""
        x = self.conv(self.backbone(x), f"{self.root}/Conv_1", self.widths["last"])
        maps = [self.expansions[2], x]
        for number, width in enumerate(self.widths["extra"], start=2):
            half = max(int((512, 256, 256, 128)[number - 2] // 2 * given.SSD_ALPHA), 16)
            y = self.conv(maps[-1], f"{self.root}/layer_19_1_Conv2d_{number}_1x1_{half}", half)
            scope = f"{self.root}/layer_19_2_Conv2d_{number}_3x3_s2_{width}"
            y = self.depthwise(y, f"{scope}_depthwise", stride=2, rate=1)
            maps.append(self.conv(y, scope, width))
        rows = {"BoxEncodingPredictor": [], "ClassPredictor": []}
        for number, (x, kinds) in enumerate(zip(maps, given.SSD_KINDS, strict=True)):
            for what, found in rows.items():
                scope, depth = f"BoxPredictor_{number}/{what}", 4 if what.startswith("Box") else given.SSD_CLASSES + 1
                y = self.depthwise(x, f"{scope}_depthwise", stride=1, rate=1)
                kernel = self.variable(f"{scope}/weights", (1, 1, y.shape[-1], kinds * depth), "kernel")
                y = tf.nn.conv2d(y, kernel, 1, "SAME") + self.variable(f"{scope}/biases", (kinds * depth,), "offset")
                found.append(tf.reshape(y, (-1, kinds * y.shape[1] * y.shape[2], depth)))
        boxes, logits = (tf.concat(found, 1) for found in rows.values())
        return maps[1], boxes, logits


def slim(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A classifier in training, its average apart; its frozen graph; TFLite files of it."""
    results = {}
    with tf.Graph().as_default(), v1.Session() as session:
        net, logits = Network(1), {}
        for size in (given.SIZE, given.ODD_SIZE):
            place = v1.placeholder(tf.float32, (None, *size, 3), name="input")
            with v1.variable_scope("", reuse=bool(logits)):
                logits[size] = place, net.classifier(place)
        session.run(v1.global_variables_initializer())
        average = {name: session.run(variable) for name, variable in net.variables.items()}
        for size, (place, out) in logits.items():
            results[f"slim/{size}"] = session.run(out, {place: given.images(size)})
        _export(session, logits[given.SIZE], folder)
        # What training left: the average under its name, and weights that are somewhere else.
        extras = {f"{name}/{EMA}": v1.Variable(value) for name, value in average.items()}
        extras["global_step"] = v1.Variable(np.int64(1200))
        extras["MobilenetV2/Conv/weights/RMSProp"] = v1.Variable(average["MobilenetV2/Conv/weights"] ** 2)
        quantised = "MobilenetV2/Conv/weights_quant"
        extras |= {f"{quantised}/min": v1.Variable(np.float32(-1.5)), f"{quantised}/max": v1.Variable(np.float32(2.5))}
        extras["MobilenetV2/Conv/act_quant/min/biased"] = v1.Variable(np.float32(0.5))
        extras["MobilenetV2/Conv/act_quant/min/local_step"] = v1.Variable(np.float32(7))
        session.run(v1.variables_initializer(extras.values()))
        for name, variable in net.variables.items():
            session.run(variable.assign(average[name] * 0.75))
        for size, (place, out) in logits.items():
            results[f"slim raw/{size}"] = session.run(out, {place: given.images(size)})
        v1.train.Saver(net.variables | extras).save(session, str(folder / "slim" / "model.ckpt-1200"))
        reader = tf.train.load_checkpoint(str(folder / "slim" / "model.ckpt-1200"))
        results |= {f"slim tensors/{name}": reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return results


def _export(session, ends, folder):
    _, out = ends
    frozen = v1.graph_util.convert_variables_to_constants(session, session.graph_def, [out.op.name])
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    _to_tflite(session, ends, folder / "float.tflite")
    _to_tflite(session, ends, folder / "float16.tflite", lambda converter: _set(converter, types=[tf.float16]))
    _to_tflite(session, ends, folder / "dynamic.tflite", _set)
    _to_tflite(session, ends, folder / "int8.tflite", lambda converter: _set(converter, calibrate=True))


def _set(converter, types=(), calibrate=False):
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = list(types)
    if calibrate:
        converter.representative_dataset = lambda: ([image[None]] for image in given.images(given.SIZE))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _to_tflite(session, ends, path, change=lambda converter: None):
    place, *outs = ends
    frozen = v1.graph_util.convert_variables_to_constants(session, session.graph_def, [out.op.name for out in outs])
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as inner:
        fixed = v1.placeholder(tf.float32, (1, *place.shape[1:]), name="images")
        found = tf.import_graph_def(frozen, {place.name: fixed}, [out.name for out in outs])
        converter = v1.lite.TFLiteConverter.from_session(inner, [fixed], found)
        change(converter)
        path.write_bytes(converter.convert())


def deeplab(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A DeepLab whose last block dilates, as a checkpoint and as TFLite."""
    results = {}
    with tf.Graph().as_default(), v1.Session() as session:
        net, logits = Network(2), {}
        for size in (given.SIZE, given.ODD_SIZE):
            place = v1.placeholder(tf.float32, (None, *size, 3), name="input")
            with v1.variable_scope("", reuse=bool(logits)):
                logits[size] = place, net.deeplab(place)
        session.run(v1.global_variables_initializer())
        for size, (place, out) in logits.items():
            results[f"deeplab/{size}"] = session.run(out, {place: given.images(size)})
        v1.train.Saver(net.variables).save(session, str(folder / "deeplab" / "model.ckpt-30"))
        _to_tflite(session, logits[given.SIZE], folder / "deeplab.tflite")
    return results


def deeplab_plus(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A DeepLabV3+ as a checkpoint."""
    results = {}
    with tf.Graph().as_default(), v1.Session() as session:
        net, logits = Network(7), {}
        for size in (given.SIZE, given.ODD_SIZE):
            place = v1.placeholder(tf.float32, (None, *size, 3), name="input")
            with v1.variable_scope("", reuse=bool(logits)):
                logits[size] = place, net.deeplab_plus(place)
        session.run(v1.global_variables_initializer())
        for size, (place, out) in logits.items():
            results[f"deeplab plus/{size}"] = session.run(out, {place: given.images(size)})
        v1.train.Saver(net.variables).save(session, str(folder / "deeplab_plus" / "model.ckpt-31"))
    return results


def ssdlite(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A detector as a checkpoint and as TFLite, and what its parts give."""
    with tf.Graph().as_default(), v1.Session() as session:
        net = Network(6, widths=given.SSD_WIDTHS, parent="FeatureExtractor/")
        place = v1.placeholder(tf.float32, (None, *given.SIZE, 3), name="input")
        last, boxes, logits = net.ssdlite(place)
        session.run(v1.global_variables_initializer())
        outs = session.run((last, boxes, logits), {place: given.images(given.SIZE)[:1]})
        v1.train.Saver(net.variables).save(session, str(folder / "ssdlite" / "model.ckpt-9"))
        _to_tflite(session, (place, boxes, tf.sigmoid(logits)), folder / "ssdlite.tflite")
    return dict(zip(("ssdlite backbone", "ssdlite boxes", "ssdlite logits"), outs, strict=True))


def symmetric(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A TFLite classifier with PyTorch's padding."""
    with tf.Graph().as_default(), v1.Session() as session:
        net = Network(4, symmetric=True)
        place = v1.placeholder(tf.float32, (None, *given.SIZE, 3), name="input")
        ends = place, net.classifier(place)
        session.run(v1.global_variables_initializer())
        _to_tflite(session, ends, folder / "symmetric.tflite")
    return {}


def lite(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What the interpreter makes of the first image with the float files."""
    results = {}
    for name in ("float", "float16", "symmetric", "deeplab"):
        interpreter = tf.lite.Interpreter(str(folder / f"{name}.tflite"))
        interpreter.allocate_tensors()
        for image in given.images(given.SIZE)[:1]:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
            interpreter.invoke()
            results[f"{name}.tflite"] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return results


def keras_files(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """``keras.applications.MobileNetV2`` in every file of Keras 3, and its shapes at every width."""
    rng, results = np.random.default_rng(3), {}
    shape = (*given.KERAS_SIZE, 3)
    model = keras.applications.MobileNetV2(
        shape, given.KERAS_ALPHA, weights=None, classes=given.NUM_CLASSES, classifier_activation=None
    )
    for variable in model.variables:
        kinds = {"gamma": "gamma", "moving_variance": "variance"}
        kind = "kernel" if len(variable.shape) > 1 else kinds.get(variable.path.rpartition("/")[2], "offset")
        variable.assign(given.levels(rng, tuple(variable.shape), kind=kind))
    results["keras"] = model.predict(given.images(given.KERAS_SIZE), verbose=0)
    model.save(folder / "whole.h5")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    _set(converter, types=[tf.float16])
    (folder / "keras.tflite").write_bytes(converter.convert())
    top = [model.layers[-1].kernel.numpy(), model.layers[-1].bias.numpy()]
    bare = keras.applications.MobileNetV2(shape, given.KERAS_ALPHA, weights=None, include_top=False)
    bare.set_weights([variable.numpy() for variable in model.variables if "predictions" not in variable.path])
    dense = keras.layers.Dense(given.NUM_CLASSES, name="mine")
    nested = keras.Sequential([bare, keras.layers.GlobalAveragePooling2D(), dense])
    dense.set_weights(top)
    nested.save(folder / "nested.h5")
    nested.save_weights(folder / "nested.weights.h5")
    for alpha in given.KERAS_ALPHAS:
        other = keras.applications.MobileNetV2((96, 96, 3), alpha, weights=None)
        shapes = [f"{variable.path} {','.join(map(str, variable.shape))}" for variable in other.variables]
        results[f"keras shapes/{alpha}"] = np.array(shapes)
    return results


if __name__ == "__main__":
    here, folder = pathlib.Path(__file__).parent, pathlib.Path(tempfile.mkdtemp())
    results = {}
    for part in (slim, deeplab, deeplab_plus, ssdlite, symmetric, lite, keras_files):
        results |= part(folder)
    for path in folder.rglob("*.meta"):
        path.unlink()
    with tarfile.open(here / "foreign_weights.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(
                    path, path.relative_to(folder).as_posix(), filter=lambda item: item.replace(mtime=0, deep=False)
                )
    np.savez_compressed(here / "foreign_outputs.npz", **results)
    shutil.rmtree(folder)
    print(f"{len(results)} arrays by TensorFlow {tf.__version__}, Keras {keras.__version__}")
