"""The arithmetic and the reports of the benchmarks, and what they import; nothing here depends on a time."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from benchmarks import harness, torch_setup

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The machine with a GPU has none of these.
ABSENT = ("tensorflow_datasets", "grain", "ml_collections", "tensorflow", "cv2")


def _commands():
    return sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def test_cases_run_in_turn_after_all_are_warm():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = harness.alternate(cases, repeats=3, warmup=2, calls=2, pause=0.0)
    assert calls == list("abc") * 2 + list("aaabbbccc") * 3  # in its turn a case runs once without a clock
    assert {name: len(times) for name, times in seconds.items()} == {"a": 6, "b": 6, "c": 6}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_a_ratio_above_one_says_that_we_are_faster():
    rows = harness.summarise({"peer": [0.4, 0.8, 0.1], "ours": [0.3, 0.1, 0.2]}, work="batch 16", items=16)
    peer, ours = rows
    assert (peer["case"], peer["work"]) == ("peer", "batch 16")
    assert peer["ratio"] == pytest.approx(2.0)
    assert ours["ratio"] == 1.0
    assert peer["median ms"] == pytest.approx(400)
    assert peer["min ms"] == pytest.approx(100)
    assert peer["images/s"] == pytest.approx(40)
    assert ours["quartiles ms"] == "150 – 250"
    assert peer["seconds"] == [0.4, 0.8, 0.1]


def test_without_our_case_there_is_no_ratio_and_one_timing_is_enough():
    (row,) = harness.summarise({"peer": [0.5]})
    assert "ratio" not in row
    assert row["quartiles ms"] == "500 – 500"
    assert not any(column.endswith("/s") for column in row)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.05, "0.0500"), (1.0, "1.00"), (12.345, "12.3"), (123.4, "123"), (123456.0, "123,456")],
)
def test_numbers_have_three_digits(value, text):
    assert harness.significant(value) == text


def test_a_table_has_the_columns_of_all_rows_and_no_raw_figures():
    rows = [{"case": "ours", "ms": 1.5, "seconds": [1.0]}, {"case": "a|b", "ms": 20, "note": "x"}]
    assert harness.markdown_table(rows).splitlines() == [
        "| case | ms | note |",
        "| --- | ---: | --- |",
        "| ours | 1.50 |  |",
        "| a\\|b | 20 | x |",
    ]


def test_a_case_that_cannot_be_built_is_left_out_with_one_line(capsys):
    def missing():
        raise ImportError("nothing here\nand more")

    def failing():
        return lambda: 1 / 0

    cases = harness.build({"missing": missing, "failing": failing, "works": lambda: lambda: 7})
    assert list(cases) == ["works"]
    assert capsys.readouterr().out.splitlines() == [
        "skipped missing: ImportError: nothing here",
        "skipped failing: ZeroDivisionError: division by zero",
    ]


def test_the_report_says_what_the_figures_depend_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    path = tmp_path / "new" / "out.json"
    rows = harness.summarise({"ours": [0.001, 0.002]}, items=2)
    harness.report("name", rows, settings={"json": path, "batch": 2}, json_path=path)
    record = json.loads(path.read_text())
    assert record["benchmark"] == "name"
    assert record["settings"] == {"json": str(path), "batch": 2}
    assert record["rows"][0]["seconds"] == [0.001, 0.002]
    assert {"python", "jax", "jaxlib", "flax"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["memory_gib"] > 0
    assert record["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert {"date", "command", "commit"} <= record.keys()
    assert "| case | median ms |" in capsys.readouterr().out


def test_common_options(capsys):
    arguments = harness.parse_arguments("name", None, argv=["--peers", "a,b", "--repeats", "3"])
    assert (arguments.peers, arguments.repeats, arguments.quick) == (("a", "b"), 3, False)
    assert arguments.json == pathlib.Path("runs/benchmarks/name.json")
    assert harness.parse_arguments("name", None, argv=["--peers="]).peers == ()
    with pytest.raises(SystemExit):
        harness.parse_arguments("name", None, argv=["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", _commands())
def test_every_benchmark_is_a_command_and_explains_itself(name, monkeypatch, capsys):
    """As ``python -m`` runs it, in this process."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_the_model_benchmarks_need_nothing_but_jax_and_flax():
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}));"  # importing one of them raises
        "from benchmarks import inference, train_step, startup, workloads, peers; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


@pytest.fixture
def one_block(monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))


@pytest.fixture
def no_torch(monkeypatch):
    from benchmarks.torch_setup import import_torch

    import_torch.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    yield
    import_torch.cache_clear()


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_training_step_is_timed_where_the_peers_are_missing(one_block, no_torch, task, tmp_path, capsys):
    from benchmarks import train_step

    path = tmp_path / "out.json"
    options = f"--task {task} --variant 0.35_96 --size 33 --batches 2 --repeats 2 --peers transformers,nonsense"
    train_step.main([*options.split(), "--json", str(path)])
    printed = capsys.readouterr().out
    assert "skipped nonsense: no such case" in printed
    assert "skipped transformers: ImportError: torch is not installed" in printed
    assert "finite" in printed
    (row,) = json.loads(path.read_text())["rows"]
    assert row["case"] == "ours"
    assert row["loss"] > 0
    assert row["compile s"] > 0


def test_inference_is_checked_and_timed(one_block, no_torch, tmp_path, capsys):
    from benchmarks import inference

    path = tmp_path / "out.json"
    options = "--variant 0.35_96 --size 33 --batches 1,3 --repeats 2 --peers ours-apply,torchvision"
    inference.main([*options.split(), "--json", str(path)])
    printed = capsys.readouterr().out
    assert printed.count("ours: logits within") == 2
    assert "skipped torchvision: ImportError: torch is not installed" in printed
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == ["ours", "ours-apply"] * 2
    assert rows[0]["work"].endswith("33², float32, batch 1")


def test_what_the_peers_are_imported_with_is_there():
    assert torch_setup.TORCHVISION_OPS.is_file()


def test_wrong_answers_are_not_timed():
    import numpy as np

    from benchmarks import inference

    bench = inference.Inference("classification", "0.35_96", 33, "float32", gpu=False)
    right = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    bench._expected = lambda library: right
    case = bench._checked("a", lambda: right, "transformers", to_numpy=np.asarray)
    assert case() is right
    with pytest.raises(ValueError, match="wrong answers are not timed"):
        bench._checked("a", lambda: right + 0.1, "transformers", to_numpy=np.asarray)
    with pytest.raises(ValueError, match="shape"):
        bench._checked("a", lambda: right[:, :4], "transformers", to_numpy=np.asarray)


def test_labels_have_some_void_pixels_and_every_class_fits():
    from benchmarks import workloads

    config = workloads.make_config("segmentation", "1.0_224", image_size=65)
    labels = workloads.random_labels("segmentation", config, 2)
    assert labels.shape == (2, 65, 65)
    assert 0 < (labels == 255).mean() < 0.1
    assert labels[labels != 255].max() < config.num_labels
    assert workloads.random_labels("classification", config, 4).shape == (4,)
