"""Trains a model: python train.py --config configs/seg_voc.py --workdir runs/voc

Any field of the config can be set on the command line: --config.batch_size=8. The same command goes on from
the newest checkpoint in the workdir. On several hosts run it on each: on a TPU pod slice as it is, on clusters that JAX
knows with --distributed, elsewhere with --coordinator_address=HOST:PORT --num_processes=N --process_id=I.
"""

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    from absl import flags
    from ml_collections import config_flags

    from flax_mnv2.training import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe to train by.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and metrics.")
_STRICT = flags.DEFINE_bool("strict", False, "Stop at a damaged checkpoint instead of going on from the one before.")
cli.define_host_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """Trains."""
    with cli.hosts(_CONFIG.value, "strict", agreed_stop=True):
        from flax_mnv2.report.finished import report_finished
        from flax_mnv2.training.loop import train

        train(_CONFIG.value, _WORKDIR.value, strict=_STRICT.value)
        if _CONFIG.value.report:
            report_finished(_WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
