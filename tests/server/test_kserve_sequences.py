from foreframe_server.kserve_sequences import SequenceBook, SequenceKey

ONE, TWO, THREE = (SequenceKey("robot", number) for number in (1, 2, 3))


def test_a_sequence_that_begins_again_gives_back_its_session():
    book = SequenceBook()

    assert book.begin(ONE, "a") is None
    assert book.begin(ONE, "b") == "a"
    assert (book.find(ONE), len(book)) == ("b", 1)


def test_numbers_and_texts_and_clients_are_told_apart():
    book = SequenceBook()
    book.begin(ONE, "a")

    assert book.find(SequenceKey("robot", "1")) is None
    assert book.find(SequenceKey("other", 1)) is None


def test_an_end_that_comes_after_a_new_start_ends_nothing():
    book = SequenceBook()
    book.begin(ONE, "a")
    book.begin(ONE, "b")
    book.end(ONE, "a")
    assert book.find(ONE) == "b"

    book.end(ONE, "b")
    book.end(ONE, "b")
    assert book.find(ONE) is None


def test_what_was_used_longest_ago_is_forgotten_first():
    book = SequenceBook(max_sequences=2)
    book.begin(ONE, "a")
    book.begin(TWO, "b")
    book.find(ONE)
    book.begin(THREE, "c")

    assert (book.find(ONE), book.find(TWO), book.find(THREE)) == ("a", None, "c")
