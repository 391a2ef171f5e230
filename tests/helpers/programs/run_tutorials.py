"""Runs the tutorials named, one after the other, in the folder where it starts; what one writes another finds.

Each runs from top to bottom as a notebook does: a few drawings, a few steps, a network of two or three blocks.
"""

import pathlib
import re
import sys
import time

import jupytext

import flax_mnv2.layer_plan
from flax_mnv2.training import loop

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "docs" / "tutorials"
TINY = {"WEIGHTS": '""', "COUNT": "16", "SIDE": "32", "STEPS": "2", "MORE": "2"}
BLOCKS = ((8, 1, 2), (16, 1, 2), (24, 1, 2))
THREE_STAGES = ("backbone_in_your_loop",)  # it asks for features of stride 16
TINY["MAPS"] = '("layer_01/expansion", "conv_1x1")'


def code_of(page: str) -> str:
    """Returns the code cells of a page, as jupytext makes a notebook of it, with tiny settings."""
    cells = jupytext.read(FOLDER / f"{page}.md").cells
    code = "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for name, value in TINY.items():
        code = re.sub(rf"^{name} = .*$", f"{name} = {value}", code, flags=re.MULTILINE)
    return code


def main() -> None:
    """Runs the pages that the command line names."""
    loop.save_curve = lambda *_: None
    for page in sys.argv[1:]:
        start = time.process_time()
        flax_mnv2.layer_plan.BLOCK_TABLE = BLOCKS[: 3 if page in THREE_STAGES else 2]
        exec(compile(code_of(page), f"{page}.md", "exec"), {"__name__": page})
        print(f"{page}: ran in {time.process_time() - start:.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
