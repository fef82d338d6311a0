"""Profiles: which one a device has, and what one consists of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.broker.access import Role, rights_of
from bridge.errors import RefusedError, SettingsError
from bridge.profiles import Profile, Profiles
from bridge.settings import Settings
from bridge.topics import Grants, Topics

FREEZERS = """
[agent]
ping_interval = 40
[command]
ttl = 50
[profiles.default]
ping_misses = 7
command_ttl = 20
[profiles.freezer]
description = "Cold rooms"
match = ["freezer-*", "fz?"]
agent = "coldchain:Freezer"
ping_interval = 10
[profiles.freezer.commands.defrost]
type = "object"
properties.minutes = { type = "integer" }
[profiles.mute]
ping_interval = 0
agent = ""
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> Settings:
    Path("bridge.toml").write_text(text)
    return Settings.load(Path("bridge.toml"))


def refused(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(text)
    return str(caught.value)


# ---------------------------------------------------------------------- which one


def test_the_first_pattern_that_fits_gives_an_unknown_device_its_profile() -> None:
    profiles = Profiles([Profile("a", match=("x-*",)), Profile("b", match=("x-1", "y?"))], for_unknown="b")
    assert [profiles.of_unknown(i).name for i in ("x-1", "y2", "Y2", "z")] == ["a", "b", "b", "b"]
    assert Profiles().of_unknown("z").name == "default"


def test_a_profile_that_is_there_no_more_is_the_default_one() -> None:
    profiles = Profiles([Profile("a")])
    assert profiles.get("a").name == "a"
    assert profiles.get("gone") is profiles.default
    assert "gone" not in profiles


# ---------------------------------------------------------------------- from the settings


def test_what_a_profile_leaves_open_is_as_in_the_default_and_then_as_for_all() -> None:
    profiles = load(FREEZERS).complete_profiles()
    freezer = profiles.get("freezer")
    assert (freezer.ping_interval, freezer.ping_misses, freezer.command_ttl) == (10, 7, 20)
    assert freezer.agent == "coldchain:Freezer"
    assert freezer.commands["defrost"]["properties"] == {"minutes": {"type": "integer"}}
    assert (profiles.default.ping_interval, profiles.default.command_ttl) == (40, 20)
    assert profiles.of_unknown("freezer-3") is freezer


def test_no_pings_are_an_interval_without_end() -> None:
    assert load(FREEZERS).complete_profiles().get("mute").ping_interval == math.inf


def test_without_profiles_there_is_the_default_one() -> None:
    profiles = load("[agent]\nping_misses = 2\n").complete_profiles()
    assert [profile.name for profile in profiles] == ["default"]
    assert profiles.default.ping_misses == 2


def test_each_setting_of_a_profile_has_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_PROFILES", '{"freezer": {"ping_misses": 4}, "Door": {"command_ttl": 5}}')
    settings = load(FREEZERS)
    origins = settings.origins()
    assert origins["profiles.freezer.ping_interval"] == "bridge.toml"
    assert origins["profiles.freezer.ping_misses"] == "environment BRIDGE_PROFILES"
    assert settings.shown()["profiles.Door.command_ttl"] == 5
    assert list(settings.shown()) == list(origins)
    assert settings.complete_profiles().get("freezer").ping_misses == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles.freezer]\nping_intervall = 3\n", "did you mean profiles.freezer.ping_interval?"),
        ("[profile.freezer]\nping_interval = 3\n", "did you mean profiles?"),
        ("[profiles]\nfreezer = 3\n", "profiles.freezer is a group of settings, not 3"),
        ("[profiles.freezer]\nping_misses = 0\n", "profiles.freezer.ping_misses is 0 (bridge.toml)"),
        ("[profiles.freezer]\nagent = 'freezers:'\n", "profiles.freezer.agent is 'freezers:' (bridge.toml)"),
        ("[profiles.'a b']\nping_misses = 1\n", "profiles.a b"),
        ("[registry]\nprofile = 'freezer'\n", "there is no such profile"),
        ("[profiles.freezer]\ncommand_ttl = 90000\n", "more than command.max_ttl"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    assert said in refused(text)


def test_variables_for_single_settings_of_a_profile_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_PROFILES__FREEZER__PING_MISSES", "4")
    assert "there is no such setting" in refused("")


def test_schemas_are_read_from_their_files() -> None:
    Path("t.json").write_text('{"required": ["t"]}')
    text = "[profiles.a]\nformat = 'cbor'\njson_schema = { default = 't.json' }\n"
    profile = load(text).complete_profiles().get("a")
    assert (profile.format, list(profile.schemas), profile.plain) == ("cbor", ["default"], False)
    for content, said in ((None, "t.json cannot be read"), ("{", "is not JSON"), ('{"type": 5}', "no JSON Schema")):
        Path("t.json").unlink(missing_ok=True)
        if content is not None:
            Path("t.json").write_text(content)
        with pytest.raises(SettingsError, match=said):
            load(text).complete_profiles()


def test_a_profile_checks_arguments_and_says_which_is_wrong() -> None:
    schema = {"type": "object", "properties": {"minutes": {"type": "integer", "minimum": 1}}, "required": ["minutes"]}
    profiles = Settings(profiles={"freezer": {"commands": {"defrost": schema}}}).complete_profiles()
    freezer = profiles.get("freezer")
    freezer.check_arguments("defrost", {"minutes": 5})
    freezer.check_arguments("reboot", None)
    profiles.default.check_arguments("defrost", "anything")
    for args, said in (({"minutes": 0}, "/minutes: 0 is less"), (None, '"minutes" is a required'), ([], "type")):
        with pytest.raises(RefusedError, match=said) as refused:
            freezer.check_arguments("defrost", args)
        assert refused.value.reason == "bad_arguments"


def test_what_is_no_schema_of_arguments_is_named() -> None:
    settings = Settings(profiles={"freezer": {"commands": {"defrost": {"type": 7}}}})
    with pytest.raises(SettingsError, match=r"profiles\.freezer\.commands\.defrost is no JSON Schema"):
        settings.complete_profiles()


def test_a_profile_grants_topics_beside_the_devices_own() -> None:
    profiles = Settings(
        profiles={"default": {"subscribe": ["firmware/#"]}, "gateway": {"publish": ["site/%id%/#"]}}
    ).complete_profiles()
    assert profiles.get("gateway").grants == Grants(("site/%id%/#",), ("firmware/#",))
    rights = rights_of(Role.DEVICE, "gw-1", Topics(), profiles.get("gateway").grants)
    assert rights.may_publish("site/gw-1/door/open")
    assert rights.may_publish("devices/gw-1/telemetry")
    assert not rights.may_publish("site/gw-2/door")
    assert rights.may_subscribe("firmware/+/latest")
    assert rights.may_receive("firmware/a")
    assert not rights.may_subscribe("#")
    with pytest.raises(ValidationError, match="topic filter"):
        Settings(profiles={"gateway": {"publish": ["site/#/x"]}})
