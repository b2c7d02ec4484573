"""What a run shows: TensorBoard's event files, and a page that needs nothing else."""

import json
import math
import struct
import xml.etree.ElementTree as ET

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from qwen3_train.reports.chart import COLOURS, MAX_POINTS, Series, draw, round_axis
from qwen3_train.reports.event_file import EventFile
from qwen3_train.reports.html import report_page
from qwen3_train.reports.report import write_report
from qwen3_train.reports.run_facts import Run, read_run


def read_events(directory):
    """Return the events of the one file in `directory`: a length, its checksum, the event, its checksum."""
    (path,) = directory.iterdir()
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_event_files_hold_version_steps_tags_and_values(tmp_path):
    events = EventFile(tmp_path, after_step=0)
    events.write(300, {"loss": 2.5})
    events.write(301, {"eval_loss": 1.25})
    version, *scalars = read_events(tmp_path)  # at once, before the file is closed
    events.close()
    assert version.file_version == "brain.Event:2"
    told = [(event.step, value.tag, value.simple_value) for event in scalars for value in event.summary.value]
    assert told == [(300, "loss", 2.5), (301, "eval_loss", 1.25)]


def test_a_resumed_run_takes_back_the_steps_that_it_takes_again(tmp_path):
    EventFile(tmp_path, after_step=4).close()
    start = next(event for event in read_events(tmp_path) if event.HasField("session_log"))
    assert (start.step, start.session_log.status) == (5, SessionLog.START)


@pytest.mark.parametrize("value", [1.9e192, -1e300, math.inf, -math.inf, 3.5e38, -3.5e38])
def test_a_value_beyond_float32_becomes_its_largest(tmp_path, value):
    events = EventFile(tmp_path, after_step=0)
    events.write(0, {"eval_perplexity": value, "loss": 1.0})
    events.close()
    told = [each for event in read_events(tmp_path) for each in event.summary.value]
    assert [(each.tag, each.simple_value) for each in told] == [
        ("eval_perplexity", math.copysign(3.4028234663852886e38, value)), ("loss", 1.0),
    ]  # fmt: skip


def lines_of(count, scale=1.0):
    return [
        {"step": n, "loss": 4 / n, "lr": 0.1, "grad_norm": 1.0, "memory_gb": 1.5, "mfu": 0.25,
         "tokens_per_s": 5.0 if n == 1 else 50.0 * scale, "step_time_s": 0.5}
        for n in range(1, count + 1)
    ]  # fmt: skip


def run_of(name, lines, **start):
    return Run(name=name, lines=lines, starts=[start] if start else [], configuration="lr: <b>1</b>\n")


HELD_OUT = [{"step": step, "eval_loss": 0.5, "eval_perplexity": 1.6} for step in (0, 9)]


def test_the_page_has_every_curve_the_facts_and_the_configuration():
    page = report_page(
        [run_of("out", [*lines_of(9), *HELD_OUT], command=["qwen3-train", "a b"], host="node7")]
    )
    for title in ("Loss", "Learning rate", "Gradient norm", "Tokens per second", "FLOPs", "Peak memory"):
        assert title in page
    assert page.count("<svg") == 6
    assert page.count("<polyline") == 7  # six and the held-out loss
    assert '<li class="c0">training</li><li class="c1 held">held out</li>' in page
    for fact in ("<th>loss</th><td>4.0000 -&gt; 0.4444", "25.0% of the device&#x27;s peak",
                 "<td>qwen3-train &#x27;a b&#x27;</td>", "node7"):  # fmt: skip
        assert fact in page
    assert "lr: &lt;b&gt;1&lt;/b&gt;" in page
    assert not any(word in page for word in ("http", "src=", "href=", "@import", "url("))


def test_several_runs_stand_beside_each_other_in_every_curve_and_in_the_table():
    runs = [run_of(name, lines_of(9, scale), host=name) for name, scale in (("one", 1), ("two", 2))]
    page = report_page(runs)
    assert page.count("<svg") == 6
    assert page.count("<polyline") == 12
    for number, name in enumerate(("one", "two")):
        assert page.count(f'<li class="c{number}">{name}</li>') == 6
        assert f'<th class="c{number}">{name}</th>' in page
    assert "<td>50 tokens/s (median), 25.0% of the device&#x27;s peak (MFU)</td><td>100 tokens/s" in page


def values_of(figure):
    return [
        point[1] for point in json.loads(ET.fromstring(f"<p>{figure}</p>")[1].get("data-series"))[0]["points"]
    ]


def test_steps_that_compile_do_not_squash_the_others_speed():
    run = run_of("out", lines_of(9), after_step=4)
    figures = report_page([run]).split("<figure>")
    speed = next(each for each in figures if "Tokens per second" in each)
    figure = speed[speed.index("<ul") : speed.index("</figure>")]
    assert values_of(figure) == [50.0] * 7  # not the first step, nor the first after the second start


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [3.0, math.nan, 1.0], list(range(5000))])
def test_a_curve_is_valid_svg_within_its_frame(values):
    figure = draw([Series(name="a & b", colour=0, points=list(enumerate(values, 1)))])
    legend, chart = ET.fromstring(f"<p>{figure}</p>")
    assert [entry.text for entry in legend] == ["a & b"]
    root = chart.find("svg")
    points = root.find("polyline").get("points").split()
    assert 1 <= len(points) <= MAX_POINTS
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 620
        assert 0 <= y <= 230
    assert len(values_of(figure)) == len(points)  # what the pointer shows


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1.4373, 9.71, ["0", "2", "4", "6", "8", "10"]),
        (1.1021, 1.1024, ["1.1021", "1.1022", "1.1023", "1.1024"]),
        (0.0, 1e-6, ["0", "2e-7", "4e-7", "6e-7", "8e-7", "1.0e-6"]),
        (-0.3, 0.32, ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        (1.5e7, 3.9e7, ["1.5e7", "2.0e7", "2.5e7", "3.0e7", "3.5e7", "4.0e7"]),
        (2.0, 2.0, ["1.90", "1.95", "2.00", "2.05", "2.10"]),
        (1, 5000, ["0", "1000", "2000", "3000", "4000", "5000"]),
    ],
)
def test_ticks_are_round_and_tell_each_other_apart(low, high, labels):
    axis = round_axis(low, high, 5)
    assert list(axis.labels) == labels
    assert axis.low <= low
    assert axis.high >= high
    assert len(set(axis.labels)) == len(axis.labels)


def test_a_long_curve_has_a_running_mean_that_keeps_a_slope():
    points = [(n, float(n)) for n in range(1, 201)]
    root = ET.fromstring(f"<p>{draw([Series(name='a', colour=COLOURS, points=points)])}</p>")[1][0]
    raw, mean = root.findall("polyline")
    assert raw.get("class") == "raw line c0"
    assert raw.get("points") == mean.get("points")


def test_a_page_of_several_runs_leaves_their_folders_as_they_are(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines_of(3))
        )
    told = write_report([tmp_path / "one", tmp_path / "two"], 40, tmp_path / "both.html")
    assert told.count("loss        4.0000 -> 1.3333") == 2
    assert "one, two" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["metrics.jsonl"]


def test_a_folder_is_read_with_its_starts_and_without_what_is_damaged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(3)))
    (tmp_path / "starts.jsonl").write_text('{"host": "a", "after_step": 0}\n{"host"\n[1]\n', encoding="utf-8")
    run = read_run(tmp_path)
    assert [start["host"] for start in run.starts] == ["a"]
    assert run.compiling_steps == {1}
    assert dict(run.facts())["steps"] == "1 to 3"
