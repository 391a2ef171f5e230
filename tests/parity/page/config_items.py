"""The page's part on ``MobileNetV2Config``: every argument, its default, and what comes with every config."""

from items import Item

ITEMS = [
    Item("config.depth_multiplier", lambda lib: lib.MobileNetV2Config().depth_multiplier),
]
