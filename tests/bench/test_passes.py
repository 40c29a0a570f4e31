"""foreframe is measured before and after all others."""

from peers.catalogue import OURS, catalogue
from peers.passes import list_passes


def test_foreframe_is_first_and_last_and_some_peers_have_a_plain_pass():
    names = [each.name for each in list_passes(catalogue())]
    assert (names[0], names[-1]) == (OURS, f"{OURS}-again")
    assert [name for name in names if name.endswith("-plain")] == ["fastapi-plain", "mosec-plain"]


def test_a_peer_by_itself_has_no_pass_of_foreframe():
    assert [each.name for each in list_passes(catalogue()[3:4])] == ["litserve"]
