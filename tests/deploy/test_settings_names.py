"""Every FOREFRAME_ name that is deployed is a setting that the server reads."""

import re

from foreframe_server.settings import setting_names

_NAME = re.compile(r"FOREFRAME_[A-Z]+__[A-Z_]+")
_SKIPPED = {".png", ".txt"}


def unknown_in(text):
    return set(_NAME.findall(text)) - set(setting_names())


def test_every_setting_that_is_deployed_exists(deploy, root):
    files = [
        path
        for path in deploy.rglob("*")
        if path.is_file() and path.suffix not in _SKIPPED and "__pycache__" not in path.parts
    ]
    files += [root / "Dockerfile", root / "docs" / "deploy.md"]
    unknown = {path.name: unknown_in(path.read_text(encoding="utf-8")) for path in files}
    assert not {name: names for name, names in unknown.items() if names}
    assert sum(bool(_NAME.search(path.read_text(encoding="utf-8"))) for path in files) >= 5


def test_a_misspelt_setting_is_found():
    assert unknown_in("FOREFRAME_HTTP__PORT: 1\nFOREFRAME_HTTP__PROT: 1") == {"FOREFRAME_HTTP__PROT"}
