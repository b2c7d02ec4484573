import json

import pytest

from qwen3_model.errors import ConfigError
from qwen3_train.cli_worker import _one_line
from qwen3_train.worker_logs import MetricsTail, exit_reason, last_sentence, progress_line
from qwen3_train.worker_records import read_records, remove_records, write_record


def step(number, **more):
    return {"step": number, "loss": 1.5, "step_time_s": 2.0} | more


def write(path, *objects):
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")


def test_a_line_has_what_the_step_reports():
    newest = step(30, lr=3e-4, tokens_per_s=9876.5, grad_norm=0.25)
    line = progress_line([step(29), newest], 100)
    assert line == "step 30/100, loss 1.5000, lr 0.0003, 9,876 tokens/s, grad norm 0.250, 0:02:20 left"


def test_a_line_without_a_known_end_has_no_time_left():
    assert progress_line([step(30)], None) == "step 30, loss 1.5000"


def test_the_metrics_of_an_earlier_run_are_not_shown(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, step(7))
    tail = MetricsTail(path)
    assert tail.steps() == []
    write(path, step(7), step(8))
    assert [one["step"] for one in tail.steps()] == [7, 8]


def test_a_cut_line_and_evaluations_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    write(path, step(1), {"step": 1, "eval_loss": 2.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert [one["step"] for one in tail.steps()] == [1]


def test_a_missing_file_is_no_step(tmp_path):
    assert MetricsTail(tmp_path / "none").steps() == []
    assert MetricsTail(None).steps() == []


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
