"""Where a report was measured is read from this machine."""

import json
import os
import subprocess

from foreframe_server.reports.header import Header, Weights, read_commit


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_a_commit_is_named_and_changes_since_are_marked(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    assert read_commit(tmp_path) is None
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = read_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert read_commit(tmp_path) == f"{commit}+"


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert read_commit(tmp_path) is None


def test_a_header_is_json_with_versions_and_seeds():
    record = json.loads(json.dumps(Header.now(Weights("m", "1", None), (3,)).record(), allow_nan=False))
    assert record["weights"] == {"model": "m", "revision": "1", "digest": None}
    assert record["seeds"] == [3]
    assert record["machine"]["cores"] == sorted(os.sched_getaffinity(0))
    assert record["commit"] == read_commit()
    assert {"python", "numpy", "onnxruntime"} <= set(record["versions"])


def test_the_commit_of_a_server_elsewhere_is_not_this_programs():
    header = Header.now(None, (), "http://robot:8000", "1.2.3")
    assert (header.commit, header.server, header.server_version) == (None, "http://robot:8000", "1.2.3")
