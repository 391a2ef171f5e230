"""Hugging Face's documentation page of MobileNetV2, item by item: the same line in both libraries.

``pytest tests/parity/test_hugging_face_page.py`` counts them. The installed transformers is the judge.
"""

import warnings

import config_items
import loading_items
import model_items
import processor_items
import pytest
from items import assert_same, outcome

import flax_mnv2

ITEMS = [*config_items.ITEMS, *model_items.ITEMS, *loading_items.ITEMS, *processor_items.ITEMS]


def test_each_item_has_its_name():
    names = [item.name for item in ITEMS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_as_on_the_page(transformers, item):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of what is deprecated; where that is the item, its line looks
        theirs, ours = outcome(item.page or item.line, transformers), outcome(item.ours or item.line, flax_mnv2)
    assert_same(ours, theirs)
