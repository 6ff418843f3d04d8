"""A user's mistake is one clear line and exit code 2, before any worker starts."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import run_command
from finetune.__main__ import main as finetune
from pretrain.__main__ import main as pretrain
from pretrain.data import __main__ as data_commands
from pretrain.encoders import build_encoder, save_encoder
from tests.pretrain.shards import photo, write_shards

PRETRAIN = "configs/pretrain/small/simclr.yaml"
FINETUNE = "configs/finetune/classification.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [photo(number, side=16) for number in range(40)]
    return write_shards(tmp_path_factory.mktemp("good"), images, label=[f"c{n % 2}" for n in range(40)])


def data(arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain.data", *arguments])
        return data_commands.main()


@pytest.fixture
def mistake(capsys):
    """Runs a command that must fail by a mistake of the user's, and returns its one line."""

    def run(main, *arguments):
        capsys.readouterr()
        code = run_command(lambda: main(list(map(str, arguments))))
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert code == 2, captured
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        return lines[0]

    return run


def test_misspelt_settings_and_impossible_values(mistake, shards, tmp_path):
    good = [PRETRAIN, f"data.url={shards}", f"out={tmp_path / 'out'}", "training.batch_size_global=16"]
    for override, words in [
        ("training.epoch=3", ["unknown setting 'training.epoch'", "did you mean 'training.epochs'"]),
        ("trainin.epochs=3", ["unknown setting 'trainin'", "did you mean 'training'"]),
        ("training.epochs=-1", ["training.epochs=-1", "at least 0"]),
        ("training.epochs=ten", ["training.epochs='ten'", "must be a number"]),
        ("optimizer.name=adam", ["optimizer.name='adam'", "allowed: adamw, lars, sgd"]),
        ("training.batch_size_global=1", ["at least 2"]),
        ("encoder.name=convattn_nao", ["unknown encoder 'convattn_nao'", "did you mean 'convattn_nano'"]),
        ("encoder.arguments.top_kk=2", ["unknown argument 'top_kk'", "did you mean 'top_k'"]),
        ("method.name=simclt", ["unknown method 'simclt'"]),
        ("method.arguments.temprature=1", ["'temprature'", "did you mean 'temperature'"]),
        ("views.arguments.crop=1", ["views.arguments", "'crop'"]),
        ("knn.train_url=x", ["both knn.train_url and knn.test_url"]),
        ("--epochs", ["--epochs has no value", "epochs=VALUE"]),
    ]:
        line = mistake(pretrain, *good, override)
        assert all(word in line for word in words), line
    assert "does not exist" in mistake(pretrain, "configs/pretrain/simcrl.yaml")
    assert "the setting out has no value" in mistake(pretrain, PRETRAIN, f"data.url={shards}")
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there(mistake, shards, tmp_path):
    out = f"out={tmp_path / 'out'}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photo(0))
    assert "missing" in mistake(pretrain, PRETRAIN, out, f"data.url={tmp_path / 'missing'}")
    assert "empty" in mistake(pretrain, PRETRAIN, out, f"data.url={tmp_path / 'empty'}")
    assert "python -m pretrain.data import" in mistake(
        pretrain, PRETRAIN, out, f"data.url={tmp_path / 'photos'}"
    )
    assert "data.url=None is not possible" in mistake(pretrain, PRETRAIN, out, "data.url=")
    assert "data.url='' is not possible" in mistake(pretrain, PRETRAIN, out, "data.url=''")
    assert "empty" in mistake(data, "import", tmp_path / "empty", tmp_path / "packed")
    assert "missing" in mistake(data, "check", tmp_path / "missing")


def test_parquet_without_images(mistake, tmp_path):
    pq.write_table(pa.table({"picture": [b"x"], "label": ["a"]}), tmp_path / "t.parquet")
    line = mistake(pretrain, PRETRAIN, f"data.url={tmp_path}", f"out={tmp_path / 'out'}")
    assert "t.parquet" in line and "'image'" in line and "picture" in line
    (tmp_path / "t.parquet").write_bytes(b"PAR1 this is not Parquet")
    assert "t.parquet" in mistake(pretrain, PRETRAIN, f"data.url={tmp_path}", f"out={tmp_path / 'out'}")


def test_batches_that_do_not_fit(mistake, shards, tmp_path):
    good = [PRETRAIN, f"data.url={shards}", f"out={tmp_path / 'out'}"]
    line = mistake(pretrain, *good, "training.batch_size_global=64")
    assert "batch_size_global=64 is larger than the data (40 rows)" in line
    line = mistake(pretrain, *good, "training.batch_size_global=16", "cluster.workers=3")
    assert "3 workers do not divide" in line and "possible numbers of workers: 1, 2, 4, 8, 16" in line
    line = mistake(pretrain, *good, "training.batch_size_global=16", "data.num_streams=5")
    assert "batch_size_global=16 is not divisible by data.num_streams=5" in line


def test_an_out_that_cannot_be_used(mistake, shards, tmp_path):
    good = [PRETRAIN, f"data.url={shards}", "training.batch_size_global=16"]
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in mistake(pretrain, *good, f"out={tmp_path / 'file'}")
    assert "/proc/run" in mistake(pretrain, *good, "out=/proc/run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("x")
    assert "thesis.txt" in mistake(pretrain, *good, f"out={tmp_path / 'folder'}")
    assert "nosuch" in mistake(pretrain, *good, "out=nosuch://bucket/run")


def test_another_run_in_the_same_out(mistake, shards, tmp_path):
    good = [
        PRETRAIN,
        f"data.url={shards}",
        f"out={tmp_path / 'out'}",
        "training.batch_size_global=16",
        "cluster.workers=0",
    ]
    assert run_command(lambda: pretrain([*good, "training.steps=1"])) == 0
    line = mistake(pretrain, *good, "training.steps=1", "seed=4")
    assert "holds a run with other settings (seed: 0 -> 4)" in line
    assert (
        run_command(lambda: pretrain([*good, "training.steps=1", "data.decode_threads=3"])) == 0
    )  # finished already


def test_encoder_folders_that_cannot_be_used(mistake, shards, tmp_path):
    folder = tmp_path / "encoder"
    save_encoder(build_encoder("convattn_nano", stem_stride=2), str(folder), input_size=32)
    good = [
        FINETUNE,
        f"data.url={shards}",
        f"validation_url={shards}",
        f"out={tmp_path / 'out'}",
        f"encoder={folder}",
    ]
    good += ["training.batch_size_global=16"]

    assert "not an encoder or model folder" in mistake(finetune, *good, f"encoder={tmp_path}")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    line = mistake(finetune, *good)
    assert "model.safetensors is damaged" in line
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format_version": 2}))
    assert "config.json has format version 2, this program reads version 1" in mistake(finetune, *good)
    assert "unknown timm network" in mistake(finetune, *good, "encoder=timm:resnet19")


def test_labels_that_cannot_be_used(mistake, shards, tmp_path):
    images = [photo(number, side=16) for number in range(20)]
    common = [FINETUNE, "encoder=random", "architecture.name=convattn_nano", f"out={tmp_path / 'out'}"]
    common += ["training.batch_size_global=16", f"data.url={shards}"]
    never = write_shards(tmp_path / "never", images, label=["c0", "zebra"] * 10)
    assert "classes that the training data never shows: zebra" in mistake(
        finetune, *common, f"validation_url={never}"
    )
    none = write_shards(tmp_path / "none", images, label=pa.array([None] * 20, pa.string()))
    assert "none of 20 rows has a label" in mistake(finetune, *common, f"validation_url={none}")
    real = write_shards(tmp_path / "real", images, label=[0.5] * 20)
    assert "must be text or whole numbers" in mistake(
        finetune, *common, f"validation_url={real}", f"data.url={real}"
    )
    line = mistake(finetune, *common, f"validation_url={shards}", "classification.label_column=lable")
    assert "'lable'" in line and "label" in line


def test_what_classification_cannot_be_told(mistake, shards, tmp_path):
    common = [FINETUNE, "encoder=random", "architecture.name=convattn_nano", f"out={tmp_path / 'out'}"]
    common += ["training.batch_size_global=16", f"data.url={shards}", f"validation_url={shards}"]
    line = mistake(finetune, *common, "label_fraction=0.5", "labels_per_class=3")
    assert "label_fraction and labels_per_class contradict each other" in line
    assert "larger than the data (4 rows)" in mistake(finetune, *common, "label_fraction=0.1")
    line = mistake(finetune, *common, "best_metric=acuracy")
    assert "unknown best_metric 'acuracy'" in line and "did you mean 'accuracy'" in line
    images = [photo(number, side=16) for number in range(20)]
    lists = write_shards(tmp_path / "lists", images, label=[["a"], ["a", "b"]] * 10)
    assert "one class in the training data and a list in the validation" in mistake(
        finetune, *common, f"validation_url={lists}"
    )
    of_lists = [*common, f"data.url={lists}", f"validation_url={lists}"]
    assert "balance=sampling needs one class" in mistake(
        finetune, *of_lists, "classification.balance=sampling"
    )
    assert "labels_per_class needs one class an image" in mistake(finetune, *of_lists, "labels_per_class=2")


def test_images_of_other_channels_than_the_encoder(mistake, shards, tmp_path):
    common = [FINETUNE, "encoder=random", "architecture.name=convattn_nano", f"out={tmp_path / 'out'}"]
    common += ["training.batch_size_global=16", f"data.url={shards}", f"validation_url={shards}"]
    line = mistake(finetune, *common, "architecture.arguments={in_channels: 5}")
    assert "the encoder takes images of 5 channels" in line and "have 3" in line
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((16, 16, 5), np.uint8), allow_pickle=False)
    bands = write_shards(tmp_path / "bands", [buffer.getvalue()] * 20, label=["a", "b"] * 10)
    line = mistake(finetune, *common, f"data.url={bands}", f"validation_url={bands}")
    assert "the encoder takes images of 3 channels" in line and "have 5" in line


def test_what_is_compared_with_is_opened_before_the_first_step(mistake, shards, tmp_path):
    common = [
        FINETUNE,
        "encoder=random",
        "architecture.name=convattn_nano",
        f"out={tmp_path / 'out'}",
        "image_size=16",
    ]
    common += [
        "training.batch_size_global=16",
        f"data.url={shards}",
        f"validation_url={shards}",
        "cluster.workers=0",
    ]
    for typo in ("timm:resnet19", str(tmp_path / "missing")):
        for more in ([], ["--check"]):
            line = mistake(finetune, *common, f"compare=[random,{typo}]", *more)
            assert "compare names what cannot be compared with" in line and typo.rpartition(":")[2] in line
        line = mistake(finetune, *common, f"encoder={typo}", "compare=[random]")
        assert "compare names" not in line and typo.rpartition(":")[2] in line
    assert not (tmp_path / "out").exists()


def test_reports_of_the_wrong_kind_of_run(mistake, tmp_path):
    from finetune.reporting.command import main as finetune_report
    from pretrain.report import main as pretrain_report

    for kind, settings in (
        ("pretrain", "seed: 0\nmethod: {name: simclr}\n"),
        ("finetune", "seed: 0\ntask: detection\n"),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "settings.yaml").write_text(settings)
    line = mistake(pretrain_report, tmp_path / "finetune")
    assert "is a fine-tuning run" in line and "python -m finetune report" in line
    line = mistake(finetune_report, tmp_path / "pretrain")
    assert "is a pretraining run" in line and "python -m pretrain report" in line
    assert not list(tmp_path.rglob("report.html"))
