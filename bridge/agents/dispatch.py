"""How a command is put to its device: on the bridge's own topic, or in the device's own words."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bridge.agents.services import Services
from bridge.commands import Command
from bridge.profiles import Profile


def send(services: Services, profile: Profile, command: Command, acknowledged: Callable[[], None]) -> bool:
    """Publish one attempt, for the connections that are there now; the device's PUBACK calls `acknowledged`. False if
    the device will never say what became of it.

    Raises RefusedError if the device's own words cannot be made of the command's arguments.
    """
    request = profile.request(command.name)
    if request is not None:
        topic, payload = request.render(command.device_id, command.name, command.args)
        answered = request.answered
    else:
        topic = services.topics.of(command.device_id, "command/request")
        payload = msgspec.json.encode(
            {
                "id": command.command_id,
                "name": command.name,
                "args": command.args,
                "expires_at": command.expires_at,
            }
        )
        answered = True
    services.publish(
        topic,
        payload,
        qos=1,
        live_only=True,
        expires_at=command.expires_at,
        on_ack=acknowledged if answered else None,
    )
    return answered


def call_off(services: Services, command: Command) -> None:
    """Tell the device, if it is there, that a command it has been sent is cancelled."""
    topic = services.topics.of(command.device_id, "command/cancel")
    services.publish(topic, msgspec.json.encode({"id": command.command_id}), qos=1, live_only=True)
