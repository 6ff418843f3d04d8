"""The notebooks run from their first cell to their last, on few images;
only the cell with their parameters is another.
"""

import os
from pathlib import Path

import pytest

from tests.finetune.stripes import stripes
from tests.pretrain.shards import photo, write_shards

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path("configs/notebooks")
FEW = {
    "batch_size": 8,
    "steps": 2,
    "image_size": 32,
    "settings": {
        "training.warmup_epochs": 0,
        "cluster.cpus_per_worker": 1,
        "encoder.arguments": {"stem_stride": 2},
    },
}


def run(name, folder, parameters):
    """Runs a notebook in `folder`; returns its cells of code with what they put out."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert set(parameters) <= {line.partition(" = ")[0] for line in cells[0].source.splitlines()}
    cells[0].source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return cells


def put_out(cells, kind):
    return [
        output["data"][kind] for cell in cells for output in cell.outputs if kind in output.get("data", {})
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.slow
def test_own_photos_and_what_the_encoder_sees(folder):
    for number in range(60):
        place = folder / "photos" / ("across" if number % 2 else "down")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(stripes(number)[0])
    tuning = {
        "batch_size": 8,
        "steps": 2,
        "settings": {"training.warmup_epochs": 0, "cluster.cpus_per_worker": 1},
    }
    cells = run(
        "own_photos", folder, {"photos": "photos", "work": "made", "training": FEW, "tuning": tuning}
    )
    assert any(
        text.startswith("pretrain: step 2/2") for text in put_out(cells, "text/plain")
    )  # one line that moves
    assert put_out(cells, "image/png") and (folder / "made/classifier/report.html").exists()

    encoder = {"encoder": "made/encoder/encoder", "data": "made/shards/validation", "work": "made/seen"}
    assert len(put_out(run("what_an_encoder_sees", folder, encoder), "image/png")) == 2


@pytest.mark.slow
@pytest.mark.ray
def test_from_a_bucket(folder, s3_server):
    import s3fs

    local = write_shards(folder / "shards", [photo(number, side=32) for number in range(40)])
    s3fs.S3FileSystem().put(str(local), f"{s3_server.url}/notebook/shards", recursive=True)
    bucket = f"{s3_server.url}/notebook"
    more = {"method": "simclr", "encoder": "convattn_nano", "report_images": 0, **FEW}
    cells = run(
        "from_a_bucket", folder, {"bucket": bucket, "data": f"{bucket}/shards", "workers": 1, "more": more}
    )
    assert put_out(cells, "text/plain")[-1].startswith("[(1, ")
