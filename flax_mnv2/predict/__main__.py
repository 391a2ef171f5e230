"""The door of ``python -m flax_mnv2.predict``."""

import sys

from flax_mnv2.predict.command import main

if __name__ == "__main__":
    sys.exit(main())
