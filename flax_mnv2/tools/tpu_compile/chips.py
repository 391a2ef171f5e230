"""Published figures of TPU chips, and the least time that a program can take on one.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation
(docs.cloud.google.com/tpu/docs, read in 2026). The interconnect there is given for both directions together, or in
bits a second, or as the all-reduce bandwidth of a pod; all agree with what a chip can send over all its links:
v5e 51.2 TB/s and v6e 102.4 TB/s over 256 chips, v5p 4,800 Gbit/s. Only v4's, six links of 50 GB/s, is from the paper
(Jouppi et al., ISCA 2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

SQUARE_SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: for a reader.
      hbm_bytes: size of its memory.
      hbm_bandwidth: bytes a second.
      peak_flops: bfloat16 operations a second.
      link_bandwidth: bytes a second that it can send over all its links together.
      dimensions: of a slice, 2 or 3.
      shapes: all slices that exist; empty where any product of even sides does.
      examples: some slices, for messages.
    """

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    link_bandwidth: float
    dimensions: int
    shapes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x8")
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        name="TPU v4",
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1200e9,
        peak_flops=275e12,
        link_bandwidth=300e9,
        dimensions=3,
        examples=_CUBES,
    ),
    "v5e": Chip(
        name="TPU v5e",
        hbm_bytes=16 * 2**30,
        hbm_bandwidth=819e9,
        peak_flops=197e12,
        link_bandwidth=200e9,
        dimensions=2,
        shapes=SQUARE_SHAPES,
        examples=SQUARE_SHAPES,
    ),
    "v5p": Chip(
        name="TPU v5p",
        hbm_bytes=95 * 2**30,
        hbm_bandwidth=2765e9,
        peak_flops=459e12,
        link_bandwidth=600e9,
        dimensions=3,
        examples=_CUBES,
    ),
    "v6e": Chip(
        name="TPU v6e",
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1638e9,
        peak_flops=918e12,
        link_bandwidth=400e9,
        dimensions=2,
        shapes=SQUARE_SHAPES,
        examples=SQUARE_SHAPES,
    ),
}


def lower_bounds(
    chip: Chip, *, hbm_bytes: float, flops: float, collectives: Mapping[str, Sequence[int]], num_chips: int
) -> dict[str, float]:
    """Seconds that each part of a step takes at least, were the others free.

    Nothing can be faster than the published bandwidths and the peak; latencies, and parts that do not overlap, come on
    top.

    Args:
      chip: the figures.
      hbm_bytes: what one chip reads and writes in a step.
      flops: what one chip computes in a step.
      collectives: result bytes of each collective by kind, as ``hlo.Module.collectives`` gives them.
      num_chips: that take part in each.

    Returns:
      ``hbm``, ``flops`` and ``interconnect``.
    """
    return {
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "flops": flops / chip.peak_flops,
        "interconnect": sent_bytes(collectives, num_chips) / chip.link_bandwidth,
    }


def sent_bytes(collectives: Mapping[str, Sequence[int]], num_chips: int) -> float:
    """Bytes that each chip must send at least for these collectives, whatever the algorithm.

    Of n chips that sum B bytes each sends (n - 1) / n of B to reduce its part and as much to hand it out.
    """
    others = (num_chips - 1) / num_chips
    fractions = {
        "all-reduce": 2 * others,
        "all-gather": others,
        "reduce-scatter": num_chips * others,  # its result is an n-th of what is summed
        "all-to-all": others,
        "collective-permute": 1.0,
    }
    return sum(fractions[kind] * sum(sizes) for kind, sizes in collectives.items())
