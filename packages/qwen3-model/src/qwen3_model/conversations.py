"""Instruction records of four kinds to OpenAI messages; one reading for data files and for training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_model.errors import Qwen3Error

ROLE_OF_SPEAKER = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]


class ConversationError(Qwen3Error):
    """Why a record is no conversation to learn from; the sentence lacks its subject, the record's place."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the chat template renders."""

    messages: list[Message]
    tools: list[Any] | None = None


def read_conversations(record: object) -> list[Conversation]:
    """Return the conversations of a record, one but for seed tasks.

    Known are OpenAI messages (`messages`, `tools`), ShareGPT (`conversations`), alpaca (`instruction`,
    `input`, `output`, `history`, `system`) and seed tasks (`instruction`, `instances`).

    Raises:
        ConversationError: The record is of no known kind, or misses a part.
    """
    if not isinstance(record, dict):
        raise ConversationError("is no JSON object")
    if "messages" in record:
        found = [Conversation(_openai(record["messages"]), _tools(record))]
    elif "conversations" in record:
        found = [Conversation(_share_gpt(record), _tools(record))]
    elif "instances" in record:
        found = _seed_task(record)
    elif "instruction" in record:
        found = [Conversation(_alpaca(record))]
    else:
        raise ConversationError(
            f"has none of messages, conversations, instruction; its keys are {sorted(record)[:8]}"
        )
    for conversation in found:
        _check(conversation.messages)
    return found


def _openai(messages: object) -> list[Message]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ConversationError("has 'messages' that are no list of objects")
    return [dict(message) for message in messages]


def _share_gpt(record: Mapping[str, Any]) -> list[Message]:
    turns = record["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConversationError("has 'conversations' that are no list of objects")
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for number, turn in enumerate(turns):
        speaker = turn.get("from", turn.get("role"))
        if speaker not in ROLE_OF_SPEAKER:
            raise ConversationError(
                f"has the speaker {speaker!r} in turn {number}; known are {sorted(ROLE_OF_SPEAKER)}"
            )
        messages.append({"role": ROLE_OF_SPEAKER[speaker], "content": turn.get("value", turn.get("content"))})
    return messages


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for pair in record.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConversationError("has a 'history' that is no list of question and answer")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    if "output" not in record:
        raise ConversationError("has an 'instruction' but no 'output'")
    return messages + _question_and_answer(record["instruction"], record.get("input"), record["output"])


def _seed_task(record: Mapping[str, Any]) -> list[Conversation]:
    instances = record["instances"]
    if (
        not isinstance(instances, list)
        or not instances
        or not all(isinstance(one, dict) for one in instances)
    ):
        raise ConversationError("has 'instances' that are no list of objects")
    return [
        Conversation(_question_and_answer(record.get("instruction"), one.get("input"), one.get("output")))
        for one in instances
    ]


def _question_and_answer(instruction: Any, given: Any, output: Any) -> list[Message]:
    if given and isinstance(instruction, str) and isinstance(given, str):
        instruction = f"{instruction}\n\n{given}"
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": output}]


def _tools(record: Mapping[str, Any]) -> list[Any] | None:
    tools = record.get("tools")
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list):
        raise ConversationError("has 'tools' that are no list")
    return tools


def _check(messages: list[Message]) -> None:
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ConversationError(f"has the role {role!r} in message {number}; known are {list(ROLES)}")
        if content is None and message.get("tool_calls"):
            message["content"] = content = ""
        if not isinstance(content, str):
            raise ConversationError(f"has a content in message {number} ({role}) that is no text")
        is_empty = role == "assistant" and not content.strip() and not message.get("tool_calls")
        if is_empty or (role == "user" and not content.strip()):
            what = "answer" if role == "assistant" else "question"
            raise ConversationError(f"has an empty {what} in message {number}")
    if not any(message["role"] == "assistant" for message in messages):
        raise ConversationError("has no answer of the assistant")
    if messages[-1]["role"] != "assistant":
        raise ConversationError(f"ends with a message of the {messages[-1]['role']}, not with an answer")
