"""Names of the places in the backbone whose outputs can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.layer_plan import LayerPlan

LAST_CONV = "conv_1x1"
Selection = bool | Sequence[int | str]


def endpoint_names(plan: LayerPlan, *, include_last_conv: bool = True) -> tuple[str, ...]:
    """Returns all endpoints in the order in which they are computed.

    ``conv_stem``; for each block ``layer_05/expansion`` (after the 1×1 expansion), ``layer_05/depthwise`` (after
    the 3×3) and ``layer_05`` (its output); ``conv_1x1``. TF-slim's ``layer_15/expansion_output``, on which SSDLite
    stands, is ``layer_12/expansion`` here: slim counts the stem's two convolutions as well, and from one.
    """
    names = ["conv_stem"]
    for block in plan.blocks:
        names += [f"{block.name}/expansion", f"{block.name}/depthwise", block.name]
    return (*names, LAST_CONV) if include_last_conv else tuple(names)


def check_endpoint(name: str, known: Sequence[str], argument: str) -> str:
    """Returns ``name``; raises a ConfigError where it is not among ``known``."""
    if name not in known:
        raise ConfigError(
            f"{argument} names {name!r}; expected one of {', '.join(n for n in known if '/' not in n)}, "
            "or a block's expansion or depthwise, such as 'layer_10/expansion', as far as the network runs."
        )
    return name


def expansions_in(selection: Selection) -> tuple[str, ...]:
    """Returns the blocks whose expanded map ``selection`` names; it need not exist otherwise."""
    names = selection if isinstance(selection, list | tuple) else ()
    parts = [name.partition("/") for name in names if isinstance(name, str)]
    return tuple(block for block, _, part in parts if part == "expansion")


def select(endpoints: Mapping[str, jax.Array], selection: Selection, plan: LayerPlan) -> tuple[jax.Array, ...] | None:
    """Returns those of the endpoints that ``output_hidden_states`` asks for, in its order.

    True selects the outputs of all blocks that were computed, Hugging Face's ``hidden_states``; a sequence their
    indices (negative ones count from the end of the network) and endpoint names; False none. Raises a ConfigError for
    what does not exist or was not computed.
    """
    if selection is False:
        return None
    if getattr(selection, "ndim", 0):
        raise ConfigError(
            "output_hidden_states must be True, False or a sequence of indices and names; found an array. Labels of a "
            "classifier are its third argument, as in transformers: labels=."
        )
    blocks = [block.name for block in plan.blocks]
    if selection is True:
        return tuple(endpoints[name] for name in blocks if name in endpoints)
    if isinstance(selection, str) or not isinstance(selection, Iterable) or np.ndim(selection) == 0:
        raise ConfigError(
            f"output_hidden_states must be True, False or a sequence of indices and names; found {selection!r}. "
            f"For one layer write ({selection!r},); under jit make the argument static."
        )
    chosen = []
    for item in selection:
        if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if not -len(blocks) <= item < len(blocks):
                raise ConfigError(f"output_hidden_states has index {item}; this network has {len(blocks)} blocks.")
            item = blocks[item]
        chosen.append(endpoints[check_endpoint(item, tuple(endpoints), "output_hidden_states")])
    return tuple(chosen)
