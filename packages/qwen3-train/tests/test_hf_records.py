"""What a YAML may have `datasets` read: known formats, folders and names of the hub; never what runs code."""

import json
import os
import pickle

import pytest
from sft_inputs import RECORDS, loader, write_records

from qwen3_model.errors import ConfigError, FormatError
from qwen3_train.data.hf_records import load_records
from qwen3_train.settings.hf_loader import read_hf_data


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """Return a pickle, and the path that appears when somebody unpickles it."""
    sprung = tmp_path / "sprung"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(str(sprung))))
    return tmp_path / "evil.pkl", sprung


def section(tmp_path, files=None, **changes):
    values = loader(files or tmp_path / "none", tmp_path / "cache")
    values["data_loader"] |= changes
    if files is None:
        del values["data_loader"]["data_files"]
    return read_hf_data(values)


@pytest.mark.parametrize(
    "path",
    [
        "pandas",
        "Pandas",
        "sql",
        "spark",
        "generator",
        "webdataset",
        "imagefolder",
        "pickle",
        "a/b/c",
        "../nowhere",
    ],
)
def test_a_builder_that_is_no_known_format_is_refused_and_reads_nothing(tmp_path, trap, path):
    file, sprung = trap
    with pytest.raises(ConfigError, match="is no format of data_files"):
        load_records(section(tmp_path, file, path=path))
    assert not sprung.exists()


def test_a_folder_called_as_a_builder_does_not_help(tmp_path, trap, monkeypatch):
    file, sprung = trap
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pandas").mkdir()
    with pytest.raises(ConfigError, match="'pandas' is no format"):
        load_records(section(tmp_path, file, path="pandas"))
    assert not sprung.exists()


def test_a_folder_of_pickles_is_refused(tmp_path, trap):
    file, sprung = trap
    folder = tmp_path / "data"
    folder.mkdir()
    file.rename(folder / "train.pkl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.pkl\n  builder_name: pandas\n---\n",
        "utf-8",
    )
    with pytest.raises((ConfigError, FormatError)):
        load_records(section(tmp_path, path=str(folder)))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["page.tar", "page.xml", "page.h5", "page.png"])
def test_a_folder_of_another_kind_of_data_is_refused(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(b"<a/>")
    with pytest.raises((ConfigError, FormatError)):
        load_records(section(tmp_path, path=str(folder)))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/a.jsonl",
        "ftp://host/a.jsonl",
        "file:///etc/passwd",
        "zip://a.jsonl::http://host/a.zip",
    ],
)
def test_what_lies_behind_plain_http_and_other_schemes_is_not_fetched(tmp_path, address):
    with pytest.raises(ConfigError, match="is not fetched; give a local path"):
        load_records(section(tmp_path, address))


def test_a_folder_of_json_lines_is_read(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_records(folder / "train.jsonl", RECORDS)
    assert len(load_records(section(tmp_path, path=str(folder)))) == len(RECORDS)


def test_csv_is_read(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("instruction,output\n" + "".join(f"{json.dumps(r['instruction'])},x\n" for r in RECORDS))
    assert len(load_records(section(tmp_path, file, path="csv"))) == len(RECORDS)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
FAULTS = {
    "empty": ("", "records.jsonl is empty; give a file that has records"),
    "pointer": (POINTER, "records.jsonl is a Git LFS pointer"),
    "broken": ('{"messages": []}\n{"messages": [\n', "records.jsonl, line 2 is not JSON"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(tmp_path, kind):
    text, sentence = FAULTS[kind]
    (tmp_path / "records.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises((ConfigError, FormatError), match=sentence):
        load_records(section(tmp_path, tmp_path / "records.jsonl"))


def test_a_folder_as_data_files_is_refused_with_a_pattern_that_works(tmp_path):
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data" / "a.jsonl", RECORDS)
    with pytest.raises(ConfigError, match=r"is a folder; give files, such as '(.*)' in quotes") as refusal:
        load_records(section(tmp_path, tmp_path / "data"))
    pattern = str(refusal.value).split("'")[1]
    assert len(load_records(section(tmp_path, pattern))) == len(RECORDS)
