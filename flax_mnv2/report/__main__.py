"""Writes the report on a run: python -m flax_mnv2.report WORKDIR"""

import sys

from flax_mnv2.errors import needs_extra

with needs_extra("train", __name__):
    from flax_mnv2.report.command import main

if __name__ == "__main__":
    sys.exit(main())
