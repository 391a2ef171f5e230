"""The same networks in other libraries: built, given our weights, and called as fast as their users know to.

Modules take and return what they do in their library, in channels-last memory; a missing library raises ImportError,
which ``harness.build`` turns into a line.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import importlib.util
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

import flax_mnv2
from benchmarks import workloads
from benchmarks.torch_setup import import_torch
from benchmarks.torch_ssdlite import Boxes, load, make_detector
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights.pretrained import make_model

# What torchvision and timm cannot vary: PyTorch's symmetric padding and epsilon. Same shapes, so same variables.
PYTORCH_NUMBERS = {"tf_padding": False, "layer_norm_eps": 1e-5}
LIBRARIES = ("transformers", "timm", "torchvision")
# Ways to call a module: keywords of torch.compile, or None for eager mode.
CPU_MODES: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compile": {},
    "compile-freeze": {"options": {"freezing": True}},  # folds batch norm and packs the weights; inference only
}
GPU_MODES: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compile": {},
    "compile-autotune": {"mode": "max-autotune"},
}


def cases(*, gpu: bool, training: bool = False) -> dict[str, tuple[str, dict[str, Any] | None]]:
    """Name of a case → its library and its keywords for torch.compile, None for eager mode."""
    modes = dict(GPU_MODES if gpu else CPU_MODES)
    if training:
        modes.pop("compile-freeze", None)
    return {
        library if mode == "eager" else f"{library}-{mode}": (library, options)
        for library in LIBRARIES
        for mode, options in modes.items()
    }


def peer_config(library: str, config: MobileNetV2Config) -> MobileNetV2Config:
    """``config`` as far as ``library`` can follow it; it takes the same variables."""
    return config if library == "transformers" else config.replace(**PYTORCH_NUMBERS)


def make_module(library: str, config: MobileNetV2Config, task: str, variables: workloads.Variables):
    """A float32 module of ``library`` with our weights, whose call returns what that library's does.

    Raises:
      ImportError: the library is not installed.
      ValueError: it does not have this network.
    """
    torch = import_torch()
    if importlib.util.find_spec(library) is None:
        raise ImportError(f"{library} is not installed")
    if task == "segmentation" and library != "transformers":
        raise ValueError(f"{library} has no DeepLab on MobileNetV2")
    if task == "detection" and library == "timm":
        raise ValueError("torchvision's module is the same detector")
    model = make_model(peer_config(library, config), task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task == "detection":
            module = make_detector(library, model.config)
        elif library == "transformers":
            module = _transformers_module(config, task)
        elif library == "timm":
            timm = importlib.import_module("timm")
            name = f"mobilenetv2_{round(100 * config.depth_multiplier):03d}"
            dropout = config.classifier_dropout_prob
            module = timm.create_model(name, num_classes=config.num_labels, drop_rate=dropout)
        else:
            torchvision = importlib.import_module("torchvision")
            module = torchvision.models.mobilenet_v2(
                width_mult=config.depth_multiplier,
                num_classes=config.num_labels,
                dropout=config.classifier_dropout_prob,
            )
    if task == "detection":
        load(module, library, model.config, traverse_util.flatten_dict(variables))
    else:
        state = flax_mnv2.to_state_dict(model, variables, "hf" if library == "transformers" else library)
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    if library == "transformers" and task == "segmentation":
        # Declared, computed and never used by Hugging Face's model; without it all do the same work.
        module.mobilenet_v2.conv_1x1 = torch.nn.Identity()
    device = "cuda" if torch.cuda.is_available() and workloads.on_gpu() else "cpu"
    return module.to(device=device, memory_format=torch.channels_last)


def _transformers_module(config: MobileNetV2Config, task: str):
    transformers = importlib.import_module("transformers")
    name = "ImageClassification" if task == "classification" else "SemanticSegmentation"
    theirs = transformers.MobileNetV2Config.from_dict(config.to_dict())
    return getattr(transformers, f"MobileNetV2For{name}")(theirs)


def _logits(output):
    return getattr(output, "logits", output)


def _device_of(module):
    return next(module.parameters()).device


def _images(images: np.ndarray, device):
    """(N, H, W, C) → a tensor (N, C, H, W) whose memory is channels last, as it was."""
    return import_torch().from_numpy(images).permute(0, 3, 1, 2).to(device)


def _autocast(device, dtype: str):
    torch = import_torch()
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _wait(device) -> None:
    if device.type == "cuda":
        import_torch().cuda.synchronize()


def _compiled(function, options: dict[str, Any] | None):
    """``function`` through torch.compile, for one shape; None leaves it eager."""
    torch = import_torch()
    return function if options is None else torch.compile(function, dynamic=False, **options)


def forget() -> None:
    """Frees what torch.compile and the memory of the GPU keep of modules that are no longer used."""
    torch = import_torch()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- inference -----------------------------------------------------------------------------------------


def inference_case(module, images: np.ndarray, *, dtype: str, options: dict[str, Any] | None) -> Callable[[], Any]:
    """A case that returns float logits on their device, which is idle then."""
    torch = import_torch()
    module = module.eval()
    device = _device_of(module)
    images = _images(images, device)
    forward = _compiled(lambda images: _logits(module(images)), options)

    def case():
        with torch.inference_mode(), _autocast(device, dtype):
            logits = forward(images)
        _wait(device)
        return logits

    return case


def detection_case(
    module, config: MobileNetV2Config, images: np.ndarray, *, dtype: str, options: dict[str, Any] | None
) -> Callable[[], Any]:
    """A case that returns (logits, boxes with their scores and classes, of each image), as ``detection_program``."""
    torch = import_torch()
    module = module.eval()
    device = _device_of(module)
    boxes, images = Boxes(config, images.shape[1:3], device), _images(images, device)
    forward = _compiled(module, options)

    def case(threshold=None):
        with torch.inference_mode(), _autocast(device, dtype):
            logits, codes = forward(images)
            limit = case.threshold if threshold is None else threshold
            found = [boxes.detections(*rows, limit) for rows in zip(logits.float(), codes.float(), strict=True)]
        _wait(device)
        return logits, found

    case.threshold = workloads.threshold_of(case(1.0)[0].float().cpu().numpy())
    return case


def onnxruntime_case(module, images: np.ndarray, *, cores: int) -> Callable[[], Any]:
    """A case of ONNX Runtime on CPU, which returns the logits as a NumPy array; the module goes through torch.onnx."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        write_onnx(module, images, path)
        return onnx_file_case(path, images, cores=cores)


def write_onnx(module, images: np.ndarray, path: pathlib.Path) -> None:
    """Writes what a module makes of images (N, H, W, C) as PyTorch's own exporter does, for that many."""
    torch = import_torch()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, images):
            return _logits(self.module(images))

    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        torch.onnx.export(Logits().eval(), (images,), path, dynamo=True, verbose=False, external_data=False)


def onnx_file_case(path: pathlib.Path, images: np.ndarray, *, cores: int, spinning: bool = True) -> Callable[[], Any]:
    """A case of ONNX Runtime on CPU with a file that takes (N, C, H, W); returns its first output.

    Without ``spinning`` threads that wait sleep, as on a machine that others use too.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, images = session.get_inputs()[0].name, np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return lambda: session.run(None, {name: images})[0]


def to_numpy(logits: Any) -> np.ndarray:
    """A case's logits as float32 and as we have them: (N, C), or a map with its channels last."""
    if not isinstance(logits, np.ndarray):
        logits = logits.float().cpu().numpy()
    return logits.transpose(0, 2, 3, 1) if logits.ndim == 4 else logits


# ---- training ------------------------------------------------------------------------------------------


def _loss(logits, labels):
    functional = import_torch().nn.functional
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), labels)
    logits = functional.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return functional.cross_entropy(logits, labels, ignore_index=255)


def train_case(
    module, batch: dict[str, np.ndarray], *, dtype: str, options: dict[str, Any] | None
) -> Callable[[], Any]:
    """A case that makes one step of SGD with momentum and returns the loss; the device is idle then."""
    torch = import_torch()
    module = module.train()
    device = _device_of(module)
    images, labels, loss_of = _images(batch["image"], device), *_objective(module, batch, device)
    optimizer = torch.optim.SGD(module.parameters(), workloads.LEARNING_RATE, momentum=workloads.MOMENTUM, fused=True)

    def objective(images, labels):
        with _autocast(device, dtype):
            logits = _logits(module(images))
        return loss_of(logits, labels)

    if loss_of is _loss:
        objective = _compiled(objective, options)
    else:  # suppression breaks the graph
        module = _compiled(module, options)

    def case():
        optimizer.zero_grad(set_to_none=True)
        loss = objective(images, labels)
        loss.backward()
        optimizer.step()
        _wait(device)
        return loss.detach()

    return case


def train_loss(module, batch: dict[str, np.ndarray], *, dtype: str) -> float:
    """The loss in train mode without dropout, as a check against ours."""
    torch = import_torch()
    module = copy.deepcopy(module).train()
    device = _device_of(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        if hasattr(layer, "drop_rate"):  # timm's classifiers call the function
            layer.drop_rate = 0.0
    labels, loss_of = _objective(module, batch, device)
    with torch.no_grad(), _autocast(device, dtype):
        return float(loss_of(_logits(module(_images(batch["image"], device))), labels))


def _objective(module, batch: dict[str, np.ndarray], device) -> tuple[Any, Callable[..., Any]]:
    """The labels on the device, and the loss that takes them."""
    labels = import_torch().from_numpy(batch["label"]).to(device)
    if labels.ndim != 3 or not labels.is_floating_point():
        return labels.long(), _loss
    boxes = Boxes(module.config, batch["image"].shape[1:3], device)
    return labels, lambda outputs, labels: boxes.loss(*(x.float() for x in outputs), labels)
