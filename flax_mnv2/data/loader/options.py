"""How batches are made: sizes, processes, threads, and what happens when input fails."""

import dataclasses
from typing import Any

import ml_collections

from flax_mnv2.errors import ConfigError

MAX_BYTES_AHEAD = 2**27  # of the batches of an evaluation that wait, ready


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options of the training and evaluation batches of any task; a ConfigError where the batch cannot be divided."""

    batch_size: int  # examples in the global batch, over all processes of a run
    seed: int = 0  # of order and augmentation; evaluation does not use it
    process_index: int = 0  # which equal, contiguous part of every global batch to give
    process_count: int = 1
    num_threads: int = 2  # that make batches, in each worker; 0 makes each batch when it is asked for
    num_workers: int = 0  # processes that make batches; 0 uses threads of this one
    prefetch_buffer_size: int = 4  # batches made in advance, in each worker; at least one by each thread
    timeout: float = 600.0  # seconds that a batch may take
    skip_bad: bool = False  # whether another example takes a damaged one's place, in an evaluation a filler
    max_bad: int = 100  # different damaged ones, of an iterator in a process, that may be left out; one more stops

    def __post_init__(self):
        if self.batch_size <= 0 or self.batch_size % self.process_count:
            raise ConfigError(
                f"The global batch size is {self.batch_size}, expected a positive multiple of the "
                f"{self.process_count} process(es). Set batch_size."
            )

    @classmethod
    def for_training(cls, config: ml_collections.ConfigDict) -> "LoaderOptions":
        """Returns the options of this process, from the config of a run."""
        return cls._from_config(config, batch_size=config.batch_size, seed=config.seed)

    @classmethod
    def for_evaluation(
        cls, config: ml_collections.ConfigDict, batch_size: int = 0, example_bytes: int = 0
    ) -> "LoaderOptions":
        """Returns the options of this process, from the config of a run; its batch size unless another is given.

        Where examples are large, ``example_bytes`` each, fewer batches are made in advance.
        """
        options = cls._from_config(config, batch_size=batch_size or config.eval.batch_size)
        own_bytes = options.batch_size // options.process_count * example_bytes
        ahead = max(1, MAX_BYTES_AHEAD // max(own_bytes, 1))
        return dataclasses.replace(
            options,
            num_threads=min(options.num_threads, ahead),
            prefetch_buffer_size=min(options.prefetch_buffer_size, ahead),
        )

    @classmethod
    def _from_config(cls, config: ml_collections.ConfigDict, **sizes: Any) -> "LoaderOptions":
        import jax  # which process this is; nothing else of the loader needs it

        data = config.data
        return cls(
            **sizes,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=data.num_threads,
            num_workers=data.num_workers,
            prefetch_buffer_size=data.prefetch_buffer_size,
            timeout=float(data.timeout),
            skip_bad=data.bad_examples == "skip",
            max_bad=data.max_bad_examples,
        )
