"""What is compiled once: a model's function, with which its files of all formats are compared."""

import pytest

from flax_mnv2.export import exporting

_SERVED = {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """Files of one model get one function, whatever their format and number of images; jit knows it again."""
    original = exporting.serving_function

    def serving_function(model, variables, settings, *, deployed=None):
        chosen = (settings.postprocessing, repr(settings.normalization), settings.size, deployed is not None)
        key = (model, id(variables), *chosen)
        if key not in _SERVED:
            made = original(model, variables, settings, deployed=deployed)
            _SERVED[key] = (*made, variables)  # kept, so that its id stays its own
        return _SERVED[key][:2]

    monkeypatch.setattr(exporting, "serving_function", serving_function)
    yield
    _SERVED.clear()
