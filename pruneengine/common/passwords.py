"""Database URLs as they may be shown: without their password."""

from __future__ import annotations

import re

# The user's part of a URL, and a password among its options. A password may hold "@" itself: the last one ends it.
_IN_USER = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s:/@'\"]*):[^\s'\"]*@")
_IN_OPTION = re.compile(r"([?&](?:password|passwd|pwd)=)[^\s&'\"]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return a text in which ``***`` stands for every password of a URL."""
    return _IN_OPTION.sub(r"\1***", _IN_USER.sub(r"\1:***@", text))
