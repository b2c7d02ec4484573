import pytest

from qwen3_model.errors import ConfigError
from qwen3_model.ranks.msrun.cli_worker import _one_line
from qwen3_model.ranks.msrun.logs import exit_reason, last_sentence
from qwen3_model.ranks.msrun.records import read_records, remove_records, write_record


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("one\nError: no space\n[WARNING] bye\n", "no space"),
        ("one\nRuntimeError: two\n\n", "RuntimeError: two"),
        ("", "it wrote nothing"),
    ],
)
def test_the_reason_in_a_log_is_our_sentence_or_its_last_line(tmp_path, text, sentence):
    (tmp_path / "log").write_text(text, encoding="utf-8")
    assert last_sentence(tmp_path / "log") == sentence


def test_msruns_own_words_say_how_a_worker_ended(tmp_path):
    log = tmp_path / "msrun.log"
    log.write_text(
        "[ERROR] Worker process 12 exit with exception. Error code: -11.\n"
        "[ERROR] Worker process 13 exit with exception. Error code: 3.\n",
        encoding="utf-8",
    )
    assert exit_reason(log, 12) == "was killed by SIGSEGV"
    assert exit_reason(log, 13) == "exited with code 3"
    assert exit_reason(log, 14) == ""


def test_records_of_other_nodes_in_a_shared_folder_are_left_alone(tmp_path):
    for rank in range(4):
        write_record(tmp_path, f"worker_{rank}", 100 + rank, "running")
    assert list(read_records(tmp_path, ["worker_2", "worker_9"])) == ["worker_2"]
    remove_records(tmp_path, ["worker_0", "worker_1"])
    assert list(read_records(tmp_path, [f"worker_{rank}" for rank in range(4)])) == ["worker_2", "worker_3"]


def test_the_last_record_of_a_worker_counts(tmp_path):
    write_record(tmp_path, "worker_0", 5, "running")
    write_record(tmp_path, "worker_0", 5, "failed", "ValueError: no")
    record = read_records(tmp_path, ["worker_0"])["worker_0"]
    assert (record.state, record.error, record.title) == ("failed", "ValueError: no", "rank 0")


def test_the_line_of_an_error_is_the_one_that_says_something():
    stacked = RuntimeError(
        "\n-----\n- Kernel error:\n-----\nLaunch kernel failed: AllReduce\n\n-----\n- The stack:\n-----\n"
    )
    assert _one_line(stacked) == "RuntimeError: Launch kernel failed: AllReduce"
    assert _one_line(ConfigError("no such file; give another")) == "no such file; give another"
    assert _one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
