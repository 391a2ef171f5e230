"""Where the convert command writes: nothing of others is touched, and what is cut leaves nothing that looks whole."""

import pytest
from converting import CONFIG, TORCH_LIKE, convert, refused

from flax_mnv2 import CheckpointError, ConfigError, from_pretrained, save_pretrained
from flax_mnv2.convert import main
from flax_mnv2.weights import writing
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import make_model

pytestmark = pytest.mark.usefixtures("one_variant")


def test_a_run_is_never_overwritten(run_checkpoint, make_folder, capsys):
    folder, _ = run_checkpoint
    source = make_folder()
    assert "checkpoint of a training run" in refused(capsys, source, folder, "--overwrite")
    assert (folder / "variables").is_dir()


def test_destinations_are_guarded(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    libraries = ("torchvision", "timm", "vainf", "smp", "mmseg", "tf_detection", "mmdet")
    assert f"file; say which: {' or '.join(f'--to {name}' for name in libraries)}." in refused(
        capsys, source, tmp_path / "out.pth"
    )
    assert "format hf is a folder" in refused(capsys, source, tmp_path / "out.pth", "--to", "hf")
    assert "format torchvision is a file" in refused(
        capsys, make_folder(config=TORCH_LIKE, name="b"), tmp_path / "x", "--to", "torchvision"
    )
    assert "is in the format hf, not timm" in refused(capsys, source, tmp_path / "out", "--from", "timm")
    assert "is where the source lies" in refused(capsys, source, source, "--overwrite", "--to", "hf")
    assert "No folder" in refused(capsys, tmp_path / "absent", tmp_path / "out")
    assert "No file or folder absent.pth" in refused(capsys, "absent.pth", tmp_path / "out")
    assert "could not be downloaded" in refused(capsys, "owner/name", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "exists and is not empty" in refused(capsys, source, tmp_path / "full")
    assert "holds no model" in refused(capsys, source, tmp_path / "full", "--overwrite")
    convert(source, tmp_path / "out")
    assert "exists and is not empty" in refused(capsys, source, tmp_path / "out")
    convert(source, tmp_path / "out", "--overwrite", "--to", "hf")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"config.json", "preprocessor_config.json", "model.safetensors"}, "what lay there before is gone"
    (source / "preprocessor_config.json").unlink()
    convert(source, tmp_path / "out", "--overwrite")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"config.json", "extra_tensors.safetensors", "variables"}
    assert_same(from_pretrained(tmp_path / "out")[1], from_pretrained(source)[1])


@pytest.mark.parametrize("layout", ["hf", "flax"])
def test_a_cut_write_leaves_nothing_that_looks_whole(make_folder, tmp_path, monkeypatch, random_variables, layout):
    source = make_folder()
    model = make_model(CONFIG, "classification")
    write = writing.write_text

    def cut(path, text):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(writing, "write_text", cut)
    for folder in (tmp_path / "new", source):
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(folder, model, random_variables(CONFIG, "classification", seed=9), layout=layout)
        with pytest.raises((CheckpointError, ConfigError), match=r"No folder|No model config"):
            from_pretrained(folder)
    assert not (tmp_path / "new").exists()


def test_a_cut_write_takes_nothing_of_others_away(make_folder, tmp_path, monkeypatch):
    checkpoint = open_weights(make_folder()).checkpoint()

    def cut(path, text):
        (path.parent / "thesis.tex").write_text("came meanwhile")
        raise OSError("the disk is full")

    monkeypatch.setattr(writing, "write_text", cut)
    with pytest.raises(OSError, match="the disk is full"):
        writing.write(checkpoint, tmp_path / "new", "hf")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("to", ["hf", "flax", "timm"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupt_is_one_word_and_leaves_nothing(make_folder, tmp_path, monkeypatch, capsys, to, exists):
    source, target = make_folder(config=TORCH_LIKE), tmp_path / "out"
    if exists:
        target.mkdir()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([str(source), str(target), "--to", to]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert target.exists() == exists
    assert not exists or not list(target.iterdir())


def test_the_source_is_never_written_to(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE)
    before = {path: path.read_bytes() for path in source.iterdir()}
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked").mkdir()
    for path in before:
        (tmp_path / "linked" / path.name).symlink_to(path)
    for place, target, to in (
        (source, source / "model.safetensors", "timm"),
        (source, source / "new.safetensors", "timm"),
        (source, source / "below" / "new", "flax"),
        (source, tmp_path / "link", "hf"),
        (source, tmp_path / "link" / "new", "hf"),
        (tmp_path / "link", source, "hf"),
        (tmp_path / "linked", source / "model.safetensors", "timm"),
        (source / "model.safetensors", source, "hf"),
        (source / "model.safetensors", tmp_path / "link" / "model.safetensors", "timm"),
    ):
        message = refused(capsys, place, target, "--to", to, "--overwrite")
        assert message == f"error: {target} is where the source lies; name another place.\n"
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    convert(source / "model.safetensors", source / "beside.safetensors", "--to", "timm")  # a file beside a file
    convert(source, tmp_path / "flax")
    assert "where the source lies" in refused(capsys, tmp_path / "flax", tmp_path / "flax" / "variables" / "x")


def test_what_killed_writes_left_counts_as_nothing(make_folder, tmp_path, capsys):
    source, target = make_folder(), tmp_path / "out"
    target.mkdir()
    (target / ".model.safetensors.12.tmp").write_text("x")
    (target / "variables.orbax-checkpoint-tmp-7").mkdir()
    (target / "variables.orbax-checkpoint-tmp-7" / "_METADATA").write_text("x")
    convert(source, target)
    left = {path.name for path in target.iterdir()}
    assert left == {"config.json", "preprocessor_config.json", "extra_tensors.safetensors", "variables"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("x")
    assert "exists and is not empty" in refused(capsys, source, tmp_path / "other")


def test_a_file_in_the_way_is_named(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE)
    (tmp_path / "plain").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "place")
    (tmp_path / "folder.pth").mkdir()
    for target, options, message in (
        ("plain", [], "plain is a file, where a folder is needed"),
        ("plain", ["--overwrite"], "plain is a file, where a folder is needed"),
        ("plain/a/b", [], "plain is a file, where a folder is needed"),
        ("plain/a.pth", ["--to", "timm"], "plain is a file, where a folder is needed"),
        ("dangling", [], "dangling is a link to nothing, where a folder is needed"),
        ("folder.pth", ["--to", "timm"], "folder.pth is a folder, where a file is to be written"),
    ):
        assert message in refused(capsys, source, tmp_path / target, *options)
    assert (tmp_path / "plain").read_text() == "x"


def test_home_folders_of_nobody_are_named(make_folder, tmp_path, capsys):
    for source, target in (("~nosuchuser/x", tmp_path / "out"), (make_folder(), "~nosuchuser/x")):
        message = refused(capsys, source, target)
        assert message.startswith("error: ~nosuchuser/x begins with a user's home folder")
    with pytest.raises(CheckpointError, match="home folder"):
        open_weights("~nosuchuser/x").processor()
