"""The Python in the documentation's pages, and what it says that it prints."""

import contextlib
import io
import pathlib
import re


def python_of(page: pathlib.Path) -> str:
    """Returns all Python blocks of a page, in one piece."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))


def printed(code: str, name: str, **names: object) -> list[str]:
    """Runs code with some names and returns the lines that it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, name, "exec"), {"__name__": "snippets", **names})
    return output.getvalue().splitlines()


def check_page(page: pathlib.Path, shared: pathlib.Path | None, folder: pathlib.Path) -> int:
    """Runs a page from top to bottom; what it prints must be what stands beside each ``print``. Returns how many.

    Hub ids, photos and downloads become those of the shared data, ``out/`` becomes ``folder``.
    """
    code = python_of(page)
    expected = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert len(expected) == code.count("print("), f"{page.name}: a print says nothing of what it prints"
    places = {'"google/': shared and shared / "weights", '"photos/': shared and shared / "images", '"out/': folder}
    places['"weights/'] = shared and shared / "weights" / "tflite"
    for name, place in places.items():
        code = code.replace(name, f'"{place}/')
    assert printed(code, page.name) == expected
    return len(expected)
