"""What the broker room relies on in amqtt: fails loudly when an upgrade changes it."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from amqtt.broker import Broker, BrokerContext, RetainedApplicationMessage
from amqtt.contexts import Action, BrokerConfig
from amqtt.events import BrokerEvents
from amqtt.plugins.manager import PluginManager
from amqtt.session import IncomingApplicationMessage, Session

from bridge.broker.broker import EmbeddedBroker


def parameters(function: object) -> list[str]:
    """The names of a function's parameters."""
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]  # only functions are given


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("amqtt") == "0.12.1"


def test_the_plugin_manager() -> None:
    assert parameters(PluginManager.__init__) == ["self", "namespace", "context", "loop"]
    assert parameters(PluginManager.map_plugin_auth) == ["self", "session"]
    assert parameters(PluginManager.map_plugin_topic) == ["self", "session", "topic", "action"]
    source = inspect.getsource(PluginManager.__init__)
    for name in ("_auth_plugins", "_topic_plugins", "_event_plugin_callbacks"):
        assert f"self.{name}" in source


def test_the_broker_that_is_built_on() -> None:
    assert parameters(Broker.__init__) == ["self", "config", "loop", "plugin_namespace"]
    source = inspect.getsource(Broker.__init__)
    assert "self.plugins_manager = PluginManager(namespace, context, self._loop)" in source
    # Nothing of amqtt's listens or runs before `start`, which is replaced.
    assert "create_task" not in source
    assert "_start_listeners" in inspect.getsource(Broker.start)
    assert EmbeddedBroker.start is not Broker.start


def test_what_a_plugins_context_calls() -> None:
    """Each of these must be this room's own."""
    source = inspect.getsource(BrokerContext)
    for name in ("internal_message_broadcast", "retain_message", "sessions", "retained_messages", "subscriptions"):
        assert f"_broker_instance.{name}" in source
        assert getattr(EmbeddedBroker, name) is not getattr(Broker, name)


def test_what_plugins_are_shown() -> None:
    session = Session()
    for name in ("client_id", "username", "password", "clean_session", "keep_alive", "remote_address", "is_anonymous",
                 "will_flag", "will_topic", "will_message", "will_qos", "will_retain"):  # fmt: skip
        assert hasattr(session, name)
    assert parameters(IncomingApplicationMessage.__init__) == ["self", "packet_id", "topic", "qos", "data", "retain"]
    assert parameters(RetainedApplicationMessage.__init__) == ["self", "source_session", "topic", "data", "qos"]
    assert {action.value for action in Action} == {"publish", "subscribe", "receive"}
    assert {event.value for event in BrokerEvents} == {
        "broker_pre_start", "broker_post_start", "broker_pre_shutdown", "broker_post_shutdown",
        "broker_client_connected", "broker_client_disconnected", "broker_client_subscribed",
        "broker_client_unsubscribed", "broker_retained_message", "broker_message_received",
        "broker_message_broadcast",
    }  # fmt: skip
    assert BrokerConfig(plugins={}).plugins == {}
