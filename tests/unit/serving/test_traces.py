"""Traces: sent by OTLP when an endpoint is configured, in the caller's trace; nothing is imported when none is."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serving import traces

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Spans that an OTLP collector of this test received; the endpoint is set by the standard variable."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield spans
    traces.stop()
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def test_a_request_is_traced_within_its_caller_s_trace(run_app: Any, payment: Any, collected: list[Any]) -> None:
    """One span per request, child of the caller's, with the stages below it; no account, card or payment in any."""
    client, _ = run_app()
    row = {**payment, "sender_id": "private-sender", "transaction_id": "private-id", "card_id": "private-card"}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    assert client.post("/predict", json={"transactions": [row]}, headers=headers).status_code == 200
    assert client.get("/decisions/private-none", headers=headers).status_code == 404
    traces.stop()
    by_name = {span.name: span for span in collected}
    (request, missing) = by_name["POST /predict"], by_name["GET /decisions/{transaction_id:path}"]
    assert {span.trace_id.hex() for span in collected} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    attributes = {item.key: item.value for item in request.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["ringfence.request_id"].string_value == "mine"
    assert {item.key: item.value for item in missing.attributes}["http.response.status_code"].int_value == 404
    assert by_name["score"].parent_span_id == request.span_id
    for name in ("parse", "read", "build", "infer", "feature_engineering", "record"):
        assert by_name[name].parent_span_id == by_name["score"].span_id
    assert b"private" not in b"".join(span.SerializeToString() for span in collected)


def test_log_lines_name_the_trace(collected: list[Any]) -> None:
    """Within a traced request every log line carries the id of its trace."""
    import logging

    from serving.logs import JsonFormatter

    record = logging.LogRecord("ringfence", logging.INFO, "", 0, "hello", None, None)
    assert traces.start("0")
    with traces.request_span({"traceparent": f"00-{TRACE}-{PARENT}-01"}, "r"):
        assert f'"trace_id":"{TRACE}"' in JsonFormatter().format(record)
    traces.stop()
    assert "trace_id" not in JsonFormatter().format(record)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_decide(variables: dict[str, str], expected: bool) -> None:
    """An endpoint turns traces on; the switches of the standard turn them off."""
    assert traces.wanted(variables) is expected


def test_nothing_is_imported_when_off() -> None:
    """Without an endpoint no module of OpenTelemetry is loaded, and a span does nothing."""
    code = """
import sys
from serving import traces
assert traces.start("0") is False
with traces.span("a", n=1), traces.request_span({}, "r") as found:
    traces.stages({"b": 1.0})
    traces.describe(found, method="GET", route="/", status=500)
assert found is None
assert traces.trace_id() == ""
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
