import ast
import json
from dataclasses import replace

import pytest

from qwen3_infer.generate.results import is_own_result, make_record, write_records, write_result_text
from qwen3_infer.schedule.generator import Completion
from qwen3_infer.text.prompts import Prompt
from qwen3_model.text.tokenizer import Qwen3Tokenizer


@pytest.fixture
def completions(make_request, demo_tokenizer_dir):
    tokenizer = Qwen3Tokenizer.from_dir(demo_tokenizer_dir)

    def done(index, prompt, text):
        request = make_request(tokenizer.encode(prompt), index=index)
        request = replace(request, prompt=Prompt(text=prompt, id=f"q{index}"))
        return Completion(request=request, ids=(1, 2, 3), text=text, finish_reason="stop")

    return tokenizer, [done(0, "it's", " 茶\n"), done(1, 'say "x"', " ok"), done(2, "last", "")]


def test_result_text_is_mindformers_list_of_batches(tmp_path, completions):
    tokenizer, done = completions
    path = tmp_path / "result.txt"
    write_result_text(path, done, tokenizer, batch_size=2)
    text = path.read_text("utf-8")
    assert text.startswith("[{'text_generation_text': [")
    assert ast.literal_eval(text) == [
        {"text_generation_text": ["it's 茶\n", 'say "x" ok']},
        {"text_generation_text": ["last"]},
    ]


def test_records_are_json_lines_in_the_order_of_the_input(tmp_path, completions):
    path = tmp_path / "results.jsonl"
    write_records(path, completions[1], completions[0], chat=False)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert records[0] == {
        "index": 0, "id": "q0", "prompt": "it's", "completion": " 茶\n", "finish_reason": "stop",
        "prompt_tokens": len(completions[1][0].request.prompt_ids), "completion_tokens": 3,
    }  # fmt: skip


def test_half_a_character_in_an_id_stays_escaped_and_loses_no_record(tmp_path, completions):
    tokenizer, (first, *_) = completions
    prompt = replace(first.request.prompt, id="\ud83d")
    path = tmp_path / "results.jsonl"
    write_records(
        path, [replace(first, request=replace(first.request, prompt=prompt))], tokenizer, chat=False
    )
    assert json.loads(path.read_text("utf-8"))["id"] == "\ud83d"


def test_a_chat_record_divides_reasoning_from_answer(completions):
    done = replace(completions[1][0], text="<think>\nWhy? \n</think>\n\nBecause.")
    record = make_record(done, completions[0], chat=True)
    assert (record["reasoning"], record["completion"]) == ("Why?", "Because.")
    assert make_record(done, completions[0], chat=False)["completion"] == done.text


def test_a_record_has_the_calls_of_a_request_with_tools(completions):
    tokenizer, (first, *_) = completions
    text = '<think>\nWhy?\n</think>\n\nSo: <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    tools = ({"type": "function", "function": {"name": "f"}},)
    request = replace(first.request, prompt=Prompt(messages=({"role": "user", "content": "?"},), tools=tools))
    record = make_record(replace(first, request=request, text=text), tokenizer, chat=True)
    assert (record["reasoning"], record["completion"], record["finish_reason"]) == (
        "Why?",
        "So:",
        "tool_calls",
    )
    (call,) = record["tool_calls"]
    assert call == {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    without = make_record(replace(first, text=text), tokenizer, chat=True)
    assert "<tool_call>" in without["completion"]
    assert "tool_calls" not in without


def test_a_record_reads_a_thought_that_the_prompt_began(completions):
    tokenizer, (first, *_) = completions
    request = replace(first.request, prompt_ids=tuple(tokenizer.encode("<think>\n")))
    done = replace(first, request=request, text="Why?\n</think>\nBecause.")
    record = make_record(done, tokenizer, chat=True)
    assert (record["reasoning"], record["completion"]) == ("Why?", "Because.")


def test_only_a_text_result_is_taken_for_one(tmp_path, completions):
    write_result_text(tmp_path / "own.txt", completions[1], completions[0], batch_size=1)
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    assert [is_own_result(tmp_path / name) for name in ("own.txt", "mine.txt", "none.txt")] == [
        True, False, False,
    ]  # fmt: skip
