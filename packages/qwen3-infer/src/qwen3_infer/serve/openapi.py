"""What the server answers, as OpenAPI says it and as a page to read."""

import html
import json
from collections.abc import Mapping

from qwen3_infer.serve.fields import CHAT, COMPLETION, DETOKENIZE, RESPONSES, TOKENIZE, Field
from qwen3_model.command.checked import Checked

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
        "info": {"title": "qwen3-infer serve", "version": version},
        "paths": paths,
        "components": {"schemas": {"Error": _error()}, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _body(fields: Mapping[str, Field], required: tuple[str, ...], model: str) -> dict[str, object]:
    properties: dict[str, object] = {}
    for name, each in fields.items():
        schema: dict[str, object] = {"enum": [model]} if name == "model" else dict(each.schema)
        if schema and name not in required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        properties[name] = schema | ({"description": each.rule} if each.rule else {})
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _refusals() -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in REFUSALS.items()}


def _error() -> dict[str, object]:
    texts = {name: {"type": ["string", "null"]} for name in ("param", "code")}
    named = {name: {"type": "string"} for name in ("message", "type")}
    error = {"type": "object", "properties": named | texts, "required": ["message", "type", "param", "code"]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def page(document: Mapping[str, Checked]) -> str:
    """Return the document as HTML without scripts, styles or anything from elsewhere."""
    parts = [f"<h1>{html.escape(document['info']['title'])} {html.escape(document['info']['version'])}</h1>"]
    parts.append('<p>As a document: <a href="openapi.json">openapi.json</a></p>')
    for path, methods in document["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{html.escape(what['summary'])}</p>")
            if "requestBody" in what:
                parts.append(_table(what["requestBody"]["content"]["application/json"]["schema"]))
    parts.append("<h2>Errors</h2><table>")
    parts += [f"<tr><td>{status}</td><td>{html.escape(text)}</td></tr>" for status, text in REFUSALS.items()]
    parts.append("</table>")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>qwen3-infer serve</title>'
    return head + "\n".join(parts) + "</html>\n"


def _table(schema: Mapping[str, Checked]) -> str:
    rows = []
    for name, each in schema["properties"].items():
        must = "yes" if name in schema["required"] else ""
        rule = each.get("description", "any value; without effect")
        shown = json.dumps(
            {key: value for key, value in each.items() if key != "description"}, ensure_ascii=False
        )
        cells = (name, must, rule, shown)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>field</th><th>required</th><th>values</th><th>schema</th></tr>"
    return f"<table border=1>{head}{''.join(rows)}</table>"
