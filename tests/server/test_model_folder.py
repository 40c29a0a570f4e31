"""A folder of models is looked through by name; what a request says never becomes a path."""

from pathlib import Path

import pytest

from foreframe_engines.bundle import MANIFEST
from foreframe_server.errors import UnknownModel
from foreframe_server.model_folder import ModelFolder, check_folder, version_order
from foreframe_server.settings import SettingsError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_models_come_by_name_and_versions_by_number(tmp_path) -> None:
    put(tmp_path, *(f"reach/{version}/{MANIFEST}" for version in ("10", "9", "2")), f"grasp/1/{MANIFEST}")
    grasp, reach = ModelFolder(tmp_path).scan()
    assert (grasp.name, list(grasp.versions)) == ("grasp", ["1"])
    assert (list(reach.versions), reach.newest) == (["2", "9", "10"], "10")


def test_numbers_within_versions_count_as_numbers() -> None:
    names = ["v1.10", "v1.9", "2", "v1.9-rc1", "10"]
    assert sorted(names, key=version_order) == ["v1.9", "v1.9-rc1", "v1.10", "2", "10"]


def test_adapters_are_safetensors_files(tmp_path) -> None:
    put(tmp_path, f"reach/1/{MANIFEST}", "reach/adapters/night.safetensors", "reach/adapters/day.bin")
    (model,) = ModelFolder(tmp_path).scan()
    assert list(model.adapters) == ["night"]
    assert list(model.versions) == ["1"]


def test_what_is_no_bundle_and_what_is_a_link_is_passed_over(tmp_path) -> None:
    folder = put(tmp_path / "models", f"reach/1/{MANIFEST}", "reach/upload/weights", f".hidden/1/{MANIFEST}", "note")
    put(tmp_path / "elsewhere", f"2/{MANIFEST}")
    (folder / "reach" / "2").symlink_to(tmp_path / "elsewhere" / "2")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (model,) = ModelFolder(folder).scan()
    assert (model.name, list(model.versions)) == ("reach", ["1"])


@pytest.mark.parametrize("name", ["..", "reach/1", "../elsewhere", "", "REACH", "reach\0"])
def test_a_name_that_is_not_there_is_unknown(tmp_path, name) -> None:
    put(tmp_path / "models", f"reach/1/{MANIFEST}")
    put(tmp_path / "elsewhere", f"1/{MANIFEST}")
    with pytest.raises(UnknownModel):
        ModelFolder(tmp_path / "models").find(name)


@pytest.mark.parametrize("name", ["..", "../1", "adapters", "2", ""])
def test_a_version_or_an_adapter_that_is_not_there_is_unknown(tmp_path, name) -> None:
    put(tmp_path, f"reach/1/{MANIFEST}", "reach/adapters/night.safetensors")
    model = ModelFolder(tmp_path).find("reach")
    with pytest.raises(UnknownModel, match="no such version"):
        model.version_path(name)
    with pytest.raises(UnknownModel, match="no such adapter"):
        model.adapter_path(name)


def test_no_folder_holds_nothing() -> None:
    assert ModelFolder(None).scan() == []


def test_without_a_folder_the_setting_is_named() -> None:
    with pytest.raises(UnknownModel, match=r"no folder of models; set FOREFRAME_MODELS__FOLDER\."):
        ModelFolder(None).find("reach")


def test_a_folder_that_is_none_is_refused_by_the_name_of_its_setting(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("typo", "file", "link"):
        with pytest.raises(SettingsError, match=r"^FOREFRAME_MODELS__FOLDER: is no directory"):
            check_folder(tmp_path / name)
    check_folder(tmp_path)
    check_folder(None)
