"""`evaluate --corruptions`: the table of a model that tells light from dark by the mean of its pixels."""

import io
import json
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import run_command
from finetune.__main__ import main
from finetune.model import save_model
from finetune.reporting.classification import ClassificationReport
from finetune.reporting.robustness import robustness_section
from finetune.tasks.classification.model import Classifier
from pretrain.data.views.corruptions import CORRUPTIONS
from pretrain.encoders import build_encoder
from tests.pretrain.shards import write_shards


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, and shards of noisy light and dark images."""
    folder = tmp_path_factory.mktemp("robustness")
    torch.manual_seed(0)
    encoder = build_encoder("convattn_classic", dim=4)
    model = Classifier(encoder, num_classes=2, mode="full").eval()
    images, labels = [], []
    for number in range(24):
        generator = np.random.default_rng(number)
        level = (90, 165)[number % 2]
        pixels = (level + generator.normal(0, 20, (24, 24, 3))).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
        labels.append(("dark", "light")[number % 2])
    write_shards(folder / "data", images, label=labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    stack = torch.stack(
        [torch.from_numpy(np.array(Image.open(io.BytesIO(i)))).permute(2, 0, 1) / 255 for i in images]
    )
    for _ in range(60):
        loss = model((stack.sub(0.5).div(0.25), torch.arange(24) % 2)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    config = {
        "task": "classification",
        "mode": "full",
        "encoder": encoder.spec,
        "image_size": 24,
        "crop_fraction": 1.0,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "image_column": "image",
        "columns": {"label": "label"},
        "class_names": ["dark", "light"],
        "class_values": ["dark", "light"],
    }
    save_model(str(folder / "run" / "model"), model, config)
    return folder


def test_a_table_beside_the_model(world, capsys):
    told = [
        "evaluate",
        str(world / "run" / "model"),
        str(world / "data"),
        "--corruptions",
        "--json",
        str(world / "all.json"),
    ]
    assert run_command(lambda: main(told)) == 0
    said = capsys.readouterr().out
    table = json.loads((world / "run" / "corruptions.json").read_text())
    assert table["metric"] == "accuracy" and table["clean"] == 1.0 and table["rows"] == 24
    assert list(table["kinds"]) == list(CORRUPTIONS) and all(
        len(scores) == 5 for scores in table["kinds"].values()
    )
    assert table["mean"] == pytest.approx(
        statistics.mean(score for row in table["kinds"].values() for score in row)
    )
    assert table["by_strength"][0] > table["by_strength"][4] and table["by_group"]["blur"] > 0.95
    # light added to everything makes the dark ones light: half of the images are wrong then
    assert (
        table["kinds"]["brightness"][4] == pytest.approx(0.5, abs=0.05) and table["kinds"]["jpeg"][0] > 0.9
    )
    assert f"accuracy 1.0000 as they are, {table['mean']:.4f} on average over 12 corruptions" in said
    whole = json.loads((world / "all.json").read_text())
    assert whole["corruptions"]["kinds"] == table["kinds"] and whole["metrics"]["accuracy"] == 1.0
    # and in the report of the run
    (section,) = robustness_section(str(world / "run"), ClassificationReport.scores[0])
    assert section.body.count("<td>") == 13 and section.body.count('class="meter"') == 60
    assert (
        "Accuracy is 100.0 %" in section.lead and f"{100 * table['kinds']['jpeg'][0]:.1f} %" in section.body
    )
    assert robustness_section(str(world), ClassificationReport.scores[0]) == []
