"""The door of ``python -m flax_mnv2.tools.tpu_compile``."""

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    from flax_mnv2.tools.tpu_compile.command import define_flags, main
    from flax_mnv2.training import cli

if __name__ == "__main__":
    define_flags()
    cli.run(main)
