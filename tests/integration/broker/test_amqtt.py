"""What the broker room relies on in amqtt: looked at here first when its version changes."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import pytest
from amqtt.broker import Broker
from amqtt.plugins.manager import PluginManager

from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.errors import StartError
from bridge.receipts import Ledger
from bridge.topics import Topics
from tests.integration.broker.house import RecordingIntake


def test_the_version_that_was_read() -> None:
    assert version("amqtt") == "0.12.1"


async def test_amqtts_constructor_makes_a_plugin_manager_and_starts_nothing() -> None:
    tasks = asyncio.all_tasks()
    broker = EmbeddedBroker(BrokerConfig(port=0), Topics(), Ledger(), RecordingIntake())
    assert isinstance(broker, Broker)
    assert isinstance(broker.plugins_manager, PluginManager)
    assert broker.plugins_manager.plugins == [], "none but those that are configured"
    assert broker._loop is asyncio.get_running_loop()
    assert asyncio.all_tasks() == tasks
    await broker.stop(1.0)


async def test_plugins_that_would_not_be_asked_are_refused() -> None:
    config = BrokerConfig(port=0, plugins={"amqtt.plugins.authentication.FileAuthPlugin": {}})
    with pytest.raises(StartError, match="FileAuthPlugin"):
        EmbeddedBroker(config, Topics(), Ledger(), RecordingIntake())
