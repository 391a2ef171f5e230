"""The door of ``python -m flax_mnv2.convert``."""

import sys

from flax_mnv2.weights.command import main

if __name__ == "__main__":
    sys.exit(main())
