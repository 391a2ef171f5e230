"""Published peak rates of TPU chips, and the least time that a program can take on one.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation
(docs.cloud.google.com/tpu/docs, read in 2026). The interconnect there is given for both directions together, or in
bits a second, or as the all-reduce bandwidth of a pod; all agree with what a chip can send over all its links:
v5e 51.2 TB/s and v6e 102.4 TB/s over 256 chips, v5p 4,800 Gbit/s. Only v4's, six links of 50 GB/s, is from the paper
(Jouppi et al., ISCA 2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; rates are a second, in bytes and in bfloat16 operations."""

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    link_bandwidth: float  # that it can send over all its links together
    slices: tuple[str, ...]  # all flat ones that exist; of three dimensions some, since any even sides do

    @property
    def dimensions(self) -> int:
        """Of a slice, 2 or 3."""
        return self.slices[0].count("x") + 1


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x8")
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("TPU v4", 32 * 2**30, 1200e9, 275e12, 300e9, _CUBES),
    "v5e": Chip("TPU v5e", 16 * 2**30, 819e9, 197e12, 200e9, _FLAT),
    "v5p": Chip("TPU v5p", 95 * 2**30, 2765e9, 459e12, 600e9, _CUBES),
    "v6e": Chip("TPU v6e", 32 * 2**30, 1638e9, 918e12, 400e9, _FLAT),
}


def lower_bounds(
    chip: Chip, *, hbm_bytes: float, flops: float, collectives: Mapping[str, Sequence[int]], num_chips: int
) -> dict[str, float]:
    """Returns the seconds that ``hbm``, ``flops`` and ``interconnect`` of a step take at least, were the others free.

    Nothing can be faster than the published bandwidths and the peak; latencies, and parts that do not overlap, come on
    top. Bytes and operations are those of one chip; ``collectives`` are as ``hlo.Module.collectives`` gives them.
    """
    return {
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "flops": flops / chip.peak_flops,
        "interconnect": sent_bytes(collectives, num_chips) / chip.link_bandwidth,
    }


def sent_bytes(collectives: Mapping[str, Sequence[int]], num_chips: int) -> float:
    """Returns the bytes that each chip must send at least for these collectives, whatever the algorithm.

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
