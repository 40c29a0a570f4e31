import json
from datetime import UTC, datetime, timedelta

import pytest

from foreframe_server.cli.keys_commands import keys as command_group
from foreframe_server.key_file import read_key_file
from foreframe_server.keys import KeyRing, Quota, Scope


def test_a_key_that_is_made_opens_what_it_was_made_for(run, tmp_path):
    path = tmp_path / "keys.json"
    made = run("keys", "create", "--file", path)
    token = made.stdout.strip()

    key = KeyRing(read_key_file(path)).find(token)
    assert made.exit_code == 0
    assert (key.tenant, key.scopes, key.expires, key.quota) == ("main", {Scope.PREDICT, Scope.LIKELIHOOD}, None, None)
    assert token.split(".")[1] not in path.read_text()


def test_every_option_is_in_the_file(run_json, tmp_path):
    path = tmp_path / "keys.json"
    made = run_json("keys", "create", "--file", path, "--id", "ops", "--tenant", "acme", "--scope", "admin", "--scope",
                    "metrics", "--days", 2, "--step-ms-per-s", 500, "--note", "night shift", "--json")  # fmt: skip

    (key,) = read_key_file(path)
    assert KeyRing([key]).find(made["token"]) == key
    assert (key.id, key.tenant, key.scopes, key.note) == ("ops", "acme", {Scope.ADMIN, Scope.METRICS}, "night shift")
    assert key.quota == Quota(500, 1000)
    assert timedelta(days=1.9) < key.expires - datetime.now(UTC) < timedelta(days=2)


def test_keys_are_listed_without_what_opens_them_and_revoked_by_their_id(run, run_json, tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    monkeypatch.setenv("FOREFRAME_KEYS__FILE", str(path))
    for name in ("one", "two"):
        run("keys", "create", "--id", name)

    listed = run_json("keys", "list", "--json")
    assert [key["id"] for key in listed["keys"]] == ["one", "two"]
    assert "sha256" not in json.dumps(listed)
    assert "one" in run("keys", "list").stdout
    assert run("keys", "revoke", "one").exit_code == 0
    assert [key.id for key in read_key_file(path)] == ["two"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "--id", "one"), "already"),
        (("create", "--id", "a.b"), "id"),
        (("create", "--tenant", ""), "tenant"),
        (("create", "--id", "x", "--step-ms-per-s", "-1"), "step_ms_per_s"),
        (("revoke", "three"), "three"),
    ],
)
def test_what_will_not_do_is_one_line_and_changes_nothing(run, tmp_path, arguments, reason):
    path = tmp_path / "keys.json"
    run("keys", "create", "--file", path, "--id", "one")
    before = path.read_bytes()

    result = run("keys", *arguments, "--file", path)

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr
    assert path.read_bytes() == before


def test_a_file_must_be_named(run):
    for command in ("create", "list"):
        result = run("keys", command)
        assert result.exit_code == 3
        assert "FOREFRAME_KEYS__FILE" in result.stderr
    assert {command.name for command in command_group.registered_commands} == {"create", "list", "revoke"}


def test_a_network_without_keys_is_refused_in_one_line(run):
    result = run("serve", "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 3
    assert "foreframe keys create" in result.stderr.splitlines()[-1]
