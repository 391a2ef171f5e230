"""The README's library snippets run as they stand and print what is written beside them."""

import contextlib
import io
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_library_snippets_print_what_they_say(shared, tmp_path):
    text = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    expected = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert len(expected) == code.count("print(") >= 6
    code = code.replace('"/tmp/', f'"{tmp_path}/').replace("../shared", str(shared))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == expected
    assert (tmp_path / "my_deeplab" / "model.safetensors").is_file()
