"""What people's tables say: names of the targets and a vector for each image; and what is refused, by file and line."""

import json

import numpy as np
import pytest

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.data.datasets.image_table import targets
from flax_mnv2.data.datasets.image_table.finding import read_tables
from flax_mnv2.errors import ConfigError, DataError, UserError

CAT_DOG = [[1, 0], [0, 0], [1, 1]]  # of a.jpg, b.jpg and c.jpg


def tables(folder, table="", **files):
    """Tables of a folder with these files; ``__`` in a name stands for ``/`` and ``_csv`` for ``.csv``."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_tree(folder) as tree:
        return read_tables(tree, table)


def rows(found):
    return [row for table in found for row in table.rows]


FORMS = {
    "columns": "image,cat,dog\na.jpg,1,0\nb.jpg,0,0\nc.jpg,1,1\n",
    "columns with other words": "image,cat,dog\na.jpg,True,false\nb.jpg,0.0,0\nc.jpg,1.0,TRUE\n",
    "byte order mark, CRLF, semicolons": "\ufeffimage;cat;dog\r\na.jpg;1;0\r\nb.jpg;0;0\r\nc.jpg;1;1\r\n",
    "tabs and empty lines": "image\tcat\tdog\n\na.jpg\t1\t0\nb.jpg\t0\t0\n\nc.jpg\t1\t1\n\t\t\n",
    "spaces in the head, as Roboflow has": "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 0\nc.jpg, 1, 1\n",
    "an index of pandas": ",image,cat,dog\n0,a.jpg,1,0\n1,b.jpg,0,0\n2,c.jpg,1,1\n",
    "the image in another column": "cat,dog,file_name\n1,0,a.jpg\n0,0,b.jpg\n1,1,c.jpg\n",
    "a first column of any name": "photo,cat,dog\na.jpg,1,0\nb.jpg,0,0\nc.jpg,1,1\n",
    "names by space": "fname,labels\na.jpg,cat\nb.jpg,\nc.jpg,dog cat\n",
    "names by bar": "image,tags\na.jpg,cat\nb.jpg,\nc.jpg,dog | cat\n",
    "names by semicolon": "image,labels\na.jpg,cat\nb.jpg,\nc.jpg,cat;dog\n",
    "names by comma, quoted": 'image,labels\na.jpg,cat\nb.jpg,""\nc.jpg,"cat,dog"\n',
    "names in a column of any name": "image,animals\na.jpg,cat\nb.jpg,\nc.jpg,cat dog\n",
    "lists of Python": "image,labels\na.jpg,['cat']\nb.jpg,[]\nc.jpg,\"['cat', 'dog']\"\n",
    "names among other columns": "image,width,labels\na.jpg,640,cat\nb.jpg,480,\nc.jpg,480,cat dog\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_multi_label_tables(tmp_path, form):
    found = tables(tmp_path, labels_csv=FORMS[form])
    names, vectors = targets.multi_label(found, ())
    assert names == ("cat", "dog")
    assert [row.image for row in rows(found)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == CAT_DOG


def test_names_with_spaces_need_another_separator(tmp_path):
    text = "image,labels\na.jpg,traffic light\nb.jpg,dog\n"
    found = tables(tmp_path, labels_csv=text)
    with pytest.raises(DataError, match=r"cell 'traffic light' may be one name or several\. Put \| between"):
        targets.multi_label(found, ())
    assert targets.multi_label(found, ("traffic light", "dog"))[1].tolist() == [[1, 0], [0, 1]]
    found = tables(tmp_path, labels_csv=text + "c.jpg,dog|traffic light\n")
    assert targets.multi_label(found, ())[0] == ("dog", "traffic light")


def test_numbers_as_names_are_in_their_order(tmp_path):
    names, _ = targets.multi_label(tables(tmp_path, train_csv="Id,Target\na,10 2\nb,2\n"), ())
    assert names == ("2", "10")


def test_one_name_in_two_normal_forms_is_one_class(tmp_path):
    names, _ = targets.multi_label(tables(tmp_path, t_csv="image,labels\na,caf\u00e9\nb,cafe\u0301\n"), ())
    assert names == ("caf\u00e9",)


def test_the_asked_columns_in_the_asked_order(tmp_path):
    found = tables(tmp_path, t_csv="image,cat,dog,price\na.jpg,1,0,2.5\nb.jpg,0,1,1e3\n")
    assert targets.multi_label(found, ("dog", "cat"))[1].tolist() == [[0, 1], [1, 0]]
    assert targets.regression(found, ("price",))[1].tolist() == [[2.5], [1000]]
    assert targets.regression(found, ())[0] == ("cat", "dog", "price")


def test_splits_by_column_file_and_folder(tmp_path):
    head = "image,cat"
    by_column = tables(tmp_path / "1", t_csv=f"{head},Split\na,1,Train\nb,0,VALID\nc,0,validation\nd,0,Testing\n")
    assert [row.split for row in rows(by_column)] == ["train", "val", "val", "test"]
    assert by_column[0].columns == ("cat",)
    fastai = tables(tmp_path / "2", t_csv="fname,labels,is_valid\na,cat dog,True\nb,cat,False\n")
    assert [row.split for row in rows(fastai)] == ["val", "train"]
    by_file = tables(tmp_path / "3", Valid_csv=f"{head}\nb,0\n", train_csv=f"{head}\na,1\n")
    assert [(row.split, row.image) for row in rows(by_file)] == [("train", "a"), ("val", "b")]
    roboflow = tables(tmp_path / "4", train___classes_csv=f"{head}\na,1\n", test___classes_csv=f"{head}\nb,1\n")
    assert [(row.split, row.folder) for row in rows(roboflow)] == [("train", "train/"), ("test", "test/")]


def test_hidden_answers_and_sample_submissions_are_left_out(tmp_path):
    found = tables(
        tmp_path,
        train_csv="id,image,price\n1,a.jpg,2\n",
        test_csv="id,image\n2,b.jpg\n",
        sample_submission_csv="id,price\n2,0\n",
    )
    assert [table.name for table in found] == ["train.csv"]


LABELME = {"version": "5.0.1", "flags": {"cat": True, "dog": False}, "shapes": [], "imagePath": "a.jpg"}


def test_json_files(tmp_path):
    found = tables(
        tmp_path,
        train__a_json=json.dumps(LABELME),
        train__b_json=json.dumps({**LABELME, "imagePath": "..\\b.jpg", "flags": {"cat": True, "owl": True}}),
        val__c_json=json.dumps({**LABELME, "imagePath": "c.jpg", "flags": {"dog": True}}),
    )
    names, vectors = targets.multi_label(found, ())
    assert names == ("cat", "dog", "owl")
    assert vectors.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert [row.split for row in rows(found)] == ["train", "train", "val"]


def test_json_files_of_lists_and_of_numbers(tmp_path):
    found = tables(tmp_path / "1", a_json='{"image": "x.png", "labels": ["dog", "cat"]}', b_json='{"labels": []}')
    assert [row.image for row in rows(found)] == ["x.png", "b"]
    assert targets.multi_label(found, ())[1].tolist() == [[1, 1], [0, 0]]
    found = tables(tmp_path / "2", a_json='{"image": "x.png", "values": {"age": 31}, "split": "val"}')
    assert targets.regression(found, ())[1].tolist() == [[31]]
    assert rows(found)[0].split == "val"
    assert targets.regression(tables(tmp_path / "3", a_json='{"image": "x.png", "age": 3.5}'), ())[0] == ("age",)


MULTI_LABEL_MISTAKES = {
    "neither 0 nor 1": ("image,cat,dog\na,1,0\nb,2,0\n", r"neither 0 nor 1: t\.csv, line 3, cat: '2'\. Write 0 or 1"),
    "empty cell": ("image,cat,dog\na,1,\n", r"t\.csv, line 2, dog: nothing"),
    "nan": ("image,cat,dog\na,1,nan\n", r"line 2, dog: 'nan'"),
    "minus one": ("image,cat,dog\na,1,-1\nb,-1,-1\nc,-1,1\nd,1,-1\n", r"line 2, dog: '-1'; .* and 2 more"),
    "nan among names": ("image,labels\na,cat\nb,NaN\n", r"line 3: 'NaN'.*Leave the cell of an image of no class empty"),
    "two separators": ("image,labels\na,cat|dog\nb,cat;dog\n", r"both '\|' and ';' in its cells"),
    "no name at all": ("image,labels\na,\nb,\n", r"'labels' of 2 rows names no class at all"),
    "cells without quotes": (
        "image,labels\na,cat\nb,cat,dog\n",
        r"has 2 columns, but rows of other lengths: line 3 has 3",
    ),
    "no head": ("a.jpg,1,0\nb.jpg,0,1\n", r"begins with a\.jpg,1,0, an image\. Put a line of column names above"),
    "one column": ("image\na.jpg\n", r"has the one column 'image'"),
    "a column twice": ("image,cat,Cat\na,1,0\n", r"has the column 'cat' more than once"),
    "open quotes": ('image,labels\na,"cat\nb,dog\n', r"t\.csv, line \d: .*Are its quotes closed"),
    "no rows": ("image,cat\n", r"has column names and no rows"),
    "empty": ("", r"t\.csv is empty"),
    "Latin-1": (
        "image,labels\na,caf\u00e9\n".encode("latin-1"),
        r"t\.csv is not UTF-8 text .* Save it as CSV in UTF-8",
    ),
    "split": ("image,cat,split\na,1,train\nb,0,holdout\n", r"column split has other words.*: line 3: 'holdout'"),
}


@pytest.mark.parametrize("mistake", MULTI_LABEL_MISTAKES)
def test_mistakes_are_named_with_their_line(tmp_path, mistake):
    text, message = MULTI_LABEL_MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as caught:
        targets.multi_label(tables(tmp_path, t_csv=text), ())
    assert len(str(caught.value)) < 400


REGRESSION_MISTAKES = {
    "text": ("image,age\na,3\nb,old\n", r"no finite numbers: t\.csv, line 3, age: 'old'"),
    "empty": ("image,age,size\na,3,\n", r"line 2, size: nothing"),
    "infinite": ("image,age\na,inf\n", r"line 2, age: 'inf'"),
    "too large": ("image,age\na,1e39\n", r"line 2, age: '1e39'"),
    "decimal comma": ("image;age\na;3,14\n", r"line 2, age: '3,14'\. Write numbers as 3\.14"),
    "numbering": ("id,image,age\n1,a,3\n", r"column 'id', which looks like a numbering.*--config\.data\.labels=age"),
}


@pytest.mark.parametrize("mistake", REGRESSION_MISTAKES)
def test_what_is_no_target_is_named(tmp_path, mistake):
    text, message = REGRESSION_MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        targets.regression(tables(tmp_path, t_csv=text), ())


def test_labels_that_are_not_there(tmp_path):
    found = tables(tmp_path, t_csv="image,cat\na,1\n")
    with pytest.raises(DataError, match=r"t\.csv has no column 'owl'; it has cat"):
        targets.multi_label(found, ("cat", "owl"))
    found = tables(tmp_path, t_csv="image,labels\na,cat owl\n")
    with pytest.raises(DataError, match=r"not among config\.data\.labels: t\.csv, line 2: 'owl'"):
        targets.multi_label(found, ("cat",))


def test_which_table_must_be_clear(tmp_path):
    head = "image,cat\na,1\n"
    with pytest.raises(ConfigError, match=r"several tables: x\.csv, y\.csv\. Name the one"):
        tables(tmp_path / "1", x_csv=head, y_csv=head)
    assert tables(tmp_path / "1", "y.csv")[0].name == "y.csv"
    with pytest.raises(ConfigError, match=r"config\.data\.table is 'z\.csv', which is neither a file nor a name"):
        tables(tmp_path / "1", "z.csv")
    with pytest.raises(DataError, match="holds no table"):
        tables(tmp_path / "2", readme=b"")
    for text in ("[]", '{"images": [], "annotations": []}', "{", '{"shapes": []}'):
        with pytest.raises(DataError, match=r"a\.json"):
            tables(tmp_path / "3", a_json=text)
