from pathlib import Path

import pytest

from foreframe_engines import RuntimeUnavailable
from foreframe_engines.runtime.memory import free_host_bytes, require_memory


def test_too_little_memory_is_said_with_both_numbers() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"^step needs about 12\.5 GiB on the GPU, 8\.0 GiB are free$"):
        require_memory("step", 25 * 2**29, 8 * 2**30, "on the GPU")


def test_enough_memory_is_not_worth_a_word() -> None:
    require_memory("step", 10, 10, "on the GPU")


def test_the_machine_says_what_is_free(tmp_path: Path) -> None:
    report = tmp_path / "meminfo"
    report.write_text("MemTotal:  100 kB\nMemAvailable:   64 kB\n")
    assert free_host_bytes(report) == 64 * 1024
    assert free_host_bytes(tmp_path / "nothing") is None
