"""Instruction records of four kinds to OpenAI messages; one reading for data files and for training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
TEXT_KEYS = ("role", "content", "reasoning_content", "tool_call_id", "name")
FLAG_KEYS = ("weight", "loss", "train")
"""Whether a message is learned: OpenAI's fine-tuning format, ms-swift and axolotl."""
MESSAGE_KEYS = (*TEXT_KEYS, "tool_calls", *FLAG_KEYS)
KEYS_OF_ROLE = {
    "system": ("role", "content", *FLAG_KEYS),
    "user": ("role", "content", *FLAG_KEYS),
    "assistant": ("role", "content", "reasoning_content", "tool_calls", *FLAG_KEYS),
    "tool": ("role", "content", "tool_call_id", "name", *FLAG_KEYS),
}
"""What is rendered, and the two of a tool's answer that name its call, which the answer's index says, too."""

Message = dict[str, object]


class ConversationError(Qwen3Error):
    """Why a record is no conversation to learn from; the sentence lacks its subject, file and record."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the chat template renders."""

    messages: list[Message]
    tools: list[Message] | None = None
    unlearned: frozenset[int] = field(default=frozenset())
    """Answers, by the number of their message, whose record says that they are not to be learned."""


def read_conversations(record: object) -> list[Conversation]:
    """Return the conversations of a record, one but for seed tasks.

    Known are OpenAI messages (`messages`, `tools`), ShareGPT (`conversations`), alpaca (`instruction`,
    `input`, `output`, `history`, `system`) and seed tasks (`instruction`, `instances`).

    Raises:
        ConversationError: The record is of no known kind, misses a part, or holds what would be lost.
    """
    if not isinstance(record, dict):
        raise ConversationError("is no JSON object")
    if "messages" in record:
        found = [(_objects(record["messages"], "messages"), _tools(record))]
    elif "conversations" in record:
        found = [(_share_gpt(record), _tools(record))]
    elif "instances" in record:
        found = [(messages, None) for messages in _seed_task(record)]
    elif "instruction" in record:
        found = [(_alpaca(record), None)]
    else:
        raise ConversationError(
            f"has none of messages, conversations, instruction; its keys are {sorted(record)[:8]}"
        )
    return [_check_conversation(messages, tools) for messages, tools in found]


def _objects(value: object, name: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConversationError(f"has {name!r} that are no list of objects")
    return [dict(entry) for entry in value]


def _share_gpt(record: Mapping[str, object]) -> list[Message]:
    messages = _system(record)
    for number, turn in enumerate(_objects(record["conversations"], "conversations")):
        for ours, theirs in (("role", "from"), ("content", "value")):
            value = turn.pop(theirs, None)
            if value is not None and turn.get(ours) is not None:
                raise ConversationError(f"has both {theirs!r} and {ours!r} in turn {number}")
            turn[ours] = turn.get(ours) if value is None else value
        speaker = turn.get("role")
        if not isinstance(speaker, str) or speaker not in ROLE_OF_SPEAKER:
            raise ConversationError(
                f"has the speaker {speaker!r} in turn {number}; known are {sorted(ROLE_OF_SPEAKER)}"
            )
        messages.append({**turn, "role": ROLE_OF_SPEAKER[speaker]})
    return messages


def _system(record: Mapping[str, object]) -> list[Message]:
    system = _text_or_nothing(record, "system")
    return [{"role": "system", "content": system}] if system else []


def _text_or_nothing(record: Mapping[str, object], key: str) -> str:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise ConversationError(f"has under {key!r} {value!r:.40}, which is no text")
    return value or ""


def _alpaca(record: Mapping[str, object]) -> list[Message]:
    messages = _system(record)
    history = record.get("history")
    if history not in (None, "") and not isinstance(history, list):
        raise ConversationError("has a 'history' that is no list of question and answer")
    for pair in history or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConversationError("has a 'history' that is no list of question and answer")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    if "output" not in record:
        raise ConversationError("has an 'instruction' but no 'output'")
    return messages + _question_and_answer(record["instruction"], record)


def _seed_task(record: Mapping[str, object]) -> list[list[Message]]:
    instances = _objects(record["instances"], "instances")
    if not instances:
        raise ConversationError("has 'instances' that are no list of objects")
    return [_question_and_answer(record.get("instruction"), one) for one in instances]


def _question_and_answer(instruction: object, record: Mapping[str, object]) -> list[Message]:
    given = _text_or_nothing(record, "input")
    if given and isinstance(instruction, str):
        instruction = f"{instruction}\n\n{given}"
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": record.get("output")}]


def _tools(record: Mapping[str, object]) -> list[Message] | None:
    tools = record.get("tools")
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ConversationError("has 'tools' that are no list of objects")
    return tools


def _check_conversation(messages: list[Message], tools: list[Message] | None) -> Conversation:
    """Return a conversation of which nothing is lost when it is rendered."""
    rendered: list[Message] = []
    unlearned: set[int] = set()
    for number, message in enumerate(messages):
        kept = {key: value for key, value in message.items() if not _is_nothing(key, value)}
        role = message.get("role")
        if role not in ROLES:
            raise ConversationError(f"has the role {role!r} in message {number}; known are {list(ROLES)}")
        where = f"message {number} ({role})"
        _check_keys(kept, role, where)
        if not _is_learned(kept, role, where):
            unlearned.add(number)
        kept["content"] = _content(message, role, where)
        rendered.append({key: value for key, value in kept.items() if key not in FLAG_KEYS})
    _check_order(rendered, unlearned)
    return Conversation(rendered, tools, frozenset(unlearned))


def _is_nothing(key: str, value: object) -> bool:
    """Return whether a key says nothing: formats that know every key write null or an empty list."""
    return value is None or (value in ("", [], {}) and key not in TEXT_KEYS)


def _check_keys(message: Message, role: str, where: str) -> None:
    for key, value in message.items():
        if key not in KEYS_OF_ROLE[role]:
            known = "is not known" if key not in MESSAGE_KEYS else "is not rendered in such a message"
            raise ConversationError(
                f"has the key {key!r} in {where}, which {known}; known are {', '.join(KEYS_OF_ROLE[role])}"
            )
        if key in TEXT_KEYS and key != "content" and not isinstance(value, str):
            raise ConversationError(f"has a {key} in {where} that is no text")
    calls = message.get("tool_calls", [])
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), str | dict)
        ):
            raise ConversationError(
                f"has tool_calls in {where} that are no functions with name and arguments"
            )


def _is_learned(message: Message, role: str, where: str) -> bool:
    """Return whether an answer is to be learned, which it is unless its record says otherwise."""
    said = {}
    for key in FLAG_KEYS:
        if key not in message:
            continue
        value = message[key]
        if not isinstance(value, int | float) or value not in (0, 1):
            raise ConversationError(
                f"has {key} {value!r:.40} in {where}; only 0 and 1 (false, true) are known"
            )
        said[key] = bool(value)
    if len(set(said.values())) > 1:
        raise ConversationError(f"has {' and '.join(said)} in {where} that contradict each other")
    if role != "assistant" and any(said.values()):
        raise ConversationError(
            f"has {next(iter(said))} in {where}, which would be learned; only the assistant's words are"
        )
    return all(said.values())


def _content(message: Message, role: str, where: str) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ConversationError(f"has a content in {where} that is no text")
    is_empty = role == "assistant" and not content.strip() and not calls
    if is_empty or (role == "user" and not content.strip()):
        what = "answer" if role == "assistant" else "question"
        raise ConversationError(f"has an empty {what} in message {where.split()[1]}")
    return content


def _check_order(messages: list[Message], unlearned: set[int]) -> None:
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ConversationError("has no answer of the assistant")
    if answers[-1] != len(messages) - 1:
        raise ConversationError(f"ends with a message of the {messages[-1]['role']}, not with an answer")
    if unlearned.issuperset(answers):
        raise ConversationError("has no answer that is to be learned: weight, loss or train rules out all")
