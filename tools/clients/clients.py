"""litellm, LlamaIndex and `llm` against the scripted server at a base address; each answer is known."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

import litellm
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

BASE, MODEL = sys.argv[1] + "/v1", "Qwen3-scripted"
HELLO, THOUGHT = "Hello! I am Qwen3. What would you like to know?", "A greeting; I answer in kind."
ASKED = [{"role": "user", "content": "Good morning"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}


class City(BaseModel):
    """A city."""

    city: str


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


def call_of(name: str) -> str:
    """Return a question that is answered with a call."""
    return f'Say exactly: <tool_call>\n{{"name": "{name}", "arguments": {{"city": "Oslo"}}}}\n</tool_call>'


def same(what: str, found: Any, wanted: Any) -> None:
    """Print what was tried; raise when it was answered otherwise."""
    if found != wanted:
        raise SystemExit(f"{what}: {found!r} instead of {wanted!r}")
    print(f"{what}: as it should be", flush=True)


def try_litellm() -> None:
    """Chat, streams, tools, schemas, the older endpoint and responses."""
    to = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": "none"}
    whole = litellm.completion(messages=ASKED, **to)
    message = whole.choices[0].message
    same("litellm", (message.content, message.reasoning_content), (HELLO, THOUGHT))
    chunks = litellm.completion(messages=ASKED, stream=True, stream_options={"include_usage": True}, **to)
    same(
        "litellm stream",
        "".join(each.choices[0].delta.content or "" for each in chunks if each.choices),
        HELLO,
    )
    for choice in ("auto", "required"):
        asked = [{"role": "user", "content": call_of("weather")}]
        (call,) = (
            litellm.completion(messages=asked, tools=[TOOL], tool_choice=choice, **to)
            .choices[0]
            .message.tool_calls
        )
        same(f"litellm tools {choice}", json.loads(call.function.arguments), {"city": "Oslo"})
    asked = [{"role": "user", "content": 'Say exactly: {"city": "Oslo"}'}]
    content = litellm.completion(messages=asked, response_format=SCHEMA, **to).choices[0].message.content
    same("litellm schema", json.loads(content), {"city": "Oslo"})
    again = litellm.completion(messages=[*ASKED, message, *ASKED], **to)
    same("litellm conversation", again.choices[0].message.content, HELLO)
    same("litellm responses", litellm.responses(input="Good morning", **to).output[-1].content[0].text, HELLO)
    later = asyncio.run(litellm.acompletion(messages=ASKED, **to))
    same("litellm async", later.choices[0].message.content, HELLO)


def try_llama_index() -> None:
    """Completions, chat, streams, tools and structured answers."""
    to = {
        "model": MODEL,
        "api_base": BASE,
        "api_key": "none",
        "temperature": 0.0,
        "context_window": 2048,
        "max_tokens": 300,
    }
    llm = OpenAILike(is_chat_model=True, is_function_calling_model=True, **to)
    question = [ChatMessage(role="user", content="Good morning")]
    same("LlamaIndex complete", str(llm.complete("Good morning")), HELLO)
    same("LlamaIndex chat", llm.chat(question).message.content, HELLO)
    same("LlamaIndex stream", list(llm.stream_chat(question))[-1].message.content, HELLO)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=call_of("weather"))
    (call,) = llm.get_tool_calls_from_response(answer)
    same("LlamaIndex tools", (call.tool_name, call.tool_kwargs), ("weather", {"city": "Oslo"}))
    same(
        "LlamaIndex structured", llm.as_structured_llm(City).complete(call_of("City")).raw, City(city="Oslo")
    )


def try_llm() -> None:
    """The command `llm`: stream, whole, schema."""
    with tempfile.TemporaryDirectory() as folder:
        known = f"- model_id: q\n  model_name: {MODEL}\n  api_base: {BASE}\n  supports_schema: true\n"
        Path(folder, "extra-openai-models.yaml").write_text(known, encoding="utf-8")
        program = [
            Path(sys.executable).with_name("llm"),
            "-m",
            "q",
            "-o",
            "temperature",
            "0",
            "--key",
            "none",
        ]
        city = 'Say exactly: {"city": "Oslo"}'
        for words, wanted in (
            (["Good morning"], HELLO),
            (["--no-stream", "Good morning"], HELLO),
            (["--schema", "city str", city], '{"city": "Oslo"}'),
        ):
            done = subprocess.run(
                [*program, *words], capture_output=True, text=True, check=False,
                env=os.environ | {"LLM_USER_PATH": folder},
            )  # fmt: skip
            same(f"llm {words[0]}", done.stdout.strip() or done.stderr, wanted)


try_litellm()
try_llama_index()
try_llm()
