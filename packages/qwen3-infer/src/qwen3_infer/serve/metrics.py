"""What a server counts, as Prometheus' text."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qwen3_infer.schedule.jobs import Event

if TYPE_CHECKING:
    from qwen3_infer.serve.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qwen3_requests", "Requests answered.", ["endpoint", "status"], registry=registry
        )
        self.disconnects = Counter(
            "qwen3_disconnects", "Clients that left before the end.", registry=registry
        )
        self.prompt_tokens = Counter(
            "qwen3_prompt_tokens", "Tokens of prompts that were read.", registry=registry
        )
        self.shared_tokens = Counter(
            "qwen3_prompt_tokens_shared", "Those of them that were in the cache already.", registry=registry
        )
        self.completion_tokens = Counter("qwen3_completion_tokens", "Tokens generated.", registry=registry)
        self.first_token_s = Histogram(
            "qwen3_time_to_first_token_seconds", "From the request to its first token.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.token_s = Histogram(
            "qwen3_time_per_token_seconds", "Between the tokens of a request, its mean.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.request_s = Histogram(
            "qwen3_request_seconds", "From the request to the end of its answer.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip

    def count(self, event: Event) -> None:
        """Count a token that was generated, and with its first one a prompt that was read."""
        if event.error:
            return
        self.completion_tokens.inc()
        # The samples of a prompt share it.
        if len(event.job.ids) == 1 and event.job.request.sample == 0:
            self.prompt_tokens.inc(len(event.job.request.prompt_ids))
            self.shared_tokens.inc(event.job.num_shared)

    def watch(self, worker: "Worker") -> None:
        """Count what `worker` computes, and show its queue and cache at the time of asking."""
        worker.count = self.count
        self._gauge("qwen3_requests_waiting", "Sequences in the queue.", lambda: worker.num_waiting)
        self._gauge("qwen3_requests_running", "Sequences in the cache.", lambda: worker.num_running)
        self._gauge("qwen3_cache_tokens_used", "Tokens of the cache in use.", lambda: worker.cache_tokens[0])
        self._gauge("qwen3_cache_tokens", "Tokens of the cache.", lambda: worker.cache_tokens[1])

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)
