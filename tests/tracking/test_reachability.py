"""Reachability of a W&B server."""

import socket
import time

import pytest

from gating.tracking import reachability
from gating.tracking.reachability import why_unreachable
from tests.support.fake_wandb import KEY, fake_server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(reachability, "_TIMEOUT", 0.5)
    with fake_server() as running:
        yield running


def test_a_server_that_accepts_the_key_is_reachable(server):
    assert why_unreachable(server.url, KEY) is None
    assert why_unreachable(f"{server.url}/", KEY) is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (401, "the server refuses the key"),
        (403, "the server refuses the key"),
        (404, "the server answers 404 Not Found"),
        (429, "the server answers 429 Too Many Requests"),
        (500, "the server answers 500 Internal Server Error"),
        (503, "the server answers 503 Service Unavailable"),
        ("redirect", "the server answers 302 Found"),
        ("nobody", "the key is unknown to the server"),
        ("noise", "Expecting value"),
        ("hang", "timed out"),
        ("drip", "no answer within 1 s"),
    ],
)
def test_every_fault_has_a_reason_within_seconds(server, fault, reason):
    server.fault = fault
    start = time.monotonic()
    assert reason in why_unreachable(server.url, KEY, deadline=1)
    assert time.monotonic() - start < 10  # a bound on hanging, not on speed


def test_a_client_error_about_the_query_means_reachable(server):
    server.fault = 400
    assert why_unreachable(server.url, KEY) is None


def test_a_closed_port_and_an_invalid_address_have_reasons():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert "refused" in why_unreachable(f"http://127.0.0.1:{port}", KEY)
    assert "unknown url type" in why_unreachable("nonsense", KEY)


def test_the_key_is_not_sent_to_another_server(server):
    with fake_server() as other:
        server.fault, server.elsewhere = "redirect", other.url
        why_unreachable(server.url, KEY)
        assert other.questions == []
    (headers, body) = server.questions[0]
    assert headers["Authorization"].startswith("Basic ")
    assert KEY not in body


def test_without_a_key_any_response_about_it_means_reachable(server):
    for fault in (None, 401, 403, "nobody"):
        server.fault = fault
        assert why_unreachable(server.url, None) is None
    server.fault = 500
    assert "Internal Server Error" in why_unreachable(server.url, None)
    assert all("Authorization" not in headers for headers, _ in server.questions)
