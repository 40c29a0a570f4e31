import threading

import pytest

from foreframe_server.key_file import WatchedKeys, changing, read_key_file, write_key_file
from foreframe_server.keys import KeyFileError, Scope, mint_key

ONE, TWO = (mint_key(name, "acme", [Scope.PREDICT]) for name in ("one", "two"))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_changed_file_counts_a_second_later_and_not_before(tmp_path):
    clock, path = Clock(), tmp_path / "keys.json"
    write_key_file(path, [ONE.key])
    watched = WatchedKeys(path, clock)
    write_key_file(path, [TWO.key])

    clock.now = 0.9
    assert watched.ring().find(ONE.token) == ONE.key
    clock.now = 1.0
    assert watched.ring().find(ONE.token) is None
    assert watched.ring().find(TWO.token) == TWO.key


@pytest.mark.parametrize("content", [b"{", b"\xff", None])
def test_a_file_that_went_bad_leaves_its_last_keys(tmp_path, content):
    clock, path = Clock(), tmp_path / "keys.json"
    write_key_file(path, [ONE.key])
    watched = WatchedKeys(path, clock)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    clock.now = 5
    assert watched.ring().find(ONE.token) == ONE.key

    write_key_file(path, [TWO.key])
    clock.now = 10
    assert watched.ring().find(ONE.token) is None


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", "JSON"), (b"\xff", "UTF-8"), (b" " * (2**20 + 1), "larger"), (None, "No such file")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, reason):
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    for read in (read_key_file, WatchedKeys):
        with pytest.raises(KeyFileError, match=rf"keys\.json.*{reason}"):
            read(path)


def test_a_file_that_everybody_may_write_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, [ONE.key])
    path.chmod(0o646)
    with pytest.raises(KeyFileError, match="everybody"):
        read_key_file(path)


def test_a_new_file_is_for_its_owner_and_a_changed_one_for_whom_it_was(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, [ONE.key])
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    write_key_file(path, [TWO.key])
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_key_file(path) == (TWO.key,)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    path, link = tmp_path / "keys.json", tmp_path / "link.json"
    write_key_file(path, [ONE.key])
    link.symlink_to(path)
    write_key_file(link, [TWO.key])
    assert link.is_symlink()
    assert read_key_file(path) == (TWO.key,)


def test_changes_at_once_are_all_kept(tmp_path):
    path = tmp_path / "keys.json"

    def add(name):
        with changing(path) as keys:
            keys.append(mint_key(name, "acme", [Scope.PREDICT]).key)

    threads = [threading.Thread(target=add, args=(f"key-{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.id for key in read_key_file(path)} == {f"key-{number}" for number in range(16)}


def test_a_change_that_fails_leaves_the_file(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, [ONE.key])

    def fail():
        with changing(path) as keys:
            keys.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read_key_file(path) == (ONE.key,)
