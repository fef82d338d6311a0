"""Spans for OpenTelemetry: one for each committed batch and one for each finished command, never one for a message.

The libraries come with the extra `otel`. Without it, or without a place to send spans to, nothing is made and nothing
is imported. Spans are recorded when what they tell of is over, and are sent by a thread of their own; where they cannot
be sent they are dropped, of the newest at most 2,048 wait.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Self, final

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = structlog.get_logger(__name__)

NANOSECONDS: Final = 1_000_000_000
SENT_WITHIN: Final = 3.0
"""Seconds that a collector gets for what it is sent, all tries together; also what it may hold up the end."""
TOLD_EVERY: Final = 60.0
"""Seconds between two lines in the log about a collector that does not answer: the exporter has one for each try."""


class _Rarely(logging.Filter):
    """Lets through one record in `TOLD_EVERY` seconds."""

    _next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + TOLD_EVERY
        return True


@final
class Tracing:
    """Records spans, or does nothing (`Tracing()`)."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """`processor` takes the spans. Raises ImportError if there is one without the extra."""
        self._provider: TracerProvider | None = None
        if processor is None:
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource.create({"service.name": "mqtt-agent-bridge"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bridge")

    @classmethod
    def to(cls, endpoint: str | None) -> Self:
        """Send spans to `endpoint` (OTLP over HTTP). Does nothing without one, or, and says so, without the extra."""
        if endpoint is None:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning("tracing.endpoint is set, but the extra is missing: pip install 'mqtt-agent-bridge[otel]'")
            return cls()
        exporter = logging.getLogger(OTLPSpanExporter.__module__.removesuffix(".__init__"))
        if not any(isinstance(one, _Rarely) for one in exporter.filters):
            exporter.addFilter(_Rarely())
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=SENT_WITHIN)))

    @property
    def on(self) -> bool:
        """Whether spans are recorded."""
        return self._provider is not None

    def record(
        self, name: str, began: float, ended: float, attributes: dict[str, str | int], error: str | None = None
    ) -> None:
        """Something that took from `began` to `ended`, Unix seconds; `error` if it failed."""
        if self._provider is None:
            return
        span = self._tracer.start_span(name, attributes=attributes, start_time=int(began * NANOSECONDS))
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR, error))
        span.end(int(ended * NANOSECONDS))

    def close(self) -> None:
        """Send what waits. May take seconds: not for the event loop's thread."""
        if self._provider is not None:
            self._provider.shutdown()
