"""What is told of a command when its new status is committed: to its topic, to the counters, to the trace, to those who
wait for it."""

from __future__ import annotations

from typing import Any

from bridge.agents.services import Services
from bridge.commands import Command, CommandStatus


def announce(
    services: Services, command: Command, cause: str, status: CommandStatus | None = None, at: float | None = None
) -> None:
    """Tell of the status that `command` has, or of `status`, which it reached at `at` (Unix seconds) and may have left
    since."""
    status = status or command.status
    body: dict[str, Any] = {
        "id": command.command_id,
        "key": command.key,
        "name": command.name,
        "status": status.value,
        "at": at or command.updated_at,
        "cause": cause,
    }
    if status is CommandStatus.SUCCEEDED:
        body["result"] = command.result
    elif status is CommandStatus.FAILED:
        body["error"] = command.error
    census = services.census
    census.commands[status.value] += 1
    if status is not CommandStatus.QUEUED:
        census.command_steps[status.value].observe(body["at"] - command.created_at)
    if status.final and services.tracing.on:
        _trace(services, command, status, body["at"])
    services.publish_json(command.device_id, "command/status", body, qos=1)
    services.command_changed(command.command_id)
    if status.final and command.rollout_id is not None and services.rollout_news is not None:
        services.rollout_news(command.rollout_id, command.command_id, status)


def _trace(services: Services, command: Command, status: CommandStatus, at: float) -> None:
    told: dict[str, str | int] = {
        "bridge.command.id": command.command_id,
        "bridge.command.name": command.name,
        "bridge.command.status": status.value,
        "bridge.device.id": command.device_id,
        "bridge.attempts": command.attempts,
    }
    error = None if status is CommandStatus.SUCCEEDED else command.error or status.value
    services.tracing.record("command", command.created_at, at, told, error)
