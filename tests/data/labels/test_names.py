"""Label files of many tools: the same three names, in their order, or a refusal; never off by one."""

import json

import pytest

from flax_mnv2.data.labels.names import LabelNames, read_labels
from flax_mnv2.errors import ConfigError

NAMES = ("background", "traffic light", "dog")
COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))

PLAIN = {
    "names.txt": "background\n\n traffic light \r\ndog\n",
    "commented.txt": "# classes\nbackground\n// things\ntraffic light\ndog\n",
    "one_line.txt": "background, traffic light,dog\n",
    "labelme.txt": "__ignore__\nbackground\ntraffic light\ndog\n",
    "ids.txt": "0 background\n1 traffic light\n2 dog\n",
    "ids_with_colons.txt": "0: background\n1: traffic light\n2: dog\n",
    "any_order.txt": "2\tdog\n0\tbackground\n1\ttraffic light\n",
    "names_first.txt": "background 0\ntraffic light 1\ndog 2\n",
    "names_with_colons.txt": "background: 0\ntraffic light: 1\ndog: 2",
    "ids.csv": "id,name\n0,background\n1,traffic light\n2,dog\n",
    "roboflow.csv": 'Pixel Value, Class\n0, background\n1, "traffic light"\n2, dog\n',
    "semicolons.csv": "name;id\nbackground;0\ntraffic light;1\ndog;2\n",
    "column.csv": "name\nbackground\ntraffic light\ndog\n",
    "list.json": json.dumps(NAMES),
    "id2label.json": json.dumps(dict(enumerate(NAMES))),
    "config.json": json.dumps({"id2label": dict(enumerate(NAMES)), "label2id": {}}),
    "label2id.json": json.dumps({"dog": 2, "background": 0, "traffic light": 1}),
}
COLORED = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ntraffic light:128,0,0::\ndog:0,128,0::\n",
    "short.txt": "background:0,0,0\ntraffic light:128,0,0\ndog:0,128,0\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\ntraffic light,128,0,0\ndog,0,128,0\n",
    "with_ids.csv": "id;name;r;g;b\n0;background;0;0;0\n1;traffic light;128;0;0\n2;dog;0;128;0\n",
    "label_colors.txt": "0 0 0\tbackground\n128 0 0\ttraffic light\n0 128 0\tdog\n",
    "spaces.txt": "background 0 0 0\ntraffic light 128 0 0\ndog 0 128 0\n",
}


@pytest.mark.parametrize("name", PLAIN | COLORED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_forms(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_text((PLAIN | COLORED)[name], encoding=encoding)
    assert read_labels(str(path), 0) == LabelNames(NAMES, COLORS if name in COLORED else ())


def test_a_list_and_a_number():
    assert read_labels("background, traffic light,dog", 3) == LabelNames(NAMES)
    assert read_labels("", 2) == LabelNames(("class_0", "class_1"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0\n1\n2\n", ("0", "1", "2")),
        ("type 1\ntype 2\n", ("type 1", "type 2")),
        ("3d printer\ncat's eye\nC# (code)\n", ("3d printer", "cat's eye", "C# (code)")),
        ("wall\nbuilding, edifice\nsky\n", ("wall", "building, edifice", "sky")),
        ("_background_\ncat\n", ("_background_", "cat")),
        ("cafe\u0301\ndog\n", ("caf\u00e9", "dog")),
        ("sky:1,2,3::\nroad:::\n", ("sky", "road")),  # CVAT where a label has no colour
    ],
)
def test_names_of_all_sorts(tmp_path, text, names):
    (tmp_path / "x.txt").write_text(text)
    assert read_labels(str(tmp_path / "x.txt"), 0) == LabelNames(names)


def test_ids_from_one(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("1 cat\n2 dog\n")
    assert read_labels(str(path), 0, first_id=1).names == ("cat", "dog")
    with pytest.raises(ConfigError, match=r"ids 1, 2, expected 0 … 1.*--config\.data\.reduce_labels=True"):
        read_labels(str(path), 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names:\n  0: cat\n  1: dog\n", r"is YAML.*Write a text file with one name per line"),
        ("x.txt", "names:\n- cat\n- dog\n", "no known form, such as 'names:'"),
        ("x.txt", "- cat\n- dog\n", "no known form, such as '- cat'"),
        ("x.txt", "background\nperson: standing\n", "no known form, such as 'person: standing'"),
        ("x.pbtxt", "item {\n  id: 1\n  name: 'cat'\n}\n", "no known form"),
        ("x.xml", "<labels><label>cat</label></labels>\n", "no known form"),
        ("x.csv", "Idx,Ratio,Train,Name\n1,0.15,11664,wall\n2,0.1,10,sky\n", "no known form"),
        ("x.txt", "1 dollar\n5 dollars\n10 dollars\n", r"the ids 1, 5, 10, expected 0 … 2"),
        ("x.txt", "0 cat\n0 dog\n", "the ids 0, 0, expected"),
        ("x.txt", "cat\ndog\ncat\n", "the name 'cat' more than once"),
        ("x.txt", "caf\u00e9\ncafe\u0301\n", "more than once"),
        ("x.txt", "cat:1,2,3\ndog:1,2,3\n", r"the color \(1, 2, 3\) more than once"),
        ("x.txt", "cat:1,2,3\ndog:1,2,300\n", "a color beyond 255"),
        ("x.txt", "# nothing\n", "names 0 classes"),
        ("x.json", '{"cat": "x"}', "no JSON list of names"),
        ("x.json", "[1, 2]", "no JSON list of names"),
        ("x.json", "{", "no JSON list of names"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_labels(str(tmp_path / name), 0)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match=r"cannot read .*x\.txt"):
        read_labels(str(tmp_path / "x.txt"), 0)
