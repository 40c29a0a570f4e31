import os
import threading
from pathlib import Path

import pytest

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.seal import SEAL_BYTES, Seal, default_key_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "engines.key"


def test_a_seal_tells_these_bytes_and_this_key_from_any_others(path: Path, tmp_path: Path) -> None:
    seal = Seal(path).sign(b"plan")
    assert len(seal) == SEAL_BYTES
    assert Seal(path).is_genuine(b"plan", seal)
    assert not Seal(path).is_genuine(b"plaN", seal)
    assert not Seal(path).is_genuine(b"plan", b"")
    assert not Seal(tmp_path / "other.key").is_genuine(b"plan", seal)


def test_the_key_is_this_users_alone(path: Path) -> None:
    Seal(path).sign(b"")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_key_that_others_may_read_is_refused(path: Path) -> None:
    Seal(path).sign(b"")
    path.chmod(0o640)
    with pytest.raises(RuntimeUnavailable, match="is not this user's alone"):
        Seal(path).sign(b"")


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_file_that_is_no_key_is_refused(path: Path, content: bytes) -> None:
    Seal(path).sign(b"")
    path.write_bytes(content)
    with pytest.raises(RuntimeUnavailable, match="holds no key of 32 bytes"):
        Seal(path).sign(b"")


def test_a_link_to_a_key_is_refused(path: Path) -> None:
    Seal(path).sign(b"")
    link = path.with_name("link.key")
    link.symlink_to(path)
    with pytest.raises(RuntimeUnavailable, match="cannot be kept"):
        Seal(link).sign(b"")


def test_a_place_that_takes_no_key_comes_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeUnavailable, match="set XDG_STATE_HOME"):
        Seal(tmp_path / "file" / "engines.key").sign(b"")


def test_many_who_start_at_once_share_one_key(path: Path) -> None:
    start, seals = threading.Barrier(8), []

    def sign() -> None:
        start.wait()
        seals.append(Seal(path).sign(b"plan"))

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seals)) == 1
    assert len(os.listdir(path.parent)) == 1  # noqa: PTH208 - names are enough


def test_the_key_lies_in_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_key_path() == tmp_path / "foreframe" / "engines.key"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_key_path() == tmp_path / "home" / ".local" / "state" / "foreframe" / "engines.key"
