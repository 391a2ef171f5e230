"""A data set as a tool exports it, through preparing, training and an evaluation."""

import numpy as np
import voc_archives
from harness import compiling_once
from PIL import Image

from flax_mnv2.data.prepare import command
from flax_mnv2.training.loop import train

LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\nnever:0,128,0::\n"


def test_an_export_of_cvat(tiny_config, tmp_path, monkeypatch, capsys):
    """Masks in colours, a label file with them, lists of image and mask, a list that nobody asked for."""
    masks = voc_archives.mask_array(40, 60, num_classes=2)
    masks[0] = 0
    painted = np.stack([masks * 128, masks * 0, masks * 0], axis=-1).astype(np.uint8)
    files = {
        "ImageSets/Segmentation/train.txt": b"".join(
            b"JPEGImages/%d.jpg SegmentationClass/%d.png\n" % (i, i) for i in range(8)
        ),
        "ImageSets/Segmentation/val.txt": b"8.jpg\n9.jpg\n",
        "ImageSets/Segmentation/test.txt": b"without_a_mask\n",
    }
    for index in range(10):
        files[f"JPEGImages/{index}.jpg"] = voc_archives.jpeg(40, 60, seed=index)
        image = Image.fromarray(painted)
        files[f"SegmentationClass/{index}.png"] = voc_archives.encode(image, "PNG")
    data = tiny_config.data
    data.dataset, data.data_dir = "voc_segmentation/custom", str(tmp_path / "data")
    data.archive = str(voc_archives.write(tmp_path / "export.zip", files))
    data.labels = str(tmp_path / "labelmap.txt")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    options = ["--archive", data.archive, "--labels", data.labels, "--data_dir", data.data_dir]
    assert command.main(["voc_segmentation/custom", *options]) == 0
    prepared = sorted((tmp_path / "data").rglob("*"))
    assert "never                -           -" in capsys.readouterr().out

    tiny_config.batch_size = tiny_config.eval.batch_size = 4
    tiny_config.num_steps = tiny_config.eval_every_steps = tiny_config.checkpoint.every_steps = 1
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    train(tiny_config, tmp_path / "run", parallel=compiling_once(tiny_config))
    printed = capsys.readouterr().out
    assert "  train: 8 ids of ImageSets/Segmentation/train.txt\n" in printed
    assert "  not read: test\n  no pixel in train: never\n" in printed
    assert "  1 of 3 classes never in the masks: never\n" in printed
    assert sorted((tmp_path / "data").rglob("*")) == prepared
