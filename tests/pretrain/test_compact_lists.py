"""Files and records in compact form are those of dictionaries and lists of objects, in less memory."""

import io
import random
import tracemalloc

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.packing.sources.file_table import Chosen, FileTable, Lookup
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Distinct, FewWords, Records, in_order_of
from pretrain.data.packing.sources.records import unique
from pretrain.data.packing.sources.rows import _parted, _Text

LETTERS = "aAb/. ü中\U0001f600\udc80\udcff\ue000"


def random_files(random, num):
    """path -> file; of letters whose order in UTF-16 is another, and of bytes that are no UTF-8."""
    paths = {"".join(random.choices(LETTERS, k=random.randint(1, 8))) for _ in range(num)}
    prefixes = ["/root/", "/root/", "s3://elsewhere/"]
    return {
        path: FileInfo(random.choice(prefixes) + path, random.randrange(2**40), random.choice(["", "v"]))
        for path in random.sample(sorted(paths), len(paths))
    }


def random_record(random, path, url):
    """With or without each of its fields."""

    def maybe(value):
        return random.choice([None, value])

    box = (random.random(), 1, random.random() * 1e9, 2.5e-7)
    return Record(
        url,
        path,
        random.choice([0, 5, 2**40]),
        maybe(random.choice(["cat", "dog", "ü\udc80", ""])),
        maybe(("x", "y")),
        maybe(Objects((box, (1, 2, 3, 4)), ("one", "two"))),
        maybe(random.choice([(), ('"quoted"\n' * 200, "中")])),
        random.random() < 0.5,
        maybe((640.0, 480.5)),
        random.choice([None, "train", "validation", "test"]),
        maybe("cannot be read"),
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_file_table_is_a_sorted_dictionary(seed):
    draw = random.Random(seed)
    expected = random_files(draw, 300)
    files = FileTable("/root/", expected.items())
    assert list(files) == sorted(expected)
    assert dict(files) == expected == dict(files.pairs())
    assert all(files.number_of_url(file.url) == files.number(path) for path, file in expected.items())
    assert "nothing" not in files and None not in files and files.number_of_url("/root/nothing") == -1
    files.add("0 late", "/root/0 late", 7)
    assert list(files) == sorted([*expected, "0 late"]) and files["0 late"].size_bytes == 7
    assert {path: files[path] for path in expected} == expected


def test_a_lookup_finds_what_a_dictionary_of_lists_does():
    files = FileTable("", random_files(random.Random(3), 400).items())
    flags = bytearray(number % 3 > 0 for number in range(len(files)))
    chosen, expected = Chosen(files, flags), {}
    for path in chosen:
        expected.setdefault(path[-2:].lower(), []).append(path)
    lookup = Lookup(files, flags, lambda path: path[-2:].lower())
    assert {text: lookup.get(text) for text in expected} == expected
    assert all(lookup.last(text) == paths[-1] for text, paths in expected.items())
    assert lookup.get("nothing") == [] and lookup.last("nothing") is None and "nothing" not in lookup
    assert len(chosen) == len(list(chosen)) == len(list(chosen.pairs()))
    assert all((path in chosen) == bool(flag) for path, flag in zip(files, flags, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_records_give_back_what_was_put_in(seed):
    draw = random.Random(seed)
    files = FileTable("/root/", random_files(draw, 200).items())
    expected = []
    for path, file in draw.sample(list(files.pairs()), len(files)):
        own = draw.choice([path, "another path"])
        expected.append(random_record(draw, own, draw.choice([file.url, f"https://host/{path}"])))
    records = Records(files, expected)
    assert list(records) == expected and list(records.paths()) == [one.path for one in expected]
    for number in draw.sample(range(len(expected)), 50):
        records[number] = expected[number] = random_record(draw, "new", expected[number - 1].url)
    assert list(records) == expected
    order = np.random.default_rng(seed).permutation(len(expected))[:90]
    records, expected = records.taken(order), [expected[number] for number in order]
    assert list(records) == expected and list(records[5:9]) == expected[5:9]
    for column in ("label", "labels", "objects", "captions"):
        assert records.knows(column) == any(getattr(one, column) is not None for one in expected)
    assert records.labels() == {one.label for one in expected} - {None}
    for split in (None, "train", "test"):
        numbers = records.of_split(split).tolist()
        assert numbers == [number for number, one in enumerate(expected) if one.split == split]
        assert records.num_of_split()[split] == len(numbers)
    used = {path for path, flag in zip(files, records.files_used(), strict=True) if flag}
    assert used == {path for path, file in files.pairs() if file.url in {one.url for one in expected}}


def test_records_that_are_taken_do_not_change_the_others():
    records = Records(None, [Record("u", str(number), captions=(str(number),)) for number in range(9)])
    other = records.taken(np.array([3, 1]))
    other[0] = Record("u", "new", label="new")
    other.put_split(1, "test")
    records.append(Record("u", "9", label="old"))
    assert [one.path for one in records] == list("0123456789") and records[3].captions == ("3",)
    assert [(one.path, one.label, one.split) for one in other] == [("new", "new", None), ("1", None, "test")]


def test_sorting_and_what_comes_twice():
    paths = ["b", "a", "c", "b", "a", "ü", "\U0001f600", "\ue000"]
    records = Records(None, [Record(str(number), path) for number, path in enumerate(paths)])
    inorder = in_order_of(records, lambda record: record.path)
    assert [int(one.url) for one in inorder] == sorted(range(len(paths)), key=paths.__getitem__)
    with pytest.raises(UserError, match="source lists the image b twice"):
        unique(records, "source")
    assert [one.path for one in unique(records.taken(np.arange(2, 5)), "source")] == ["a", "b", "c"]


def test_distinct_records_are_those_of_a_dictionary():
    distinct, expected = Distinct(Records(), lambda record: record.path), {}
    for number in range(5000):
        key = str(random.Random(number).randrange(3000))
        earlier = distinct.add(Record("u", key, label=str(number)))
        assert earlier == expected.get(key)
        expected.setdefault(key, len(expected))
    assert list(distinct.records.paths()) == list(expected)


def test_few_words():
    words = [random.Random(number).choice(["", "train", "validation"]) for number in range(99)]
    few = FewWords(words)
    assert list(few) == words and few[3:8] == words[3:8] and few.count("train") == words.count("train")
    assert few.numbers_of("train").tolist() == [at for at, word in enumerate(words) if word == "train"]


def test_lines_are_those_of_python():
    draw = random.Random(0)
    for _ in range(5000):
        text = "".join(draw.choices('ab\r\n,"\u2028', k=draw.randint(0, 12)))
        assert list(_Text(text)) == list(io.StringIO(text, newline=""))
        assert list(_parted(text)) == text.split("\n")


def test_an_image_of_a_class_folder_takes_little_memory():
    num = 20_000
    tracemalloc.start()
    files = FileTable("/root/", ())
    for number in range(num):
        files.add(f"class{number % 100}/{number}.jpg", f"/root/class{number % 100}/{number}.jpg", number)
    records = Records(files)
    for path, file in files.pairs():
        records.append(Record(file.url, path, file.size_bytes, label=path.partition("/")[0], split="train"))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == num and used / num < 60  # 17 of them are the path; as objects 700
