"""What transformers' ``PreTrainedConfig`` knows of every model, beside the fields of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

# Kept in ``extra`` and read as attributes; none changes what this library computes.
COMMON_DEFAULTS: Mapping[str, Any] = {
    # of transformers 5
    "architectures": None,
    "chunk_size_feed_forward": 0,
    "dtype": None,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "transformers_version": None,
    # of release 4, which 5 reads no more or has under another name
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "finetuning_task": None,
    "is_decoder": False,
    "name_or_path": "",
    "pruned_heads": FrozenDict(),
    "task_specific_params": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "torch_dtype": None,
    "torchscript": False,
    "use_bfloat16": False,
}
WRITTEN_IN_FULL = ("architectures", "chunk_size_feed_forward", "dtype", "is_encoder_decoder", "output_attentions")
DTYPE_KEYS = ("dtype", "torch_dtype")  # the type of the stored weights, now and in release 4


def is_default(name: str, value: Any) -> bool:
    """Says whether a common key need not be kept, because it reads the same without."""
    return name in COMMON_DEFAULTS and type(value) is type(COMMON_DEFAULTS[name]) and value == COMMON_DEFAULTS[name]
