import hashlib
import json
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from foreframe_server.keys import KeyFileError, KeyRing, Quota, Scope, mint_key, parse_keys, parse_time, write_keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MINTED = mint_key("robot", "acme", [Scope.PREDICT])
RECORD = json.loads(write_keys([MINTED.key]))["keys"][0]


def file_of(*records, version=1):
    return json.dumps({"version": version, "keys": list(records)})


def test_a_key_is_found_by_its_text_alone():
    ring = KeyRing([MINTED.key, mint_key("other", "acme", [Scope.ADMIN]).key])
    key_id, secret = MINTED.token.split(".")

    assert ring.find(MINTED.token) == MINTED.key
    for wrong in ("", ".", key_id, secret, f"{key_id}.", f"other.{secret}", f"none.{secret}", f"{key_id}.{'A' * 43}",
                  MINTED.token + "A", MINTED.token[:-1], MINTED.token + "\n", f"{key_id}.{secret}é"):  # fmt: skip
        assert ring.find(wrong) is None


def test_a_secret_has_32_random_bytes_and_is_stored_as_its_hash_alone():
    tokens = {mint_key(None, "acme", [Scope.PREDICT]).token for _ in range(100)}
    secret = MINTED.token.split(".")[1]

    assert len(tokens) == 100
    assert len(secret) == 43
    assert MINTED.key.digest == hashlib.sha256(secret.encode()).digest()
    assert secret not in write_keys([MINTED.key])


def test_a_ring_knows_whether_a_key_is_still_what_it_was():
    ring = KeyRing([MINTED.key])

    assert ring.has(MINTED.key)
    assert not ring.has(replace(MINTED.key, tenant="other"))
    assert not KeyRing().has(MINTED.key)


def test_a_key_expires_at_its_time():
    key = replace(MINTED.key, expires=NOW)

    assert key.has_expired(NOW)
    assert not key.has_expired(NOW - timedelta(seconds=1))
    assert not MINTED.key.has_expired(NOW)


def test_a_file_holds_all_that_a_key_is():
    full = mint_key("full", "acme", Scope, expires=NOW, quota=Quota(500, 2000), note="arm 7").key
    assert parse_keys(write_keys([MINTED.key, full])) == (MINTED.key, full)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a.b"), ("id", ""), ("id", 7), ("id", "é"), ("sha256", "00"), ("sha256", "A" * 64), ("sha256", None),
        ("tenant", ""), ("tenant", "a\nb"), ("scopes", []), ("scopes", "predict"), ("scopes", ["root"]),
        ("scopes", [["predict"]]), ("expires", "2030-01-01"), ("expires", "soon"), ("expires", 7),
        ("step_ms_per_s", 5), ("note", "a\nb"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(KeyFileError, match=r"key 1: .*" + field):
        parse_keys(file_of(RECORD, {**RECORD, "id": "second", field: value}))


@pytest.mark.parametrize("value", [0, -1, True, "5", float("inf"), float("nan")])
def test_a_quota_is_of_positive_numbers(value):
    with pytest.raises(KeyFileError, match="burst_step_ms"):
        parse_keys(file_of({**RECORD, "step_ms_per_s": 5, "burst_step_ms": value}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "nul",
        '{"version": 1}',
        file_of(RECORD, version=2),
        file_of(RECORD, RECORD),
        file_of(7),
        file_of({**RECORD, "secret": "x"}),
    ],
)
def test_what_is_no_file_of_keys_is_refused(text):
    with pytest.raises(KeyFileError):
        parse_keys(text)


def test_times_need_a_zone():
    assert parse_time("2030-01-01T01:00:00+01:00") == NOW
    with pytest.raises(ValueError, match="zone"):
        parse_time("2030-01-01T00:00:00")


def compare_times(find, one, other, count=2000):
    """The p value of both texts taking as long, by Mann and Whitney's test."""
    took = []
    for index in range(2 * count):
        token = (one, other)[index % 2]
        started = time.perf_counter_ns()
        find(token)
        took.append((time.perf_counter_ns() - started, index % 2))
    return _mann_whitney(took, count)


def _mann_whitney(took, count):
    ranks, tied, start = 0.0, 0.0, 0
    took = sorted(took)
    while start < len(took):
        end = start
        while end < len(took) and took[end][0] == took[start][0]:
            end += 1
        ranks += (start + end + 1) / 2 * sum(which == 0 for _, which in took[start:end])
        tied += (end - start) ** 3 - (end - start)
        start = end
    total = 2 * count
    deviation = math.sqrt(count**2 / 12 * (total + 1 - tied / (total * (total - 1))))
    return math.erfc(abs(ranks - count * (count + 1) / 2 - count**2 / 2) / deviation / math.sqrt(2))


def guesses():
    key_id, secret = MINTED.token.split(".")
    wrong = "A" if secret[0] != "A" else "B"
    return f"{key_id}.{secret[:-1]}{'-' if secret[-1] != '-' else '_'}", f"{key_id}.{wrong}{secret[1:]}"


def test_the_time_of_a_guess_tells_nothing_of_how_near_it_is():
    ring, (near, far) = KeyRing([MINTED.key]), guesses()
    # Where there is no difference, one comparison of a hundred shows one all the same.
    assert max(compare_times(ring.find, near, far) for _ in range(3)) > 0.01


def test_a_comparison_that_stops_early_is_told_by_its_time():
    secret, (near, far) = MINTED.token.split(".")[1], guesses()

    def find(token):
        return all(one == other for one, other in zip(token.split(".")[1], secret, strict=True))

    assert compare_times(find, near, far) < 0.01
