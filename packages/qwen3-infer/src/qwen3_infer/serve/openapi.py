"""What the server answers, as OpenAPI says it and as a page to read."""

import html
import json
from collections.abc import Mapping

from qwen3_infer.serve.fields import CHAT, COMPLETION, DETOKENIZE, RESPONSES, TOKENIZE, Field

TITLE = "qwen3-infer serve"
POSTS: Mapping[str, tuple[str, Mapping[str, Field], tuple[str, ...]]] = {
    "/v1/chat/completions": ("Messages to an answer.", CHAT, ("model", "messages")),
    "/v1/completions": ("Text, or token ids, to what follows.", COMPLETION, ("model", "prompt")),
    "/v1/responses": ("Items to a response; nothing is kept.", RESPONSES, ("model", "input")),
    "/tokenize": ("A text, or messages, to token ids.", TOKENIZE, ()),
    "/detokenize": ("Token ids to a text.", DETOKENIZE, ("tokens",)),
}
GETS = {
    "/v1/models": "The one model.",
    "/health": "Whether the server works.",
    "/version": "Of this program.",
    "/metrics": "Prometheus' text.",
}
STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
REFUSALS = {
    "400": "Something in the request is wrong or not implemented; the message says what.",
    "401": "The key is missing or wrong.",
    "403": "The Host is not this machine's.",
    "404": "There is no such model.",
    "408": "The body was too slow.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "The queue is full; Retry-After says when to come again.",
    "431": "The headers are too large.",
    "500": "The model failed.",
    "503": "The server is about to end.",
    "504": "The answer took too long.",
}


def describe(version: str, model: str) -> dict[str, object]:
    """Return the document of OpenAPI 3.1 for a server with one model."""
    paths: dict[str, object] = {
        path: {"get": {"summary": text, "responses": {"200": {"description": "Done."}, **_refusals()}}}
        for path, text in GETS.items()
    }
    for path, (text, fields, required) in POSTS.items():
        content: dict[str, object] = {"application/json": {"schema": {"type": "object"}}}
        if path in STREAMS:
            content["text/event-stream"] = {}  # OpenAPI 3.1 cannot describe events one by one
        body = {"required": True, "content": {"application/json": {"schema": _body(fields, required, model)}}}
        paths[path] = {
            "post": {
                "summary": text,
                "requestBody": body,
                "responses": {"200": {"description": "Done.", "content": content}, **_refusals()},
            }
        }
    key = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version},
        "paths": paths,
        "components": {"schemas": {"Error": _error()}, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _body(fields: Mapping[str, Field], required: tuple[str, ...], model: str) -> dict[str, object]:
    properties = {
        name: _schema(name, each, required, model) | ({"description": each.rule} if each.rule else {})
        for name, each in fields.items()
    }
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _schema(name: str, field: Field, required: tuple[str, ...], model: str) -> dict[str, object]:
    schema: dict[str, object] = {"enum": [model]} if name == "model" else dict(field.schema)
    return {"anyOf": [schema, {"type": "null"}]} if schema and name not in required else schema


def _refusals() -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in REFUSALS.items()}


def _error() -> dict[str, object]:
    texts = {name: {"type": ["string", "null"]} for name in ("param", "code")}
    named = {name: {"type": "string"} for name in ("message", "type")}
    error = {"type": "object", "properties": named | texts, "required": ["message", "type", "param", "code"]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def page(version: str, model: str) -> str:
    """Return what `describe` says as HTML without scripts, styles or anything from elsewhere."""
    parts = [f"<h1>{TITLE} {html.escape(version)}</h1>"]
    parts.append('<p>As a document: <a href="openapi.json">openapi.json</a></p>')
    parts += [f"<h2>GET {path}</h2><p>{html.escape(text)}</p>" for path, text in GETS.items()]
    for path, (text, fields, required) in POSTS.items():
        parts.append(f"<h2>POST {path}</h2><p>{html.escape(text)}</p>")
        parts.append(_table(fields, required, model))
    parts.append("<h2>Errors</h2><table>")
    parts += [f"<tr><td>{status}</td><td>{html.escape(text)}</td></tr>" for status, text in REFUSALS.items()]
    parts.append("</table>")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>' + TITLE + "</title>"
    return head + "\n".join(parts) + "</html>\n"


def _table(fields: Mapping[str, Field], required: tuple[str, ...], model: str) -> str:
    rows = []
    for name, each in fields.items():
        must = "yes" if name in required else ""
        rule = each.rule or "any value; without effect"
        shown = json.dumps(_schema(name, each, required, model), ensure_ascii=False)
        cells = (name, must, rule, shown)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>field</th><th>required</th><th>values</th><th>schema</th></tr>"
    return f"<table border=1>{head}{''.join(rows)}</table>"
