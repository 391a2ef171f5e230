"""How fuzz tests run: the same cases every time, kept nowhere; some of them in ``make test``, all in ``make soak``."""

import os

import hypothesis
from hypothesis import strategies as st

FEW = 200  # of each kind, unless FUZZ=all
# What UTF-8 can encode, as ``st.text`` has it; without trying a million characters in each process that asks.
CHARACTERS = st.characters(exclude_categories=("Cs",))


def cases(count: int) -> hypothesis.settings:
    """So many, or ``FEW`` of them, as ``max_examples`` says; from a seed that follows from the test's own code."""
    return hypothesis.settings(
        max_examples=count if os.environ.get("FUZZ") == "all" else min(count, FEW),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
