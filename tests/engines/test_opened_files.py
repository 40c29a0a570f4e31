import os
from pathlib import Path

import pytest

from foreframe_engines import BundleError
from foreframe_engines.opened_files import OpenFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "small").write_bytes(b"some")
    (tmp_path / "model" / "large").write_bytes(bytes(range(256)) * 2**13)
    (tmp_path / "model" / "empty").touch()
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["small", "large", "empty"])
def test_a_file_is_read_whole_and_read_only(folder: Path, name: str) -> None:
    with OpenFolder(folder) as opened:
        assert opened.names() == {"small", "large", "empty"}
        content = opened.read(name)
    assert content == (folder / name).read_bytes()
    assert content.readonly


def test_what_was_read_stays_when_a_name_changes_hands(folder: Path) -> None:
    with OpenFolder(folder) as opened:
        content = opened.read("large")
        expected = (folder / "large").read_bytes()
        (folder / "other").write_bytes(bytes(2**21))
        (folder / "other").replace(folder / "large")
    assert content == expected


def test_a_folder_stays_the_one_that_was_opened(folder: Path) -> None:
    with OpenFolder(folder) as opened:
        folder.rename(folder.with_name("away"))
        folder.mkdir()
        (folder / "small").write_bytes(b"planted")
        assert opened.read("small") == b"some"


def test_a_link_on_the_way_is_refused_by_name(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder.parent)
    with pytest.raises(BundleError, match="'latest' is a link; name the folder that it leads to"):
        OpenFolder(folder.parent / "latest" / "model")


def test_a_way_that_ends_or_is_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="'nothing': No such file"):
        OpenFolder(folder / "nothing" / "model")
    with pytest.raises(BundleError, match="'small': Not a directory"):
        OpenFolder(folder / "small")


def test_a_folder_on_the_way_need_not_be_readable(folder: Path) -> None:
    folder.parent.chmod(0o711)
    with OpenFolder(folder) as opened:
        assert opened.read("small") == b"some"


def test_a_file_of_two_names_is_refused_unless_it_was_installed_so(folder: Path) -> None:
    os.link(folder / "small", folder.parent / "second")
    with OpenFolder(folder) as opened, pytest.raises(BundleError, match="is one file with 2 names"):
        opened.read("small")
    with OpenFolder(folder, may_share_files=True) as opened:
        assert opened.read("small") == b"some"


@pytest.mark.parametrize("name", ["", ".", "..", "../model/small", "/etc/hostname", "a\\b", "a\0b", "c:small"])
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    with OpenFolder(folder) as opened, pytest.raises(BundleError, match="is not the name of a file of this folder"):
        opened.read(name)


def test_links_pipes_and_folders_are_refused(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "small")
    os.mkfifo(folder / "pipe")
    (folder / "inner").mkdir()
    with OpenFolder(folder) as opened:
        for name in ("link", "pipe", "inner"):
            with pytest.raises(BundleError, match=f"'{name}' (is not a plain file|cannot be read)"):
                opened.read(name)
        with pytest.raises(BundleError, match="is not a plain file"):
            opened.names()


def test_a_file_beyond_its_limit_is_refused_with_numbers(folder: Path) -> None:
    with OpenFolder(folder) as opened, pytest.raises(BundleError, match="has 4 bytes; at most 3 are read"):
        opened.read("small", 3)


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with OpenFolder(folder) as opened:
            opened.read("large")
        with pytest.raises(BundleError):
            OpenFolder(folder / "nothing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
