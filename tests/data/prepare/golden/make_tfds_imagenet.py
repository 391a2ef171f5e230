"""Writes tfds_imagenet.tar.gz beside it: tiny official archives, and what TFDS's own imagenet2012 makes of them.

    pip install "tensorflow-cpu>=2.20,<3"
    python tests/data/prepare/golden/make_tfds_imagenet.py

``official/`` has the archives; ``tfrecord/`` what TFDS builds by default; ``array_record/`` what this project's command
has TFDS build.
"""

import pathlib
import sys
import tarfile
import tempfile

import tensorflow_datasets as tfds

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    """Builds all in a folder that goes away, and packs it."""
    sys.path[:0] = [str(HERE.parents[3]), str(HERE.parents[2] / "helpers" / "archives")]
    import imagenet_archives

    from flax_mnv2.data.prepare import command

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        official = folder / "official"
        imagenet_archives.write(
            official, train=imagenet_archives.train_files(), validation=imagenet_archives.validation_files()
        )
        config = tfds.download.DownloadConfig(manual_dir=str(official))
        tfds.builder("imagenet2012", data_dir=folder / "tfrecord").download_and_prepare(download_config=config)
        place = ["--manual_dir", str(official), "--data_dir", str(folder / "array_record")]
        assert command.main(["imagenet2012", *place]) == 0
        with tarfile.open(HERE / "tfds_imagenet.tar.gz", "w:gz") as packed:
            for part in ("official", "tfrecord/imagenet2012", "array_record/imagenet2012"):
                packed.add(folder / part, part)


if __name__ == "__main__":
    main()
