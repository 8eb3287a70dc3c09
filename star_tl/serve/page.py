"""The chat page: one file, whose script and style are the only ones that a browser may run."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.S)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'" for p in parts)


CONTENT_POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
