"""Predictions for all shared photos, by trained weights: those of transformers from the same pixel values."""

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.image_processing.reading import read_picture
from flax_mnv2.predict.command import load_predictor
from flax_mnv2.tasks.segmentation.predictor import label_map

PHOTOS = (
    "bird_segmentation.png",
    "cat.png",
    "dog_segmentation_256.png",
    "dragonfly.png",
    "grace_hopper.png",
    "n02123045_tabby.JPEG",
    "pets.jpg",
    "sunflower.png",
)


@pytest.fixture(scope="module")
def pictures(shared):
    return {name: read_picture(shared / "images" / name, name) for name in PHOTOS}


@pytest.fixture(scope="module")
def classifier_folder(shared):
    return shared / "weights" / "mobilenet_v2_1.0_224"


@pytest.fixture(scope="module")
def segmenter_folder(shared):
    return shared / "weights" / "deeplabv3_mobilenet_v2_1.0_513"


@pytest.fixture(scope="module")
def segmenter(segmenter_folder):
    return load_predictor(str(segmenter_folder))


@pytest.fixture(scope="module")
def segmentations(segmenter, pictures):
    """Each photo's framed pixels, logits and prediction, through the route of the command."""
    examples = {name: segmenter.prepare(picture) for name, picture in pictures.items()}
    logits = {name: segmenter.compute(example.pixels[None])[0] for name, example in examples.items()}
    return {
        name: (examples[name].pixels, logits[name], segmenter.finish(examples[name], logits[name])) for name in PHOTOS
    }


@pytest.fixture(scope="module")
def reference_logits(transformers, segmenter_folder):
    """Pixel values (H, W, 3) → Hugging Face's output for them."""
    import torch

    model = transformers.MobileNetV2ForSemanticSegmentation.from_pretrained(segmenter_folder).eval()

    def run(pixels):
        with torch.no_grad():
            return model(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))

    return run


def test_the_best_five_classes_are_the_references(transformers, classifier_folder, pictures):
    import torch

    predictor = load_predictor(str(classifier_folder))
    hf_model = transformers.MobileNetV2ForImageClassification.from_pretrained(classifier_folder).eval()
    difference = 0.0
    for name, picture in pictures.items():
        example = predictor.prepare(picture)
        (answer,) = predictor.compute(example.pixels[None])
        with torch.no_grad():
            pixels = torch.from_numpy(example.pixels.transpose(2, 0, 1)[None].copy())
            theirs = hf_model(pixels).logits[0].softmax(-1).topk(5)
        ours = predictor.finish(example, answer)
        assert [item.index for item in ours] == theirs.indices.tolist(), name
        assert [item.label for item in ours] == [hf_model.config.id2label[item.index] for item in ours], name
        difference = max(difference, np.abs([item.probability for item in ours] - theirs.values.numpy()).max())
    assert difference <= 1e-4
    print(f"top 5 of {len(PHOTOS)} photos in the same order; probabilities within {difference:.1e}")


@pytest.mark.slow
def test_label_maps_by_the_processor_are_the_references(
    transformers, segmenter, segmenter_folder, reference_logits, pictures
):
    """Hugging Face's own route: resize, centre crop, network, ``post_process_semantic_segmentation``."""
    processor = MobileNetV2ImageProcessor.from_pretrained(segmenter_folder)
    theirs_processor = transformers.MobileNetV2ImageProcessorPil.from_pretrained(segmenter_folder)
    same = total = 0
    for name, picture in pictures.items():
        (pixels,) = processor(picture).pixel_values
        size = picture.shape[:2]
        (theirs,) = theirs_processor.post_process_semantic_segmentation(reference_logits(pixels), [size])
        (logits,) = segmenter.compute(pixels[None])
        ours = label_map(logits, canvas=pixels.shape[:2], region=pixels.shape[:2], size=size)
        assert len(np.unique(ours)) > 1, f"{name}: nothing but one class"
        same += int((ours == theirs.numpy()).sum())
        total += ours.size
    print(f"processor route: {same:,} of {total:,} pixels have the same label")
    assert same / total >= 0.999


@pytest.mark.slow
def test_label_maps_of_whole_photos_are_those_of_the_references_logits(segmentations, reference_logits, pictures):
    """The command's route, with PyTorch's own interpolation between Hugging Face's logits."""
    import torch

    same = total = 0
    for name, picture in pictures.items():
        pixels, _, segmentation = segmentations[name]
        side = pixels.shape[0]
        scale = max(picture.shape[:2]) / side
        axes = []
        for length in picture.shape[:2]:
            covered = round(length / scale)
            axes.append(torch.tensor((np.arange(length) + 0.5) * covered / length / side * 2 - 1))
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        theirs = torch.nn.functional.grid_sample(
            reference_logits(pixels).logits,
            torch.stack([columns, rows], dim=-1)[None].float(),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        theirs_map = theirs[0].argmax(0).numpy()
        assert segmentation.mask.shape == picture.shape[:2]
        same += int((segmentation.mask == theirs_map).sum())
        total += theirs_map.size
    print(f"whole photos: {same:,} of {total:,} pixels have the same label")
    assert same / total >= 0.999


@pytest.mark.parametrize(
    ("photo", "label", "mask_name", "truth", "ignored", "least"),
    [
        ("bird_segmentation.png", "bird", "bird_segmentation_mask.png", 3, None, 0.85),
        ("dog_segmentation_256.png", "dog", "dog_segmentation_mask_256.png", 0, 2, 0.97),
    ],
)
def test_animals_are_found(segmentations, shared, photo, label, mask_name, truth, ignored, least):
    with Image.open(shared / "images" / mask_name) as image:
        mask = np.asarray(image)
    segmentation = segmentations[photo][2]
    (index,) = [item.index for item in segmentation.classes if item.label == label]
    counts = mask != ignored if ignored is not None else np.ones(mask.shape, bool)
    found, wanted = (segmentation.mask == index)[counts], (mask == truth)[counts]
    iou = (found & wanted).sum() / (found | wanted).sum()
    print(f"{label}: IoU {iou:.4f}")
    assert iou >= least
