"""TLS and WebSocket end in the same connection as TCP."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import connect as websocket
from websockets.typing import Origin, Subprotocol

from bridge.errors import StartError
from tests.integration.broker.raw import ACCEPTED, PINGREQ, PINGRESP, ack, connect, publish, running
from tests.waiting import eventually

MQTT = Subprotocol("mqtt")
TELEMETRY = "devices/d/telemetry"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    options = f"-nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {chain}"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *options.split()], check=True, capture_output=True
    )
    return chain, key


async def test_tls(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    trusting = ssl.create_default_context(cafile=str(chain))
    async with running(tls_port=0, tls_certificate=chain, tls_key=key) as house:
        raw = await house.raw(house.broker.ports["mqtts"], ssl=trusting, server_hostname="localhost")
        raw.send(connect("c") + publish(TELEMETRY, b"x" * 200_000, qos=1))
        await raw.expect(ACCEPTED + ack("puback"))
        await raw.quiet()
        assert house.desk.payloads == [b"x" * 200_000]


async def test_a_stranger_at_the_tls_port() -> None:
    with pytest.raises(StartError, match="TLS_CERTIFICATE"):
        async with running(tls_port=0):
            pass


async def test_websocket() -> None:
    """Binary frames, packets may span them, the subprotocol is mqtt: [MQTT-6.0.0-2], [MQTT-6.0.0-4]; and over TCP and
    TLS the same, [MQTT-7.1.1-1]."""
    async with running(websocket_port=0) as house:
        async with websocket(f"ws://127.0.0.1:{house.broker.ports['ws']}", subprotocols=[MQTT]) as client:
            assert client.subprotocol == "mqtt"
            data = connect("c") + publish(TELEMETRY, b"x" * 1000, qos=1) + PINGREQ
            for at in range(0, len(data), 100):
                await client.send(data[at : at + 100])
            await client.send(b"")
            await client.ping()
            got = b""
            async with asyncio.timeout(10):
                while len(got) < 10:
                    more = await client.recv()
                    assert isinstance(more, bytes)
                    got += more
            assert got == ACCEPTED + ack("puback") + PINGRESP or got == ACCEPTED + PINGRESP + ack("puback")
        await eventually(lambda: not house.broker.connections, "the end")
        assert house.desk.payloads == [b"x" * 1000]


@pytest.mark.parametrize("frame", ["text", PINGREQ])
async def test_a_websocket_that_breaks_the_rules_is_closed(frame: str | bytes) -> None:
    """[MQTT-6.0.0-1]."""
    async with (
        running(websocket_port=0) as house,
        websocket(f"ws://127.0.0.1:{house.broker.ports['ws']}", subprotocols=[MQTT]) as client,
    ):
        await client.send(frame)
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(client.recv(), 10)
        await eventually(lambda: not house.broker.connections, "the end")
        assert house.broker.stats.closed["protocol_error"] == 1


@pytest.mark.parametrize(
    ("origin", "subprotocols", "status"),
    [("http://evil.example", [MQTT], 403), (None, None, 400), (None, [Subprotocol("chat")], 400)],
)
async def test_who_may_open_a_websocket(
    origin: str | None, subprotocols: list[Subprotocol] | None, status: int
) -> None:
    """No web page may, unless it is listed; and one must ask for MQTT, [MQTT-6.0.0-3]."""
    async with running(websocket_port=0) as house:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websocket(
                f"ws://127.0.0.1:{house.broker.ports['ws']}",
                origin=None if origin is None else Origin(origin),
                subprotocols=subprotocols,
            ):
                pass
        assert refused.value.response.status_code == status
        await eventually(lambda: not house.broker.connections, "the end")


async def test_a_listed_page_may_open_a_websocket() -> None:
    async with running(websocket_port=0, websocket_origins=("http://127.0.0.1:8080",)) as house:
        url = f"ws://127.0.0.1:{house.broker.ports['ws']}"
        async with websocket(url, origin=Origin("http://127.0.0.1:8080"), subprotocols=[MQTT]) as client:
            await client.send(connect("c"))
            assert await client.recv() == ACCEPTED


async def test_a_websocket_that_says_nothing_is_closed() -> None:
    async with running(websocket_port=0, connect_timeout=0.2) as house:
        raw = await house.raw(house.broker.ports["ws"])
        await raw.closed()
        assert house.broker.stats.closed == {"connect_timeout": 1}
