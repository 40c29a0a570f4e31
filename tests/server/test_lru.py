from foreframe_server.lru import LruBytes


def test_the_least_recently_used_is_forgotten_first():
    kept = LruBytes(max_bytes=10)
    kept.put(b"a", "a", 4)
    kept.put(b"b", "b", 4)
    assert kept.get(b"a") == "a"
    assert kept.put(b"c", "c", 4) == 1
    assert (kept.get(b"a"), kept.get(b"b"), kept.get(b"c")) == ("a", None, "c")
    assert (len(kept), kept.num_bytes) == (2, 8)


def test_a_value_larger_than_the_bound_is_not_kept_and_pushes_nothing_out():
    kept = LruBytes(max_bytes=10)
    kept.put(b"a", "a", 4)
    assert kept.put(b"b", "b", 11) == 0
    assert (kept.get(b"a"), kept.get(b"b")) == ("a", None)


def test_replacing_a_value_counts_its_bytes_once():
    kept = LruBytes(max_bytes=10)
    kept.put(b"a", "old", 6)
    kept.put(b"a", "new", 7)
    assert (kept.get(b"a"), kept.num_bytes) == ("new", 7)
