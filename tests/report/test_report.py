"""The report on a run: all sections, everything escaped, nothing fetched; workdirs here are written by hand."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.report.charts import chart, thinned, ticks
from flax_mnv2.report.command import main
from flax_mnv2.report.finished import report_finished
from flax_mnv2.report.html import Html, element, number, text
from flax_mnv2.report.page import write_report
from flax_mnv2.report.pictures import picture
from flax_mnv2.training.config.defaults import default_config

SCRIPT = "<script>alert('a & b')</script>"
LABELS = ["cat", SCRIPT]
SECTIONS = ["curves", "evaluation", "data", "config", "environment"]


class _Page(html.parser.HTMLParser):
    """What a browser would find in a page: elements with their attributes, texts by section, whether all are closed."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.texts, self.open, self._section = [], {}, [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "wbr"):
            self.open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        self.texts[self._section] = self.texts.get(self._section, "") + data + "\n"


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def _begun(folder, task, **changes):
    """A workdir with a config and a few lines of metrics."""
    config = default_config(task)
    config.num_steps = 4
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    _write(folder / "config.json", config.to_dict())
    train = [{"step": at, "split": "train", "loss": 1 / at, "learning_rate": 0.1 / at} for at in (1, 2, 4)]
    (folder / "metrics.jsonl").write_text(_lines(*train, {"step": 3, "split": "train", "loss": float("nan")}))
    sizes = {"train": {"digest": "d", "sizes": [1200, 2**21]}, "val": {"digest": "e", "sizes": [30, 2**20]}}
    _write(folder / "inputs.json", {"examples": sizes, "labels": LABELS})
    return folder


def _evaluated(folder):
    """A classifier's workdir with all that there can be."""
    _begun(folder, "classification", **{"data.eval_split": "val", "optimizer.learning_rate": 0.25})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(_lines(*({"step": at, "split": "val", "top1": at / 8, "top5": 1.0} for at in (2, 4))))
    start = {
        "step": 0,
        "host": SCRIPT,
        "commit": "abc-dirty",
        "versions": {"jax": "0.10"},
        "command": ["train.py", SCRIPT],
    }
    data = {"name": "photos", "notes": [f"no image of {SCRIPT}"], "counted": "images"}
    data["fractions"] = {"train": [0.75, 0.25], "val": [0.5, 0.5]}
    _write(folder / "run.json", {"data": data, "starts": [start, {**start, "step": 2, "host": "second"}]})
    for name in ("val_step_2", "val_step_4"):
        rows = [{"id": at, "label": label, "recall": 0.125, "f1": None} for at, label in enumerate(LABELS)]
        metrics = {
            "model": name,
            "split": "val",
            "num_examples": 30,
            "top1": 0.5,
            "per_class": rows,
            "absent": [SCRIPT],
        }
        _write(folder / "evaluation" / name / "metrics.json", metrics)
    last = folder / "evaluation" / "val_step_4"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(last / "confusion_matrix.png")
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(last / "predictions.png")
    top = [{"label": at, "label_name": LABELS[at], "probability": 0.9 - 0.8 * at} for at in (0, 1)]
    rows = [{"file_name": f"{SCRIPT}/{at}.jpg", "label": at, "label_name": LABELS[at], "top5": top} for at in (0, 1)]
    (last / "predictions.jsonl").write_text(_lines(*rows))
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    return _evaluated(tmp_path_factory.mktemp("runs") / f"a {SCRIPT.replace('/', '')}")


@pytest.fixture(scope="module")
def page(evaluated):
    path = write_report(evaluated)
    assert path == evaluated / "report.html"
    return path.read_text(encoding="utf-8")


def test_nothing_is_fetched_run_or_left_open(page):
    found = _Page(page)
    assert found.open == []
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in attributes.keys() & {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}:
            assert attributes[name].startswith({"a": "#", "img": "data:image/"}[tag])
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|http", style)
    [policy] = [
        value["content"] for tag, value in found.elements if value.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page) < 1_000_000


def test_every_text_of_the_user_is_escaped(page):
    assert "<script" not in page.lower()
    texts = _Page(page).texts
    assert texts[""].count("a <script>alert('a & b')<script>: classification") == 2  # title and heading
    for name in ("evaluation", "data", "environment"):
        assert SCRIPT in texts[name]


def test_sections_say_what_lies_in_the_folder(page):
    found = _Page(page)
    assert [attributes["id"] for tag, attributes in found.elements if tag == "section"] == SECTIONS
    titles = {attributes["aria-label"] for tag, attributes in found.elements if tag == "svg"}
    assert titles == {"training loss", "top-1 accuracy, evaluation", "top-5 accuracy, evaluation", "learning rate"}
    assert "The run is finished." in found.texts[""]
    assert "1 logged losses are not finite" in found.texts["curves"]
    evaluation = found.texts["evaluation"]
    assert "By eval.py: val_step_4" in evaluation  # that of the best checkpoint
    assert "All 2 evaluations" in evaluation
    assert re.search(r"per class: 2\nlabel\nrecall\nf1\ncat\n0\.1250\n–", evaluation)
    assert f"{SCRIPT}/1.jpg\n{SCRIPT}\ncat, 90.0 %\n0.8000\n" in evaluation.replace("'\n", "'")
    assert evaluation.index(f"{SCRIPT}/1.jpg") < evaluation.index(f"{SCRIPT}/0.jpg")  # the worst first
    kinds = [attributes["src"][:15] for tag, attributes in found.elements if tag == "img"]
    assert kinds == ["data:image/png;", "data:image/jpeg"]  # what is large is compressed
    assert "1,200 examples, 2.0 MiB" in found.texts["data"]
    assert "75.00%" in found.texts["data"]
    assert re.search(r"\noptimizer\.\nlearning_rate\n0\.25\n0\.007\n", found.texts["config"])
    assert [attributes["class"] for tag, attributes in found.elements if tag == "tr" and attributes] == ["changed"] * 2
    assert found.texts["environment"].index("second") < found.texts["environment"].index("1 earlier starts")


def test_a_run_without_an_evaluation_says_how_to_make_one(tmp_path):
    folder = _begun(tmp_path / "run", "segmentation")
    found = _Page(write_report(folder, tmp_path / "other.html").read_text(encoding="utf-8"))
    assert f"python eval.py --workdir {folder}" in found.texts["evaluation"]
    assert "has not been evaluated in the course of training" in found.texts["evaluation"]
    assert "Not known: the run was begun by an earlier version" in found.texts["environment"]
    assert "was not counted" in found.texts["data"]
    assert not (folder / "report.html").exists()


def test_a_run_that_has_only_begun(tmp_path):
    _write(tmp_path / "config.json", default_config("detection").to_dict())
    found = _Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "has not reached its first step" in found.texts[""]
    assert "0 of" in found.texts["config"]


@pytest.mark.parametrize(
    ("task", "row", "worst"),
    [
        (
            "multi_label_classification",
            lambda at: {"labels": ["cat"] if at else [], "predicted": ["cat"], "probability": {"cat": 0.9, "dog": 0.1}},
            "0.jpg\nnone of the classes\ncat\n0.5000\n",
        ),
        (
            "regression",
            lambda at: {"values": {"age": 2.0 * at}, "predicted": {"age": 1.5}},
            "0.jpg\nage 0\nage 1.5\n1.5000\n",
        ),
    ],
)
def test_the_worst_example_of_other_tasks(tmp_path, task, row, worst):
    _begun(tmp_path, task)
    _write(tmp_path / "evaluation" / "val_step_4" / "metrics.json", {"split": "val"})
    rows = [{"file_name": f"{at}.jpg", **row(at)} for at in (1, 0)]
    (tmp_path / "evaluation" / "val_step_4" / "predictions.jsonl").write_text(_lines(*rows))
    evaluation = _Page(write_report(tmp_path).read_text(encoding="utf-8")).texts["evaluation"]
    assert f"\nerror\n{worst}1.jpg" in evaluation


def test_damaged_files_are_left_out(tmp_path):
    folder = _evaluated(tmp_path / "run")
    last = folder / "evaluation" / "val_step_4"
    (last / "predictions.jsonl").write_text('{"label": 0}\n')
    (last / "predictions.png").write_bytes(b"\x89PNG")
    (folder / "evaluation" / "val_step_2" / "metrics.json").write_text("[")
    for name in ("run.json", "inputs.json"):
        (folder / name).write_text('{"data": 3, "starts": 4, "examples": [], "labels": {}}')
    found = _Page(write_report(folder).read_text(encoding="utf-8"))
    assert "predictions.jsonl cannot be used" in found.texts["evaluation"]
    assert "predictions.png cannot be shown" in found.texts["evaluation"]
    assert "All 2 evaluations" not in found.texts["evaluation"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("absent", r"absent does not exist; expected the --workdir of a training run\."),
        ("file", r"file is a file; expected"),
        ("empty", r"empty holds no run: there is no config\.json in it\. Give the folder that train\.py"),
        ("run/checkpoints/step_3", r"step_3 holds no run: .*Did you mean .*run\?"),
        ("damaged", r"Cannot read .*damaged/config\.json"),
        ("foreign", r"foreign/config\.json does not fit this version|task"),
    ],
)
def test_what_is_no_run_is_one_message(tmp_path, capsys, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    _begun(tmp_path / "run", "classification")
    (tmp_path / "run" / "checkpoints" / "step_3").mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    _write(tmp_path / "foreign" / "config.json", {"learning_rate": 1})
    assert main([str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert re.match(rf"error: .*{message}", error), error
    assert error.count("\n") == 1


def test_the_command_writes_and_says_where(tmp_path, capsys):
    folder = _begun(tmp_path / "run", "classification")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder / 'report.html'}\n"
    assert main([str(folder), "--output", str(tmp_path / "absent" / "r.html")]) == 2
    assert "Name another file with --output" in capsys.readouterr().err


def test_a_finished_run_does_not_fail_for_its_report(tmp_path, capsys, monkeypatch):
    folder = _begun(tmp_path / "run", "classification")
    report_finished(folder)
    assert capsys.readouterr().out == f"report:      {folder / 'report.html'}\n"

    def fail(_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("flax_mnv2.report.page.write_report", fail)
    report_finished(folder)
    printed = capsys.readouterr().out
    assert printed == f"warning: No report: two lines Try python -m flax_mnv2.report {folder}\n"


# ---- its parts ------------------------------------------------------------------------------------------------------


def test_text_is_escaped_once_and_forbidden_characters_go():
    assert text('<a b="c">&') == "&lt;a b=&quot;c&quot;&gt;&amp;"
    assert text(Html("<b>")) == "<b>"
    assert text("a\ud800\x00\u202eb") == "a\ufffd\ufffd\ufffdb"
    assert element("p", "<", element("b", "x"), title='"', hidden=None) == '<p title="&quot;">&lt;<b>x</b></p>'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (12345, "12,345"),
        (0.5, "0.5000"),
        (1e-5, "1e-05"),
        (1234.5, "1234"),
        ("a", "a"),
    ],
)
def test_numbers_are_readable(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.27, [0.15, 0.2, 0.25]),
        (3.0, 3.0, [3]),
        (0.0, 0.0, [0]),
        (1e-7, 3e-7, [1e-7, 1.5e-7, 2e-7, 2.5e-7, 3e-7]),
    ],
)
def test_ticks_are_round_numbers_within(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected, rel=1e-6)


def test_ticks_of_steps_are_whole():
    assert ticks(1, 4, 5, whole=True) == [1, 2, 3, 4]


def test_long_curves_are_thinned_and_keep_their_peaks():
    points = [(float(at), 0.0) for at in range(5000)]
    points[1234] = (1234.0, 9.0)
    few = thinned(points)
    assert len(few) <= 600
    assert (1234.0, 9.0) in few
    assert few == sorted(few)


def test_curves_of_equal_values_and_of_one_point_can_be_drawn():
    drawn = chart("a", {"x": [(5, 2.0)], "<y>": [(5, 2.0)]}, x_range=(5, 5))
    assert "nan" not in drawn
    assert "&lt;y&gt;" in drawn
    assert "<y>" not in drawn


def test_a_picture_says_so_if_it_is_none(tmp_path):
    (tmp_path / "worst.png").write_text("no picture")
    assert "worst.png cannot be shown" in picture(tmp_path / "worst.png")
