"""--fix: the same rows in the same order with every column as it was, in small row groups,
with bounded memory.
"""

import decimal
import json
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError, run_command
from pretrain.data import __main__ as commands
from pretrain.data.checking.check import check
from pretrain.data.packing.regroup import check_locations, regroup
from pretrain.data.reading.image_paths import use_image_root
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.naming import names_at
from pretrain.data.reading.shards import Shards, read_in_sequence
from tests.pretrain.shards import IMAGE, encoded, write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(num, **options):
    return [encoded(number, **options) for number in range(num)]


def many_types(num):
    """A table with a column of every kind that somebody may keep beside images, nulls included."""
    rng = np.random.default_rng(0)
    encoded_images = pa.array(
        [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images(num))], IMAGE
    )
    nanoseconds = pa.array(rng.integers(0, 2**60, num), pa.timestamp("ns", "Europe/Rome"))

    def every_third_null(values, kind):
        return pa.array([None if n % 3 == 2 else value for n, value in enumerate(values)], kind)

    return pa.table(
        {
            "image": encoded_images,
            "label": every_third_null([n % 5 for n in range(num)], pa.int64()),
            "when": nanoseconds,
            "price": every_third_null([decimal.Decimal(n) / 100 for n in range(num)], pa.decimal128(9, 2)),
            "tags": every_third_null([["a", None]] * num, pa.list_(pa.string())),
            "objects": every_third_null(
                [{"bbox": [[1, 2, 3, n]], "category": [n]} for n in range(num)],
                pa.struct(
                    [("bbox", pa.list_(pa.list_(pa.float32(), 4))), ("category", pa.list_(pa.int32()))]
                ),
            ),
            "pairs": every_third_null(
                [[{"k": "a", "v": None}]] * num, pa.list_(pa.struct([("k", pa.string()), ("v", pa.int8())]))
            ),
            "attributes": every_third_null(
                [[("k", n)] for n in range(num)], pa.map_(pa.string(), pa.int64())
            ),
            "kind": every_third_null(["x", "y"] * (num // 2), pa.string()).dictionary_encode(),
            "half": pa.array(rng.normal(size=num).astype(np.float16)),
            "mask": every_third_null([bytes([n % 256]) * 50 for n in range(num)], pa.binary()),
            "text": pa.array([b"\xff" if n == 4 else b"good" for n in range(num)]).view(pa.string()),
            "large": every_third_null(["z"] * num, pa.large_string()),
            "nothing": pa.nulls(num),
            "empty": every_third_null([{"n": [None], "t": ["a"]}] * num, None),
            "unnamed": pa.array([[b"k"]] * num).flatten().view(pa.string()).cast(pa.string_view()),
            "notes": pa.MapArray.from_arrays(
                list(range(num + 1)), pa.array(["k"] * num), pa.array([b"\xfe"] * num).view(pa.string())
            ),
            "point": pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.int8(), [2]),
                every_third_null([[1, 2]] * num, pa.list_(pa.int8(), 2)),
            ),
        }
    )


def test_every_column_is_kept(tmp_path):
    table = many_types(300)
    features = {"image": {"_type": "Image"}, "label": {"names": list("abcde"), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "mine": "kept"}
    table = table.replace_schema_metadata(metadata)
    (tmp_path / "data").mkdir()
    pq.write_table(table.slice(0, 200), tmp_path / "data" / "a.parquet")
    pq.write_table(table.slice(200), tmp_path / "data" / "b.parquet")
    before = pq.read_table(tmp_path / "data")  # Parquet itself changes a few types
    summary = regroup(str(tmp_path / "data"), str(tmp_path / "fixed"))
    after = pq.read_table(tmp_path / "fixed")
    assert after.schema.equals(before.schema)
    for name in before.schema.names:
        assert after[name].combine_chunks().equals(before[name].combine_chunks()), name
    assert after.schema.metadata[b"mine"] == b"kept" and names_at(after.schema, "label") == tuple("abcde")
    assert summary["rows"] == summary["rows_written"] == 300 and summary["row_groups"]["rows"]["max"] <= 64
    groups = check(str(tmp_path / "fixed"))["row_groups"]
    assert groups["suits_shuffling"] and groups["rows"]["max"] == 64
    assert not (tmp_path / "fixed" / "_dropped.jsonl").exists()


@pytest.mark.parametrize("plain_binary", [True, False])
def test_images_are_kept_byte_for_byte(tmp_path, plain_binary):
    data = [*images(150), None, b"bad"]
    url = write_shards(
        tmp_path / "data", data, rows_per_group=150, rows_per_file=100, plain_binary=plain_binary
    )
    assert regroup(url, str(tmp_path / "fixed"))["rows_written"] == 152
    column = pq.read_table(tmp_path / "fixed")["image"].to_pylist()
    assert [row if row is None or plain_binary else row["bytes"] for row in column] == data


def test_bad_rows_and_duplicates_are_left_out_and_listed(tmp_path):
    data = [*images(5), b"bad", *images(3), None, b"bad", encoded(9)]
    url = write_shards(tmp_path / "data", data, rows_per_group=4, rows_per_file=8, number=list(range(12)))

    def written(dest, **options):
        summary = regroup(url, str(tmp_path / dest), **options)
        numbers = pq.read_table(tmp_path / dest)["number"].to_pylist()
        path = tmp_path / dest / "_dropped.jsonl"
        dropped = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        assert summary["rows_written"] == len(numbers) == 12 - len(dropped)
        return (
            summary,
            numbers,
            [(row["file"][-13:-8], row["row_group"], row["row"], row["reason"]) for row in dropped],
        )

    assert written("all") == (written("all_again")[0] | {"dest": str(tmp_path / "all")}, list(range(12)), [])
    bad = [("00000", 1, 1, "not an image"), ("00001", 0, 1, "null"), ("00001", 0, 2, "not an image")]
    copies = [("00000", 1, 2, "duplicate"), ("00000", 1, 3, "duplicate"), ("00001", 0, 0, "duplicate")]
    summary, numbers, dropped = written("good", drop_bad=True)
    assert (summary["dropped_bad"], numbers, dropped) == (3, [0, 1, 2, 3, 4, 6, 7, 8, 11], bad)
    summary, numbers, dropped = written("single", drop_duplicates=True)
    assert (summary["dropped_duplicates"], numbers) == (4, [0, 1, 2, 3, 4, 5, 9, 11])
    assert dropped == [*copies, ("00001", 0, 2, "duplicate")]
    summary, numbers, dropped = written("both", drop_bad=True, drop_duplicates=True)
    assert numbers == [0, 1, 2, 3, 4, 11] and sorted(dropped) == sorted(bad + copies)
    assert (summary["dropped_bad"], summary["dropped_duplicates"]) == (3, 3)
    with pytest.raises(UserError, match="all 2 rows were left out"):
        regroup(write_shards(tmp_path / "rubbish", [b"x", b"y"]), str(tmp_path / "none"), drop_bad=True)


def test_places_that_do_not_suit(tmp_path):
    url = write_shards(tmp_path / "source" / "data", images(3))
    (tmp_path / "link").symlink_to(tmp_path / "source")
    for source, dest in [
        (url, url),
        (url, f"{url}/fixed"),
        (url, f"{url}/../data/fixed"),
        (url, str(tmp_path / "source")),
        (url, str(tmp_path / "link" / "data" / "fixed")),
        (f"{url}/*.parquet", url),
        (f"{url}/**/*.parquet", f"{url}/fixed"),
        (f"{url}/shard-00000.parquet", url),
        (f"file://{url}", f"{url}/fixed"),
    ]:
        with pytest.raises(UserError, match="contain one another"):
            check_locations(source, dest)
    check_locations(url, f"{url}-fixed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.txt\)"):
        check_locations(url, str(tmp_path / "full"))
    with pytest.raises(UserError, match="does not exist"):
        check_locations(str(tmp_path / "missing"), str(tmp_path / "fixed"))


def test_in_a_store(tmp_path):
    url = write_shards(tmp_path / "data", [*images(90), b"bad"], rows_per_group=90, rows_per_file=90)
    summary = regroup(url, "memory://regroup/first", drop_bad=True)
    assert (
        summary["rows_written"] == 90 and summary["dropped_list"] == "memory://regroup/first/_dropped.jsonl"
    )
    assert regroup("memory://regroup/first", "memory://regroup/second")["rows_written"] == 90
    for source in ("memory://regroup/first", "memory://regroup/*/*.parquet"):
        with pytest.raises(UserError, match="contain one another"):
            check_locations(
                source, "memory://regroup/first/again" if "*" not in source else "memory://regroup/third"
            )


def test_files_that_do_not_fit_together(tmp_path):
    write_shards(tmp_path / "data", images(3), label=[1, 2, 3])
    other = write_shards(tmp_path / "other", images(3), label=["a", "b", "c"])
    (tmp_path / "data" / "b.parquet").write_bytes((tmp_path / "other" / "shard-00000.parquet").read_bytes())
    with pytest.raises(
        UserError, match=r"column 'label' is string in .*b.parquet but int64 in .*shard-00000.parquet"
    ):
        regroup(str(tmp_path / "data"), str(tmp_path / "fixed"))
    write_shards(tmp_path / "third", images(3))
    (tmp_path / "data" / "b.parquet").write_bytes((tmp_path / "third" / "shard-00000.parquet").read_bytes())
    with pytest.raises(
        UserError, match=r"shard-00000.parquet has the columns image, label, but .*b.parquet has image"
    ):
        regroup(str(tmp_path / "data"), str(tmp_path / "fixed"))
    assert not (tmp_path / "fixed").exists()
    assert regroup(other, str(tmp_path / "fixed"))["rows_written"] == 3


def test_a_damaged_file_leaves_nothing(tmp_path):
    url = write_shards(tmp_path / "data", [encoded(n, size=(40, 40)) for n in range(40)])
    path = tmp_path / "data" / "shard-00000.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[4:400] = bytes(396)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"shard-00000.parquet: row group 0 cannot be read"):
        regroup(url, str(tmp_path / "fixed"))
    assert not list((tmp_path / "fixed").iterdir())


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain.data", "check", *map(str, arguments)])
        return run_command(commands.main)


def test_the_command(tmp_path, capsys):
    url = write_shards(
        tmp_path / "data",
        [*images(5000, size=(1, 1)), b"bad", encoded(0, size=(1, 1))],
        rows_per_group=9**9,
        rows_per_file=9**9,
    )
    assert command(url) == 0
    assert "`check URL --fix DEST` does so" in capsys.readouterr().out
    options = [
        "--rows",
        "60",
        "--sheet",
        tmp_path / "s.png",
        "--json",
        tmp_path / "r.json",
        "--drop-bad",
        "--drop-duplicates",
    ]
    assert command(url, *options, "--fix", tmp_path / "fixed") == 0
    out = capsys.readouterr().out
    assert (
        "wrote 5000 of 5002 rows" in out
        and "left out 1 bad rows and 1 duplicates" in out
        and "_dropped.jsonl" in out
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows"] == 5002 and report["decoded"] == 60 and report["fix"]["rows_written"] == 5000
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    for wrong, words in [
        (["--drop-bad"], "--drop-bad, --drop-duplicates and --decoded need --fix DEST"),
        (["--sheet", "sheet.jpg"], "name a file that ends in .png"),
        (["--fix", url], "contain one another"),
        (["--fix", tmp_path / "new", "--sheet", tmp_path / "new" / "s.png"], "name a file outside it"),
        (["--label-column", "lable"], "no column 'lable'"),
        (["--rows", "0"], "--rows must be"),
    ]:
        assert command(url, *wrong) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and words in err and len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_memory_is_bounded_by_images_not_by_row_groups(tmp_path):
    # 300 MB in one row group; a page, which nobody can read in parts, has 1 MB
    program = f"""
        import resource
        import numpy as np, pyarrow as pa, pyarrow.parquet as pq
        from pretrain.data.packing.regroup import regroup
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        rng = np.random.default_rng(0)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if {{mode!r}} == "write":
            rows = [rng.bytes(100_000) for _ in range(3000)]
            table = pa.table([rows, list(range(3000))], schema=schema)
            path = {str(tmp_path / "data.parquet")!r}
            pq.write_table(table, path, row_group_size=10**6, write_batch_size=10)
        else:
            before = peak()
            path, fixed = {str(tmp_path / "data.parquet")!r}, {str(tmp_path / "fixed")!r}
            summary = regroup(path, fixed, drop_duplicates=True)
            assert summary["rows_written"] == 3000
            print(peak() - before, pa.default_memory_pool().max_memory() / 2**20)
    """
    for mode in ("write", "fix"):
        code = textwrap.dedent(program).replace("{mode!r}", repr(mode))
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    grown_mib, arrow_mib = map(float, result.stdout.split())
    assert grown_mib < 200 and arrow_mib < 64, result.stdout
    assert max(pq.read_metadata(path).row_group(0).num_rows for path in (tmp_path / "fixed").iterdir()) <= 84


def test_files_of_other_types_and_numberings_become_one_schema(tmp_path):
    kinds = [pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string_view(), pa.large_string()]
    numbers = [pa.int8(), pa.int64(), pa.uint16(), pa.int32()]
    (tmp_path / "data").mkdir()
    for number, (kind, width) in enumerate(zip(kinds, numbers, strict=True)):
        names = ["cat", "dog"] if number % 2 else ["dog", "cat"]
        features = {
            "label": {"_type": "ClassLabel", "names": names},
            "objects": {
                "bbox": {},
                "category": {"feature": {"_type": "ClassLabel", "names": names}, "_type": "List"},
            },
        }
        objects = pa.array([{"bbox": [[1.0, 2, 3, 4]], "category": [names.index("cat")]}] * 2)
        columns = {
            "image": [encoded(2 * number), encoded(2 * number + 1)],
            "word": pa.array(["x", None]).cast(kind),
            "label": pa.array([names.index("dog"), -1], pa.int64()), "objects": objects,
            "number": pa.array([number, 7]).cast(width),
        }  # fmt: skip
        names_of = list(columns) if number else list(columns)[::-1]
        table = pa.table({name: columns[name] for name in names_of})
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "data" / f"{number}.parquet")
    regroup(str(tmp_path / "data"), str(tmp_path / "fixed"))
    rows = pq.read_table(tmp_path / "fixed").to_pylist()
    assert [row["word"] for row in rows] == ["x", None] * 4 and [row["label"] for row in rows] == [
        "dog",
        None,
    ] * 4
    assert [row["number"] for row in rows] == [0, 7, 1, 7, 2, 7, 3, 7]
    assert all(row["objects"] == {"bbox": [[1, 2, 3, 4]], "category": ["cat"]} for row in rows)
    assert check(str(tmp_path / "fixed"))["labels"]["label"]["counts"] == {"(null)": 4, "dog": 4}


def test_images_that_lie_outside_are_read_and_written_in(tmp_path):
    paths = [str(tmp_path / "photos" / "0.png"), "1.png", "../2.png", "sub/3.png"]
    for number, path in enumerate(("photos/0.png", "photos/1.png", "2.png", "photos/sub/3.png")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded(number))
    (tmp_path / "data").mkdir()
    of_paths = pa.array([{"bytes": None, "path": path} for path in paths], IMAGE)
    pq.write_table(pa.table({"image": of_paths}), tmp_path / "data" / "a.parquet")
    with pytest.raises(UserError, match=r"only their paths.*data\.image_root=FOLDER"):
        check(str(tmp_path / "data"))
    try:
        use_image_root(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match=r"is no image below data\.image_root="):
            assert Shards(load_manifest(str(tmp_path / "data")), image_column="image").mean_row_bytes
        use_image_root(str(tmp_path / "photos"))
        shards = Shards(load_manifest(str(tmp_path / "data")), image_column="image")
        read = [image for piece in read_in_sequence(shards) for image in piece.images]
        assert read == [encoded(0), encoded(1), None, encoded(3)]  # no path leads out of the folder
        assert shards.mean_row_bytes == pytest.approx(np.mean([len(image) for image in read if image]))
        assert check(str(tmp_path / "data"))["bad"] == 1
        regroup(str(tmp_path / "data"), str(tmp_path / "fixed"), drop_bad=True)
    finally:
        use_image_root(None)
    written = pq.read_table(tmp_path / "fixed")["image"].to_pylist()
    assert [image["bytes"] for image in written] == [encoded(0), encoded(1), encoded(3)]
