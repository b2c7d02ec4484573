import json

from qwen3_train.launch.status import MetricsTail, progress_line, status_of


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
    assert status_of(tmp_path / "none", 3)() == ""
