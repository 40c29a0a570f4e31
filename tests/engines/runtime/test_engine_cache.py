import hashlib
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.engine_cache import EngineCache, EngineKey, EngineRecord, StoredEngine
from foreframe_engines.runtime.parity import Parity
from foreframe_engines.runtime.seal import Seal
from foreframe_engines.runtime.session import TensorSpec

PLAN = b"an engine" * 1000
KEY = EngineKey(
    graph="step",
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    library="tensorrt",
    library_version="11.4",
    cuda="13.0",
    driver="13.1",
    architecture="sm90",
    profiles=("b:1..1..1", "b:4..4..4"),
    precision="bf16",
    flags=("strongly_typed",),
)


def record_of(key: EngineKey = KEY, plan: bytes = PLAN) -> EngineRecord:
    inputs = (TensorSpec("x", "float32", (None, 4)),)
    return EngineRecord(key, hashlib.sha256(plan).hexdigest(), len(plan), 1.5, inputs, (TensorSpec("y", "bool", ()),))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def stored(cache: EngineCache) -> StoredEngine:
    return cache.store(record_of(), PLAN)


def test_an_engine_comes_back_as_it_was_stored(cache: EngineCache, stored: StoredEngine) -> None:
    found = cache.find(KEY)
    assert found is not None
    assert found.record == stored.record
    assert bytes(found.plan) == PLAN
    assert cache.find(replace(KEY, graph="decode")) is None


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("graph_sha256", "c" * 64),
        ("weights_sha256", "c" * 64),
        ("library", "tensorrt-rtx"),
        ("library_version", "11.5"),
        ("cuda", "13.1"),
        ("driver", "13.2"),
        ("architecture", "sm89"),
        ("profiles", ("b:1..1..1",)),
        ("precision", "fp32"),
        ("flags", ()),
    ],
)
def test_every_part_of_the_key_makes_another_engine(cache: EngineCache, stored, part: str, value: object) -> None:
    other = replace(KEY, **{part: value})
    assert other.digest != KEY.digest
    assert cache.find(other) is None
    cache.store(record_of(other), PLAN)
    assert cache.find(KEY) is not None
    assert cache.find(other).record.key == other


def test_an_engine_serves_only_after_it_was_compared(cache: EngineCache, stored: StoredEngine) -> None:
    assert cache.find(KEY).record.parity is None
    parity = Parity("torch", 5, "latents_next", 0.25, 1e-3)
    cache.approve(stored, parity)
    assert cache.find(KEY).record.parity == parity


def damage_plan(stored: StoredEngine, record: Path) -> None:
    content = bytearray(stored.plan_path.read_bytes())
    content[100] ^= 1
    stored.plan_path.write_bytes(content)


def cut_plan(stored: StoredEngine, record: Path) -> None:
    stored.plan_path.write_bytes(stored.plan_path.read_bytes()[:-1])


def drop_plan(stored: StoredEngine, record: Path) -> None:
    stored.plan_path.unlink()


def cut_record(stored: StoredEngine, record: Path) -> None:
    record.write_text(record.read_text()[:-20])


def change_record(stored: StoredEngine, record: Path) -> None:
    content = json.loads(record.read_text())
    content["key"]["architecture"] = "sm89"
    record.write_text(json.dumps(content))


def forge_record(stored: StoredEngine, record: Path) -> None:
    """Give the plan of somebody else, with the right digest in the record."""
    evil = b"somebody's code"
    stored.plan_path.unlink()
    path = stored.plan_path.with_name(f"{KEY.stem}-{hashlib.sha256(evil).hexdigest()[:12]}.plan")
    path.write_bytes(evil)
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"plan_sha256": hashlib.sha256(evil).hexdigest(), "plan_bytes": len(evil)}))


def strip_seal(stored: StoredEngine, record: Path) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seal": "x"}))


def link_plan(stored: StoredEngine, record: Path) -> None:
    elsewhere = stored.plan_path.rename(stored.plan_path.parents[1] / "elsewhere.plan")
    stored.plan_path.symlink_to(elsewhere)


def blur_record(stored: StoredEngine, record: Path) -> None:
    record.write_bytes(b"\xff\xfe\x00")


DAMAGES = [
    damage_plan,
    cut_plan,
    drop_plan,
    cut_record,
    change_record,
    blur_record,
    forge_record,
    strip_seal,
    link_plan,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_refused_and_makes_room(cache, stored, damage, caplog: pytest.LogCaptureFixture) -> None:
    record = cache.folder / f"{KEY.stem}.json"
    damage(stored, record)
    with caplog.at_level(logging.WARNING):
        assert cache.find(KEY) is None
    assert "will be built again" in caplog.text
    assert list(cache.folder.iterdir()) == []
    assert cache.find(KEY) is None  # and once more, from nothing
    cache.store(record_of(), PLAN)
    assert cache.find(KEY) is not None


def test_a_new_engine_replaces_the_old_one_and_its_plan(cache: EngineCache, stored: StoredEngine) -> None:
    cache.store(record_of(plan=b"another"), b"another")
    assert len(list(cache.folder.glob("*.plan"))) == 1
    assert bytes(cache.find(KEY).plan) == b"another"


def test_readers_never_see_half_of_an_engine(cache: EngineCache) -> None:
    plans = [bytes([number]) * 50_000 for number in range(8)]
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for path in cache.folder.glob("*.json"):
                try:
                    digest = json.loads(path.read_text())["plan_sha256"]
                except FileNotFoundError:
                    continue
                for plan_path in cache.folder.glob(f"*{digest[:12]}.plan"):
                    try:
                        content = plan_path.read_bytes()
                    except FileNotFoundError:
                        continue
                    if hashlib.sha256(content).hexdigest() != digest:
                        wrong.append(path)

    cache.folder.mkdir()
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        for plan in plans:
            cache.store(record_of(plan=plan), plan)
    stop.set()
    reader.join()
    assert wrong == []


def test_timings_are_kept_by_library_and_gpu(cache: EngineCache) -> None:
    assert cache.read_timings(KEY) == b""
    cache.write_timings(KEY, b"took long")
    assert cache.read_timings(replace(KEY, graph="decode", precision="fp32")) == b"took long"
    for part in ("library", "library_version", "cuda", "driver", "architecture"):
        assert cache.read_timings(replace(KEY, **{part: "other"})) == b""


def test_nothing_is_left_behind_where_nothing_was_timed(cache: EngineCache) -> None:
    cache.write_timings(KEY, b"")
    assert not cache.folder.exists()


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RuntimeUnavailable, match=r"file.* takes no engines \(.+\); name another folder"):
        EngineCache(blocked / "engines").store(record_of(), PLAN)


def test_names_of_files_hold_no_separators(cache: EngineCache) -> None:
    key = replace(KEY, graph="../../etc/passwd", library="a/b")
    cache.write_timings(key, b"x")
    stored = cache.store(record_of(key), PLAN)
    assert stored.plan_path.parent == cache.folder
    assert all(path.parent == cache.folder for path in cache.folder.rglob("*"))
    assert cache.find(key) is not None


def test_a_folder_from_elsewhere_is_refused_whole(
    cache: EngineCache, stored: StoredEngine, tmp_path: Path, caplog
) -> None:
    theirs = EngineCache(tmp_path / "theirs", Seal(tmp_path / "their.key"))
    theirs.store(record_of(), PLAN)
    theirs.write_timings(KEY, b"took long")
    assert theirs.find(KEY) is not None
    ours = EngineCache(theirs.folder)
    assert ours.read_timings(KEY) == b""
    assert ours.find(KEY) is None
    assert "was not sealed with this user's key" in caplog.text


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(cache: EngineCache, stored: StoredEngine, mode: int) -> None:
    cache.write_timings(KEY, b"took long")
    cache.folder.chmod(mode)
    for use in (lambda: cache.find(KEY), lambda: cache.store(record_of(), PLAN), lambda: cache.read_timings(KEY)):
        with pytest.raises(RuntimeUnavailable, match=r"others may write to .*chmod go-w"):
            use()


def test_a_new_folder_is_this_users_alone(cache: EngineCache, stored: StoredEngine) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_what_was_checked_is_what_is_loaded(cache: EngineCache, stored: StoredEngine) -> None:
    """A plan that changes hands after the check is not read again."""
    found = cache.find(KEY)
    replacement = stored.plan_path.with_name("new")
    replacement.write_bytes(b"another" * 2000)
    replacement.replace(stored.plan_path)
    assert bytes(found.plan) == PLAN
