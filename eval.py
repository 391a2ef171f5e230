"""Evaluates a model: python eval.py --workdir runs/voc, or --checkpoint, or --config … --pretrained FOLDER

With --workdir or --checkpoint the run's own config holds, with the --config.… overrides given here.
"""

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    from absl import flags
    from ml_collections import config_flags

    from flax_mnv2.training import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe; names the data for --pretrained.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of a training run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "One checkpoint: WORKDIR/checkpoints/step_N.")
_PRETRAINED = flags.DEFINE_string("pretrained", "", "Weights of any library: folder, file or hub id.")
_EXPORTED = flags.DEFINE_string("exported", "", "File of flax_mnv2.export, run in the place of the model it is of.")
_STEP = flags.DEFINE_string("step", "best", "Checkpoint of --workdir: best, latest or a step.")
_WEIGHTS = flags.DEFINE_string("weights", "auto", "Of a checkpoint: raw, ema, or auto for ema where there is one.")
_SPLIT = flags.DEFINE_string("split", "", "Split to evaluate; default config.data.eval_split.")
_PER_CLASS = flags.DEFINE_bool("per_class", False, "Table of every class of a classifier (segmentation: always).")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for the report; default beside the checkpoint.")
cli.define_host_flags()


def main(_) -> None:
    """Evaluates."""
    from flax_mnv2.training.workdir import config_for_evaluation

    given = _CONFIG.value is not None
    overrides = config_flags.get_override_values(flags.FLAGS["config"]) if given else {}
    config = config_for_evaluation(_CONFIG.value, overrides, workdir=_WORKDIR.value, checkpoint=_CHECKPOINT.value)
    with cli.hosts(config, "step", "weights", "split", "per_class", agreed_stop=False):
        from flax_mnv2.training.evaluate import evaluate_run

        evaluate_run(
            config,
            workdir=_WORKDIR.value,
            checkpoint=_CHECKPOINT.value,
            pretrained=_PRETRAINED.value,
            exported=_EXPORTED.value,
            step=_STEP.value,
            weights=_WEIGHTS.value,
            split=_SPLIT.value,
            output=_OUTPUT.value,
            per_class=_PER_CLASS.value,
        )


if __name__ == "__main__":
    cli.run(main, of_run=True)
