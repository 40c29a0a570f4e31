import pytest
from pydantic import ValidationError

from foreframe_server.settings import Settings, SettingsError, read_settings, setting_names


def test_defaults_listen_on_this_machine_only():
    settings = read_settings()

    assert settings.http.host == "127.0.0.1"
    assert settings.http.max_body_bytes == 16 * 2**20
    assert settings.cache.redis_url is None


def test_a_key_of_a_group_is_read(monkeypatch):
    monkeypatch.setenv("FOREFRAME_HTTP__PORT", "9001")
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", "redis://127.0.0.1:6379/0")

    settings = read_settings()

    assert settings.http.port == 9001
    assert settings.cache.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"


def test_what_is_given_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("FOREFRAME_HTTP__PORT", "9001")
    monkeypatch.setenv("FOREFRAME_HTTP__HOST", "0.0.0.0")

    settings = read_settings({"http": {"port": 0}})

    assert (settings.http.port, settings.http.host) == (0, "0.0.0.0")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FOREFRAME_PORT", "1"),
        ("FOREFRAME_HTTP__PROT", "1"),
        ("FOREFRAME_HTTP_PORT", "1"),
        ("foreframe_http__prot", "1"),
        ("FOREFRAME_HTTP__PORT", "fast-9c1"),
        ("FOREFRAME_HTTP__PORT", "70000"),
        ("FOREFRAME_HTTP__BODY_TIMEOUT_S", "-3.25"),
        ("FOREFRAME_ENGINE__NUM_THREADS", "0"),
        ("FOREFRAME_HTTP", "{fast-9c1"),
    ],
)
def test_a_mistake_stops_the_start_with_one_line_that_names_the_key(monkeypatch, key, value):
    monkeypatch.setenv(key, value)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    message = str(caught.value)
    assert "\n" not in message
    assert "FOREFRAME_" in message
    assert value not in message or len(value) < 2


def test_secrets_do_not_show(monkeypatch):
    monkeypatch.setenv("FOREFRAME_CACHE__SECRET", "tell-nobody")
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", "redis://:tell-nobody@127.0.0.1")

    assert "tell-nobody" not in repr(read_settings())


def test_the_clients_key_is_no_setting_and_none_that_is_unknown(monkeypatch):
    monkeypatch.setenv("FOREFRAME_API_KEY", "id.secret")
    assert read_settings() == Settings()


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().http.port = 1


def test_every_key_is_named():
    assert {"FOREFRAME_HTTP__PORT", "FOREFRAME_CACHE__REDIS_URL"} <= set(setting_names())


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1", "redis:7", "redis://here:there", "redis:/here"])
def test_what_is_no_url_of_redis_is_one_line_without_it(monkeypatch, url):
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value).startswith("FOREFRAME_CACHE__REDIS_URL: must be a URL that begins with redis://")
    assert url not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://here:6379/0", "rediss://user:word@here", "unix:///run/redis.sock?db=1"])
def test_every_kind_of_redis_url_is_taken(monkeypatch, url):
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", url)
    assert read_settings().cache.redis_url.get_secret_value() == url


@pytest.mark.parametrize("given", [{}, {"redis_url": "redis://here"}, {"secret": "word"}])
def test_sessions_are_shared_through_redis_or_the_start_is_refused(given):
    sessions = {"is_shared": True}
    with pytest.raises(SettingsError) as caught:
        read_settings({"sessions": sessions, "cache": given})
    needed = "FOREFRAME_CACHE__REDIS_URL and FOREFRAME_CACHE__SECRET"
    assert str(caught.value) == f"FOREFRAME_SESSIONS__IS_SHARED needs {needed}"
    assert read_settings({"sessions": sessions, "cache": {"redis_url": "redis://here", "secret": "word"}})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("FOREFRAME_HTTP__PROT", "FOREFRAME_HTTP__PORT"), ("FOREFRAME_CACHE_REDIS_URL", "FOREFRAME_CACHE__REDIS_URL")],
)
def test_an_unknown_setting_is_answered_with_the_nearest_ones(monkeypatch, name, nearest):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"unknown setting {name}; did you mean {nearest}")
    assert message.count("FOREFRAME_") <= 4
    assert message.endswith("docs/settings.md lists every one")


def test_a_setting_like_no_other_is_answered_with_the_page(monkeypatch):
    monkeypatch.setenv("FOREFRAME_ZZZZ", "1")
    with pytest.raises(SettingsError, match=r"^unknown setting FOREFRAME_ZZZZ; docs/settings\.md lists every one$"):
        read_settings()
