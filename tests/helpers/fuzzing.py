"""How the fuzz tests run: the same cases every time, kept nowhere."""

import hypothesis


def cases(count: int) -> hypothesis.settings:
    """So many, from a seed that follows from the test's own code."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
