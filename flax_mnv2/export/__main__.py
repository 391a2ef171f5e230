"""The door of ``python -m flax_mnv2.export``."""

import sys

from flax_mnv2.export.command import main

if __name__ == "__main__":
    sys.exit(main())
