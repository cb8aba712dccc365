"""OpenTelemetry traces, where an OTLP endpoint is configured by the standard OTEL_* variables; nothing otherwise.

Without one nothing of OpenTelemetry is imported, and a span costs a comparison. Spans carry routes, counts and request
ids, never accounts, cards or payments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from graph_features.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces by OTLP."""
    return (
        any(environment.get(name) for name in ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"
    )


def start(version: str) -> bool:
    """Begin to send traces if that is configured; raise SettingsError where the packages for it are missing."""
    global _provider, _tracer
    if not wanted(os.environ):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{ENDPOINTS[1]} is set, and {error.name} is not installed: `pip install 'ringfence[traces]'`"
        ) from None
    own = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = "ringfence"
    _provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("ringfence.serving", version)
    return True


def stop() -> None:
    """Send what is left and end."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """A span of the work in this block, within the one at work; an error inside marks it as failed."""
    if _tracer is None:
        return nullcontext()
    # No exception text: it may name what a client sent.
    return _tracer.start_as_current_span(name, attributes=attributes, record_exception=False)


@contextmanager
def request_span(headers: Mapping[str, str], request_id: str) -> Iterator[Any]:
    """The span of a whole request, child of the caller's if `headers` carry a trace context (W3C); None when off."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    with _tracer.start_as_current_span(
        "request",
        context=TraceContextTextMapPropagator().extract(carried),
        kind=SpanKind.SERVER,
        attributes={"ringfence.request_id": request_id},
        record_exception=False,
    ) as found:
        yield found


def describe(found: Any, *, method: str, route: str, status: int) -> None:
    """Say of a request's span what became of it."""
    if found is None:
        return
    found.update_name(f"{method} {route}")
    found.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= 500:
        from opentelemetry.trace import StatusCode

        found.set_status(StatusCode.ERROR)


def stages(stage_ms: Mapping[str, float]) -> None:
    """Spans of stages that ended just now, one after the other, known by their times alone (those of workers)."""
    if _tracer is None:
        return
    at = time.time_ns() - int(sum(stage_ms.values()) * 1e6)
    for name, taken_ms in stage_ms.items():
        begun, at = at, at + int(taken_ms * 1e6)
        _tracer.start_span(name, start_time=begun).end(at)


def trace_id() -> str:
    """The trace at work in this context, for logs; empty when there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
