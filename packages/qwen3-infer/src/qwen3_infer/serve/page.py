"""The chat page: one document with its scripts and its style, and a policy that lets in nothing else."""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse, Response


def make_page() -> Response:
    """Return the page; nothing runs or loads but its own scripts and style."""
    folder = files("qwen3_infer") / "serve/web"
    html = (folder / "chat.html").read_text(encoding="utf-8")

    def inline(match: re.Match[str]) -> str:
        return match[1] + (folder / match[2]).read_text(encoding="utf-8") + match[3]

    html = re.sub(r"(<(?:script|style)>)([\w.-]+)(</)", inline, html)
    scripts, styles = (_digests(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


def _digests(html: str, tag: str) -> str:
    """Return the hashes of the inline scripts or styles, as a policy names them."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
