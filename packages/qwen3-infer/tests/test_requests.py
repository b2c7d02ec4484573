import pytest

from qwen3_infer.folder.model_folder import open_model_folder
from qwen3_infer.schedule.requests import PromptForm, make_requests, special_texts
from qwen3_infer.settings.settings import make_decoding, read_settings
from qwen3_infer.text.prompts import Prompt
from qwen3_model.errors import ConfigError, FormatError

PLAIN = PromptForm(chat=False, thinking=True, allow_special=False)
CHAT = PromptForm(chat=True, thinking=True, allow_special=False)


@pytest.fixture
def make(make_demo_folder):
    folder = open_model_folder(make_demo_folder(max_position_embeddings=64))

    def make(text, *, form=PLAIN, truncate=False, **generation):
        settings = read_settings(None, {"pretrained_model_dir": "m", **generation}, ())
        decoding = make_decoding(settings, folder.defaults, folder.config.vocab_size)
        prompts = [text if isinstance(text, Prompt) else Prompt(text=text)]
        return make_requests(prompts, folder, decoding, form, seed=0, truncate=truncate)[0], folder.tokenizer

    return make


def test_a_plain_prompt_is_its_ids_alone(make):
    request, tokenizer = make("Once upon a time", max_new_tokens=4)
    assert list(request.prompt_ids) == tokenizer.encode("Once upon a time")
    assert request.max_new_tokens == 4


def test_special_tokens_in_a_plain_prompt_are_text_unless_allowed(make):
    request, tokenizer = make("a<|im_end|>")
    end = tokenizer.token_id("<|im_end|>")
    assert end not in request.prompt_ids
    allowed, _ = make("a<|im_end|>", form=PromptForm(chat=False, thinking=True, allow_special=True))
    assert allowed.prompt_ids[-1] == end
    assert special_texts([Prompt(text="a<|im_end|>")], tokenizer) == ["<|im_end|>"]


def test_chat_puts_the_template_around_a_text(make):
    request, tokenizer = make("Hello", form=CHAT)
    text = tokenizer.decode(request.prompt_ids, skip_special=False)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_the_default_length_shrinks_to_what_the_context_has_left(make):
    request, _ = make("one two three")
    assert request.max_new_tokens == 64 - len(request.prompt_ids)


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(make):
    long = "word " * 80
    with pytest.raises(ConfigError) as caught:
        make(long, max_new_tokens=10)
    count = len(make(long, max_new_tokens=10, truncate=True)[1].encode(long))
    assert str(caught.value) == (
        f"the prompt has {count} tokens, which with 10 new ones exceeds the context of 64; "
        "shorten it or pass --truncate to keep its last 54 tokens"
    )


def test_truncate_keeps_the_end(make):
    request, tokenizer = make("word " * 80 + "end", max_new_tokens=10, truncate=True)
    assert list(request.prompt_ids) == tokenizer.encode("word " * 80 + "end")[-54:]
    assert request.max_new_tokens == 10


def test_a_completion_longer_than_the_context_is_refused(make):
    with pytest.raises(ConfigError, match="max_new_tokens=64 leaves no room in a context of 64 tokens"):
        make("a", max_new_tokens=64, truncate=True)


def test_messages_need_chat(make):
    with pytest.raises(
        FormatError, match="line 3 has messages or tools, which need the chat template; add --chat"
    ):
        make(Prompt(messages=({"role": "user", "content": "x"},), where="line 3"))


def test_parts_of_text_and_a_developer_are_what_they_are_to_the_server(make):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages = ({"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts})
    plain = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    found, _ = make(Prompt(messages=messages), form=CHAT, max_new_tokens=1)
    wanted, _ = make(Prompt(messages=plain), form=CHAT, max_new_tokens=1)
    assert found.prompt_ids == wanted.prompt_ids


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ({"role": "robot", "content": "hi"}, r"here: messages\[0\].role: must be one of system"),
        ({"role": "user", "content": 5}, r"here: messages\[0\].content: must be a text or a list of parts"),
    ],
)
def test_a_message_that_the_template_would_drop_is_refused(make, message, rule):
    with pytest.raises(FormatError, match=rule):
        make(Prompt(messages=(message,), where="here"), form=CHAT)
