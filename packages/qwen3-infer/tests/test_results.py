import ast
import json
from dataclasses import replace

import pytest

from qwen3_infer.generate.generator import Completion
from qwen3_infer.generate.prompts import Prompt
from qwen3_infer.generate.results import make_record, split_reasoning, write_records, write_result_text
from qwen3_model.tokenizer import Qwen3Tokenizer


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
    write_records(path, completions[1], chat=False)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert records[0] == {
        "index": 0, "id": "q0", "prompt": "it's", "completion": " 茶\n", "finish_reason": "stop",
        "prompt_tokens": len(completions[1][0].request.prompt_ids), "completion_tokens": 3,
    }  # fmt: skip


def test_a_chat_record_divides_reasoning_from_answer(completions):
    done = replace(completions[1][0], text="<think>\nWhy? \n</think>\n\nBecause.")
    record = make_record(done, chat=True)
    assert (record["reasoning"], record["completion"]) == ("Why?", "Because.")
    assert make_record(done, chat=False)["completion"] == done.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", (None, "plain")),
        ("<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
        ("hm\n</think>\nyes", ("hm", "yes")),
        ("<think>a</think>b</think>c", ("a</think>b", "c")),
        ("<think>\nnever ends", ("never ends", "")),
    ],
)
def test_the_last_end_of_thought_divides(text, expected):
    assert split_reasoning(text) == expected
