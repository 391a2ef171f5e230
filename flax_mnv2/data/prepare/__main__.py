"""The door of ``python -m flax_mnv2.data.prepare``."""

import sys

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    from flax_mnv2.data.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
