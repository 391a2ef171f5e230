"""The command among other programs: pipes, terminals, Ctrl-C; and in a process of its own."""

import io
import pathlib
import subprocess
import sys

import predicting

from flax_mnv2 import MobileNetV2ForImageClassification
from flax_mnv2.predict import command as predict

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_interruption_and_a_reader_that_left(classifier, photos, monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "predict_files", interrupted)
        assert predicting.run(capsys, photos, "--model", classifier) == (130, "", "interrupted\n")

    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

        def fileno(self):
            return file.fileno()

    with (tmp_path / "stdout").open("wb", buffering=0) as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        assert predict.main([str(photos / "a.png"), "--model", classifier]) == 141
        file.write(b"lost")  # what is still printed at exit goes nowhere
    assert (tmp_path / "stdout").read_bytes() == b""


def test_a_terminal_sees_a_bar_and_nobody_else_does(classifier, photos, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        status, out, _ = predicting.run(capsys, photos / "a.png", photos / "b.jpg", "--model", classifier, "--json")
    assert status == 0
    assert len(predicting.records(out)) == 2
    assert "0/2 [" in terminal.getvalue()
    assert predicting.run(capsys, photos / "a.png", "--model", classifier)[2] == ""


def test_the_command_itself_is_quiet_light_and_honest(tmp_path, photos):
    """As ``python -m`` runs it, with sixteen blocks: only records on stdout, nothing heavy imported."""
    folder = predicting.save(tmp_path / "model", MobileNetV2ForImageClassification)
    script = (
        "import atexit, runpy, sys; "
        "heavy = {'torch', 'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'cv2', 'absl.app'}; "
        "atexit.register(lambda: print(*heavy & set(sys.modules), file=sys.stderr)); "
        "runpy.run_module('flax_mnv2.predict', run_name='__main__', alter_sys=True)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(photos), "--model", folder, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == predict.SOME_FAILED_STATUS, result.stderr
    assert len(predicting.records(result.stdout)) == 3
    *failures, heavy = result.stderr.splitlines()
    assert len(failures) == 2
    assert heavy == ""
