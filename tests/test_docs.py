"""The documentation builds as a site without a warning: no broken link, no public name without a docstring."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_site_builds_strictly_and_asks_nothing_of_others(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    fields = (tmp_path / "reference" / "config.html").read_text()
    assert "detection.feature_layers" in fields  # filled in from the code
    assert "<!-- generated" not in fields
    foreign = ('src="http', 'href="https://fonts', "unpkg.com", "googleapis")
    pages = [path for path in tmp_path.rglob("*.html") if any(mark in path.read_text() for mark in foreign)]
    assert pages == []


def test_files_that_pages_name_are_there():
    others = ("reliability.md", "tpu_pods.md")  # they name files of other projects and of clones, too
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        (page.name, name.rstrip("./"))
        for page in pages
        if page.name not in others
        for name in re.findall(
            r"(?<![\w/])((?:tests|configs|flax_mnv2|benchmarks|docs)/[a-z_0-9/.]+)", page.read_text()
        )
    }
    assert sorted(where for where in named if not (ROOT / where[1]).exists()) == []
