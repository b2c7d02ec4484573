"""What a run shows: TensorBoard's event files, byte for byte, and a page that needs nothing else."""

import math
import struct
import xml.etree.ElementTree as ET

import pytest

from qwen3_train.reports.event_file import EventFile, crc32c
from qwen3_train.reports.html import MAX_POINTS, draw, report_page


def read_events(path):
    """Return (step, fields by number) of each record, checksums checked."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        for part, stored in ((data[:8], data[8:12]), (body, data[12 + length : 16 + length])):
            masked = struct.unpack("<I", stored)[0] - 0xA282EAD8 & 0xFFFFFFFF
            assert (masked >> 17 | masked << 15) & 0xFFFFFFFF == crc32c(part)
        events.append(fields(body))
        data = data[16 + length :]
    return events


def fields(data):
    """Decode protobuf: varints as numbers, the rest as bytes; the last of a repeated field wins."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            found[key >> 3] = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            found[key >> 3], at = data[at : at + size], at + size
    return found


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720


def test_event_files_hold_version_steps_tags_and_values(tmp_path):
    events = EventFile(tmp_path, after_step=0)
    events.write(300, {"loss": 2.5})
    events.write(301, {"eval_loss": 1.25})
    events.close()
    version, first, second = read_events(next(tmp_path.iterdir()))
    assert version[3] == b"brain.Event:2"
    for event, step, tag, value in ((first, 300, b"loss", 2.5), (second, 301, b"eval_loss", 1.25)):
        told = fields(fields(event[5])[1])
        assert (event[2], told[1], struct.unpack("<f", told[2])[0]) == (step, tag, value)


def test_a_resumed_run_takes_back_the_steps_that_it_takes_again(tmp_path):
    EventFile(tmp_path, after_step=4).close()
    _, start = read_events(next(tmp_path.iterdir()))
    assert (start[2], fields(start[7])) == (5, {1: 1})


def lines_of(count):
    return [
        {"step": n, "loss": 4 / n, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 50.0, "memory_gb": 1.5}
        for n in range(1, count + 1)
    ]


def test_the_page_has_every_curve_the_summary_and_the_configuration(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: <b>1</b>\n", encoding="utf-8")
    lines = [*lines_of(9), {"step": 9, "eval_loss": 0.5, "eval_perplexity": 1.6}]
    page = report_page(tmp_path, lines, ["loss        4.0 -> 0.4"])
    for title in ("Training loss", "Learning rate", "Gradient norm", "Tokens per second", "Peak memory"):
        assert title in page
    assert page.count("<svg") == 5
    assert page.count("<polyline") == 6  # five and the held-out loss
    assert "<th>loss</th><td>4.0 -&gt; 0.4</td>" in page
    assert "lr: &lt;b&gt;1&lt;/b&gt;" in page
    assert not any(word in page for word in ("http", "src=", "href=", "@import", "url("))


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [3.0, math.nan, 1.0], list(range(5000))])
def test_a_curve_is_valid_svg_within_its_frame(values):
    root = ET.fromstring(draw(list(enumerate(values, 1)), []))
    points = root.find("polyline").get("points").split()
    assert 1 <= len(points) <= MAX_POINTS
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 620
        assert 0 <= y <= 220
