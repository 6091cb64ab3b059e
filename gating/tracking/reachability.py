"""Reachability of the Weights & Biases server, checked within seconds; wandb itself retries for minutes."""

import base64
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

__all__ = ["with_timeout", "why_unreachable"]

# Seconds between two bytes of a response, and for the whole request: DNS lookups have no timeout of their own.
_TIMEOUT = 5.0
_DEADLINE = 8.0
_QUERY = {"query": "query Viewer { viewer { id } }"}


def why_unreachable(base_url: str, key: str | None, *, deadline: float = _DEADLINE) -> str | None:
    """Return the reason why a W&B server is unreachable or refuses the API key, or None.

    Args:
        base_url: URL of the server.
        key: API key of the account; None for an account with an identity token, which only wandb can present.
        deadline: Seconds to wait for the response.
    """
    return with_timeout(deadline, lambda: _query(base_url, key))


def with_timeout(deadline: float, check: Callable[[], str | None]) -> str | None:
    """Return the problem that a check finds, or a message after ``deadline`` seconds; the check then goes on apart.

    Example:
        >>> with_timeout(60.0, lambda: "connection refused")
        'connection refused'
    """
    results: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: results.put(check()), daemon=True).start()
    try:
        return results.get(timeout=deadline)
    except queue.Empty:
        return f"no answer within {deadline:g} s"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Handler that refuses redirects, which would send the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _query(base_url: str, key: str | None) -> str | None:
    login = {} if key is None else {"Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"}
    try:
        request = urllib.request.Request(
            f"{base_url.rstrip('/')}/graphql",
            data=json.dumps(_QUERY).encode(),
            headers={**login, "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=_TIMEOUT) as response:
            answer = json.loads(response.read(2**16))
    except urllib.error.HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return "the server refuses the key" if key is not None else None
        # Other client errors are about the query: the server works.
        is_fault = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
        is_elsewhere = error.code == HTTPStatus.NOT_FOUND or error.code < HTTPStatus.BAD_REQUEST
        return f"the server answers {error.code} {error.reason}" if is_fault or is_elsewhere else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    viewer = (answer.get("data") or {}).get("viewer") if isinstance(answer, dict) else None
    return None if viewer or key is None else "the key is unknown to the server"
