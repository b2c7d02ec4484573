"""What can be wrong with an HTTP request, in OpenAI's form."""

from collections.abc import Mapping


class ApiError(Exception):
    """An answer that says what is wrong and how to mend it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, _sendable(message), code
        self.param = None if param is None else _sendable(param)
        self.retry_after_s, self._headers = retry_after_s, dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        headers = dict(self._headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def body(self) -> dict[str, object]:
        """Return the JSON object of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


def _sendable(text: str) -> str:
    """Return `text`, which may quote what a client sent, with its lone surrogates spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def invalid(param: str, message: str) -> ApiError:
    """Return the answer to a field with a wrong value."""
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")
