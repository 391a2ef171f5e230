"""Which files ``python -m flax_mnv2.predict`` takes, and the names that results get."""

import pathlib

import predicting
import pytest

from flax_mnv2.predict import command as predict
from flax_mnv2.predict.inputs import find_images, result_stems


def test_a_folder_stands_for_all_images_below_it(photos, tmp_path):
    (photos / "notes.txt").write_text("")
    (photos / "._a.png").write_text("")
    predicting.write(photos / ".cache" / "d.png")
    predicting.write(photos / "out" / "e.png")
    found = find_images([str(photos)], exclude=photos / "out")
    expected = ["a.png", "b.jpg", "broken.jpg", "text.png", "sub/c.PNG"]
    assert found.files == [photos / name for name in expected]
    assert found.failures == []
    assert found.summary() == "passed over 1 file not named like images: .txt 1"
    found = find_images([str(photos / "out")], exclude=photos / "out")
    assert found.files == [photos / "out" / "e.png"]  # named itself


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".AVIF", ".webp", ".gif", ".tif", ".jp2", ".ppm", ".mpo"])
def test_every_ending_of_a_format_that_is_read(tmp_path, suffix):
    predicting.write(tmp_path / f"a{suffix}")
    assert [file.name for file in find_images([str(tmp_path)]).files] == [f"a{suffix}"]


def test_images_that_are_not_read_are_listed_with_the_reason(classifier, tmp_path, capsys):
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("phone.HEIC", "camera.NEF", "logo.svg", "labels.csv", "README"):
        (folder / name).touch()
    predicting.write(folder / "a.png")
    found = find_images([str(folder)])
    assert [(pathlib.Path(name).name, reason.partition(" is ")[0]) for name, reason in found.failures] == [
        ("camera.NEF", "a camera's raw format"),
        ("logo.svg", "SVG"),
        ("phone.HEIC", "HEIC"),
    ]
    status, out, err = predicting.run(capsys, folder, "--model", classifier, "--top", 1)
    assert status == predict.SOME_FAILED_STATUS
    assert "a.png" in out
    assert "phone.HEIC: HEIC is not read here. Convert it to JPEG or PNG." in err
    assert "passed over 2 files not named like images: no ending 1, .csv 1" in err


def test_a_name_that_begins_with_a_tilde_is_a_name(photos, classifier, monkeypatch, capsys):
    (photos / "a.png").rename(photos / "~nobody.png")
    monkeypatch.chdir(photos)
    status, out, _ = predicting.run(capsys, ".", "--model", classifier, "--top", 1)
    assert status == predict.SOME_FAILED_STATUS  # of the two broken files
    assert "~nobody.png" in out
    predicting.stops(capsys, "home folder", ".", "--model", "~no-such-user/model")


def test_patterns_and_repetitions(photos, monkeypatch):
    monkeypatch.chdir(photos)
    names = ["*.png", str(photos / "a.png"), "./a.png", "**/*.PNG"]
    found = find_images(names)
    assert [file.name for file in found.files] == ["a.png", "text.png", "c.PNG"]
    assert found.failures == []
    predicting.write(photos / "x[1].png")
    assert find_images(["x[1].png"]).files == [pathlib.Path("x[1].png")]


def test_what_leads_to_no_image_is_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), str(tmp_path / "absent.png"), str(tmp_path / "*.tiff"), "x" * 5000]
    found = find_images([*names, str(photos / "a.png")])
    assert found.files == [photos / "a.png"]
    assert [name for name, _ in found.failures] == names
    reasons = [reason for _, reason in found.failures]
    assert "no image in this folder; looked for .jpg" in reasons[0]
    assert reasons[1:] == ["no such file or folder", "no file matches this pattern", "no such file or folder"]


def test_results_get_names_of_their_own(tmp_path):
    files = [tmp_path / name for name in ("a/x.png", "b/x.jpg", "b/X.gif", "a/x_2.png", "y.png", "y_mask.png")]
    assert result_stems(files, tmp_path / "out", ("_mask.png",)) == ["x", "x_2", "X_3", "x_2_2", "y", "y_mask"]
    # Beside the photos themselves, y's mask would replace y_mask.png.
    assert result_stems(files, tmp_path, ("_mask.png",))[-2:] == ["y_2", "y_mask"]
