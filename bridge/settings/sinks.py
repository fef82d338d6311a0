"""The tables `[sinks.NAME]`: who is passed what is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bridge.settings.sections import Count, Seconds, Secret, Section

_NEEDS = {"webhook": "url", "mqtt": "url", "ndjson": "folder", "parquet": "folder"}


class SinkSection(Section):
    """A receiver of what is committed: each has its own place in the data, its own retries and its own limits."""

    type: str = Field(
        pattern=r"^(webhook|mqtt|ndjson|parquet|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description='webhook, mqtt, ndjson, parquet, or a class of your own as "module:Class".',
    )
    kinds: tuple[Literal["telemetry", "event", "presence", "command"], ...] = Field(
        (), description="Only these of telemetry, event, presence, command; all if none is named."
    )
    devices: tuple[str, ...] = Field((), description='Only devices whose id fits one of these patterns, as ["cold-*"].')
    streams: tuple[str, ...] = Field(
        (), description="Only readings of streams that fit one of these patterns; events are the streams event/KIND."
    )
    start: Literal["now", "beginning"] = Field(
        "now", description="What a new sink is passed: only what comes from now on, or all that is stored."
    )
    batch: Count = Field(500, description="Records in one delivery at most.")
    rate: float = Field(0.0, ge=0, description="Records a second at most; 0 for any number.")
    wait: float = Field(
        0.0, ge=0, description="Seconds that a delivery which is not full may wait for more; for Parquet 60 or more."
    )
    url: str | None = Field(
        None,
        description="webhook: where to post, https://…; mqtt: the broker, mqtt://user:password@host:1883 or mqtts://….",
    )
    secret: Secret | None = Field(None, description="webhook: signs each request (HMAC-SHA256, Standard Webhooks).")
    timeout: Seconds = Field(10.0, description="webhook: seconds for one request.")
    prefix: str = Field("bridge", description="mqtt: first levels of the topics, before /DEVICE/KIND.")
    version: Literal["3.1.1", "5"] = Field("5", description="mqtt: the protocol version.")
    ca_file: Path | None = Field(None, description="mqtts: PEM file of who may have signed the broker's certificate.")
    folder: Path | None = Field(None, description="ndjson, parquet: the folder to write into.")
    max_bytes: Count = Field(100_000_000, description="ndjson: size at which a file is full and the next one begins.")
    keep: int = Field(0, ge=0, description="ndjson, parquet: full files that stay, the newest; 0 for all.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of a class of your own.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = _NEEDS.get(self.type)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"a sink of type {self.type} needs {needed}")
        return self
