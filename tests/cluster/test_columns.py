"""Tables on a terminal: nothing is cut."""

from cluster.columns import in_columns


def test_columns_are_aligned_and_as_wide_as_needed():
    assert in_columns(
        ["model", "score"], [["a", "1.5"], ["bcd", "22.5"]], right={1}, width=80
    ).splitlines() == [
        "model  score",
        "────────────",
        "a        1.5",
        "bcd     22.5",
    ]


def test_long_cells_go_on_below_and_words_are_broken_last():
    text = in_columns(["name", "note"], [["one two three", "four five"], ["six", "seven"]], width=12)
    assert max(map(len, text.splitlines())) == 12
    assert set(text.split()) - {"─" * 12} == {
        "name",
        "note",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
    }
    narrow = in_columns(["calibration", "x"], [["0.123", "y"]], width=8)
    assert narrow.splitlines() == ["calib  x", "ratio", "n", "────────", "0.123  y"]


def test_an_empty_line_takes_a_line():
    assert in_columns(["a", "b"], [["", ""], ["1", "2"]], width=80).splitlines() == [
        "a  b",
        "────",
        "",
        "1  2",
    ]
