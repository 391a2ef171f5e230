"""The Python in README and the documentation runs as it stands and prints what is written beside it."""

import pathlib

import pytest
import snippets

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Tutorials have a test of their own.
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "tutorials" not in path.parts and snippets.python_of(path)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_print_what_they_say(page, shared, tmp_path):
    assert snippets.check_page(page, shared, tmp_path) >= 1
    if page.name == "library.md":
        assert (tmp_path / "my_deeplab" / "model.safetensors").is_file()


def test_the_readme_stays_a_page_to_start_from():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
