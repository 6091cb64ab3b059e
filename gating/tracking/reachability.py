"""Whether the server of Weights & Biases takes a run, asked before W&B does, which tries for minutes."""

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

# A request may take as long between two bytes, and all of it this long; looking up a name has no limit of its own.
_TIMEOUT = 5.0
_DEADLINE = 8.0
_QUESTION = {"query": "query Viewer { viewer { id } }"}


def why_unreachable(base_url: str, key: str | None, *, deadline: float = _DEADLINE) -> str | None:
    """Ask the server, within seconds, whom a key belongs to.

    Args:
        base_url: Address of the server.
        key: The account's key; None if the account has a token instead, which only W&B can show to the server.
        deadline: Seconds to wait for the answer.

    Returns:
        Why a run cannot be sent there; None if it can.
    """
    return with_timeout(deadline, lambda: _ask(base_url, key))


def with_timeout(deadline: float, ask: Callable[[], str | None]) -> str | None:
    """Return what a function returns, or that it has taken too long.

    Args:
        deadline: Seconds that it may take; it goes on in the background then.
        ask: Returns what is wrong with an answer, or None.
    """
    answers: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: answers.put(ask()), daemon=True).start()
    try:
        return answers.get(timeout=deadline)
    except queue.Empty:
        return f"no answer within {deadline:g} s"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask(base_url: str, key: str | None) -> str | None:
    login = {} if key is None else {"Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"}
    try:
        request = urllib.request.Request(
            f"{base_url.rstrip('/')}/graphql",
            data=json.dumps(_QUESTION).encode(),
            headers={**login, "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=_TIMEOUT) as response:
            answer = json.loads(response.read(2**16))
    except urllib.error.HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return "the server refuses the key" if key is not None else None
        # Other complaints about the question are an answer, too.
        is_fault = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
        is_elsewhere = error.code == HTTPStatus.NOT_FOUND or error.code < HTTPStatus.BAD_REQUEST
        return f"the server answers {error.code} {error.reason}" if is_fault or is_elsewhere else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    viewer = (answer.get("data") or {}).get("viewer") if isinstance(answer, dict) else None
    return None if viewer or key is None else "the server does not know the key"
