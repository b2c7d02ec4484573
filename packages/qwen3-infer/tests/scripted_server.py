"""A server whose model says what it is told to: all is real but the numbers that lead to the next token.

    python scripted_server.py MODEL_FOLDER [SETTINGS]

What it says depends on the words in the question: markup, a long answer, NaN, an exception. SETTINGS, in
JSON, go over those of the server.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from qwen3_infer.folder.model_folder import open_model_folder
from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.serve.run import ServeSettings, bound, serve_app
from qwen3_infer.serve.service import Service
from qwen3_infer.serve.worker import Worker
from qwen3_infer.settings.settings import Decoding

MARKUP = (
    "<think>\nThe user wants <b>markup</b>.\n</think>\n\n"
    'Here: <script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2"> & done.'
)
HELLO = "<think>\nA greeting; I answer in kind.\n</think>\n\nHello! I am Qwen3. What would you like to know?"
LONG = "and again " * 1900  # a quarter of a minute
MARKDOWN = (
    "## Two ways\n\nA list with **bold** and `code`:\n\n* one\n* [two](https://example.com/)\n\n"
    '```python\ndef greet(name):\n    print(f"Hello, {name} <b>")\n```\n\n'
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n![x](https://example.com/x.png) [no](javascript:alert(1))"
)
EMOJI = "<think>\n\U0001f469\u200d\U0001f469\n</think>\n\n\U00020bb7 \U0001f1f3\U0001f1f4"
SAY = "Say exactly: "
"""What follows it in a question is the answer, which comes at once."""
TOKEN_S = 0.004


class Script:
    """Answers by keyword, a token every few milliseconds; NaN when asked to break."""

    num_tokens, unit, shares_beginnings = 8192, 32, False
    pieces = (128, 32)

    def __init__(self, tokenizer, num_rows):
        self.tokenizer, self.num_rows = tokenizer, num_rows
        self.prompts, self.scripts, self.ends, self.seconds = {}, {}, {}, {}

    def read(self, start, ids, position, length):
        known = self.prompts.get(start, [])[:position] if position else []
        self.prompts[start] = [*known, *ids]
        text = self.tokenizer.decode(self.prompts[start])
        asked = text.rpartition("user\n")[2]
        scripts = (("markup", MARKUP), ("long", LONG), ("break", None), ("emoji", EMOJI),
                   ("markdown", MARKDOWN))  # fmt: skip
        answer = next((a for word, a in scripts if word in asked), HELLO)
        if SAY in asked:
            answer = asked.partition(SAY)[2].partition("\nassistant\n")[0]
        self.seconds[start] = 0 if SAY in asked else TOKEN_S
        if "crash" in asked:
            raise RuntimeError("the device is gone")
        self.scripts[start] = (
            None if answer is None else [*self.tokenizer.encode(answer), self.tokenizer.eos_id]
        )
        self.ends[start] = position + len(ids)
        return self._logits(start, 0)

    def read_all(self, start, ids, position, length):
        last = self.read(start, ids, position, length)
        return np.stack([np.zeros_like(last)] * (len(ids) - 1) + [last])

    def decode(self, starts, tokens, positions):
        time.sleep(max(self.seconds[start] for start in starts))
        places = [at - self.ends[start] + 1 for start, at in zip(starts, positions, strict=True)]
        return np.stack([self._logits(start, at) for start, at in zip(starts, places, strict=True)])

    def _logits(self, start, place):
        script = self.scripts[start]
        logits = np.full(self.tokenizer.vocab_size, np.nan if script is None else 0, np.float32)
        if script is not None:
            logits[script[min(place, len(script) - 1)]] = 1
        return logits


def main():
    folder = open_model_folder(Path(sys.argv[1]))
    settings = ServeSettings(
        host="127.0.0.1", port=0, api_key=None, insecure=False, model_name=None, max_requests=4,
        max_tokens_in_cache=8192, max_queue=8, max_connections=1000, max_body_bytes=2**20,
        request_timeout_s=60, queue_timeout_s=10, send_timeout_s=10, drain_timeout_s=5,
    )  # fmt: skip
    if len(sys.argv) > 2:
        settings = replace(settings, **json.loads(sys.argv[2]))

    scheduler = Scheduler(Script(folder.tokenizer, settings.max_requests), folder.tokenizer)
    service = Service(
        folder=folder,
        name="Qwen3-scripted",
        defaults=Decoding(
            sampling=Sampling(temperature=0.0),
            max_new_tokens=4000,
            is_length_explicit=False,
            stop_ids=frozenset([folder.tokenizer.eos_id]),
            stop_strings=(),
        ),
        thinking=True,
        context_tokens=4096,
        grammars=scheduler.grammars,
        token_bytes=folder.tokenizer.longest_token_bytes(),
    )

    def note(text):
        click.echo(text, err=True)

    worker = Worker(scheduler, max_queue=settings.max_queue, note=note)
    with bound(settings.host, settings.port) as door:
        serve_app(service, worker, settings, door, note)


if __name__ == "__main__":
    main()
