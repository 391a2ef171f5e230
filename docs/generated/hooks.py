"""What mkdocs runs while it builds: pages of the reference have marks that the code itself fills in.

A mark is a line ``<!-- generated: NAME -->`` with one of ``GENERATORS``; on a code host it shows nothing. A public name
without a docstring ends the build.
"""

import pathlib
import re
import sys
from collections.abc import Callable, Mapping

from mkdocs.exceptions import PluginError

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from generated import api, commands, fields, networks  # noqa: E402

GENERATORS: Mapping[str, Callable[[], str]] = {
    "api": api.page,
    "fields": fields.page,
    "data_sets": fields.data_sets,
    "commands": commands.page,
    "networks": networks.page,
}
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Returns a page's text with its marks filled in."""
    del config, files

    def fill(mark: re.Match) -> str:
        if mark[1] not in GENERATORS:
            raise PluginError(
                f"{page.file.src_uri}: nothing generates {mark[1]!r}; docs/generated/hooks.py has what does."
            )
        return GENERATORS[mark[1]]()

    return _MARK.sub(fill, markdown)
