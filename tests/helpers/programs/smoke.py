"""What ``make smoke`` does with an installed package without extras: import, predict, README's snippets, a message.

Run with Python's -P, so that the installed package is what is imported.
"""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from PIL import Image

import flax_mnv2
from flax_mnv2.predict.command import main as predict

ROOT = pathlib.Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"


def main(folder: pathlib.Path) -> None:
    """Writes into ``folder``, which is made."""
    assert ROOT not in pathlib.Path(flax_mnv2.__file__).parents or sys.prefix in flax_mnv2.__file__, "not installed"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Python {sys.version.split()[0]}, JAX {jax.__version__}, flax_mnv2 {flax_mnv2.__version__}", flush=True)

    model = flax_mnv2.MobileNetV2ForImageClassification(flax_mnv2.variant_config(flax_mnv2.list_models("*_96")[0]))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    flax_mnv2.save_pretrained(folder / "model", model, variables, flax_mnv2.MobileNetV2ImageProcessor())
    Image.new("RGB", (300, 200), "orange").save(folder / "orange.png")
    assert predict([str(folder / "orange.png"), "--model", str(folder / "model"), "--top", "1"]) == 0

    if SHARED.is_dir():
        sys.path.append(str(ROOT / "tests" / "helpers"))
        import snippets

        for page in ("README.md", "docs/how_to/library.md"):
            snippets.check_page(ROOT / page, SHARED, folder)
        print("README's snippets print what they say", flush=True)

    command = [sys.executable, "-P", str(ROOT / "train.py"), "--config", "configs/quickstart.py", "--workdir", "run"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result
    assert "flax-mnv2[train]" in result.stderr, result.stderr
    print(result.stderr, end="", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
