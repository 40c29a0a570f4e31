"""Every peer can be installed as it was, and says what it could not do."""

import re

import pytest
from peers.catalogue import FOLDER, OURS, catalogue
from peers.install import pinned_version

PEERS = [peer for peer in catalogue() if peer.name != OURS]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_environment_is_pinned_whole_and_names_no_host(peer):
    lines = peer.requirements.read_text().splitlines()
    assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.+]+", line) for line in lines)
    assert pinned_version(peer)
    assert any(line.startswith("onnxruntime==") for line in lines)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_its_script_and_says_what_it_could_not_do(peer):
    assert list((FOLDER / peer.name).glob("serv*.py"))
    assert peer.notes


def test_foreframe_is_first_and_only_the_appendix_is_left_out_by_default():
    assert catalogue()[0].name == OURS
    assert [peer.name for peer in catalogue() if peer.is_appendix] == ["ray"]
