"""Write what TRL's training template of Qwen3 makes of conversations; needs transformers and trl (no torch).

Usage: make_trl_golden.py TOKENIZER_DIR OUT.json

For each conversation: its messages and tools, the ids, and 1 for each token between `generation` marks, which
are the answer, its `<|im_end|>` and the line end after it.
"""

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer


def ask(content: str) -> dict:
    return {"role": "user", "content": content}


def answer(content: str, **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CONVERSATIONS = (
    [ask("Name the sky's colour."), answer("Blue.")],
    [ask("2 + 2?"), answer("4"), ask("Doubled?"), answer("8"), ask("And again?"), answer("16\n\nDone.")],
    [
        {"role": "system", "content": "Be brief."},
        ask("one"), answer("first", reasoning_content="r one"),
        ask("two"), answer("second", reasoning_content="r two\nand more"),
        ask("three"), answer("third"),
    ],
    [
        ask("one"), answer("<think>\nr one\n</think>\n\nfirst"),
        ask("two"), answer("<think>\nr two\n</think>\n\nsecond"),
    ],
    [
        ask("2 + 3?"), answer("", tool_calls=[CALL]), {"role": "tool", "content": "5"}, answer("It is 5."),
        ask("And once more?"), answer("Let me see.", reasoning_content="call it", tool_calls=[CALL, CALL]),
        {"role": "tool", "content": "5"}, {"role": "tool", "content": "5"}, answer("Still 5."),
    ],
    [answer("Welcome."), ask("\u4f60\u597d"), answer("\u4f60\u597d\uff01\n\u8bf7\u8bf4\u3002")],
    [{"role": "system", "content": "Speak."}, answer("Hello.")],
)  # fmt: skip
WITH_TOOLS = (4,)


def main(tokenizer_dir: str, out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    origin = find_spec("trl").origin
    template = Path(origin).parent.joinpath("chat_templates/qwen3_training.jinja").read_text(encoding="utf-8")
    samples = []
    for number, messages in enumerate(CONVERSATIONS):
        tools = [TOOL] if number in WITH_TOOLS else None
        made = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        ids, mask = list(made["input_ids"]), list(made["assistant_masks"])
        samples.append({"messages": messages, "tools": tools, "ids": ids, "mask": mask})
    told = {"trl": version("trl"), "transformers": version("transformers"), "samples": samples}
    Path(out).write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
