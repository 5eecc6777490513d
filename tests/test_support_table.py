"""docs/formats.md is what the tests and the code say."""

from support_table import FILE, table


def test_the_page_of_formats_is_made_of_the_tests_as_they_are() -> None:
    assert FILE.read_text() == table(), "run python tests/support_table.py"
