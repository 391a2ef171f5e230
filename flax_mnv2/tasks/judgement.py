"""How right a model was on single examples, as a report lists them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One example of an evaluation, in words for a person."""

    file_name: str
    truth: str
    prediction: str
    error: float  # more is worse; ``Task.error_words`` says of what
