"""kNN and the linear probe against plain reckonings, and RankMe of a whole data set and of a part."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from cluster.training.rank_context import local_context
from pretrain.data.reading.manifest import load_manifest
from pretrain.encoders import build_encoder
from pretrain.training.health import effective_rank
from pretrain.training.knn import knn_accuracy, knn_predict
from pretrain.training.linear_probe import linear_accuracy
from pretrain.training.probes import rankme
from tests.pretrain.shards import encoded, photo, write_shards


def test_knn_equals_a_loop():
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(50, 8), torch.randint(0, 3, (50,)), torch.randn(20, 8)
    wanted = []
    for query in F.normalize(queries, dim=1):
        similarity = F.normalize(bank, dim=1) @ query
        votes = [0.0, 0.0, 0.0]
        for index in similarity.argsort(descending=True)[:5]:
            votes[labels[index]] += math.exp(float(similarity[index]) / 0.07)
        wanted.append(votes.index(max(votes)))
    assert knn_predict(bank, labels, queries, num_classes=3, k=5).tolist() == wanted


def test_knn_finds_separate_clusters_and_takes_a_small_bank():
    centres = torch.eye(4) * 10
    labels = torch.arange(4).repeat(5)
    bank = centres[labels] + 0.1 * torch.randn(20, 4)
    assert knn_accuracy(bank, labels, centres, torch.arange(4), num_classes=4, k=200) == 1.0


def noisy_classes(num_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % 5
    centres = torch.randn(5, 24, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 2.5 * torch.randn(num_rows, 24, generator=generator), labels


def test_the_linear_probe_does_as_well_as_scikit_learn_and_repeats_itself():
    train, labels = noisy_classes(400, seed=0)
    test, wanted = noisy_classes(1000, seed=1)
    accuracy = linear_accuracy(train, labels, test, wanted, num_classes=5)
    theirs = max(
        LogisticRegression(C=c, max_iter=1000).fit(train, labels).score(test, wanted)
        for c in (1e-3, 1e-2, 0.1, 1.0)
    )
    assert 0.5 < theirs < 0.95 and accuracy > theirs - 0.02
    assert accuracy == linear_accuracy(train, labels, test, wanted, num_classes=5)


def test_the_linear_probe_penalises_weights_where_features_say_nothing():
    generator = torch.Generator().manual_seed(3)
    train, test = torch.randn(100, 80, generator=generator), torch.randn(300, 80, generator=generator)
    common = torch.zeros(300, dtype=torch.int64)
    labels = (torch.arange(100) % 10 == 0).long()
    assert linear_accuracy(train, labels, test, common, num_classes=2) > 0.95  # a free fit finds 80 %


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_encoder("convattn_nano", stem_stride=1).eval()


def test_rankme_is_that_of_the_features_and_a_part_of_the_data_does(encoder, tmp_path):
    write_shards(tmp_path, [photo(i) for i in range(120)], rows_per_group=40)
    manifest = load_manifest(str(tmp_path))
    how = {"image_column": "image", "size": 32, "crop_fraction": 1.0}
    with local_context() as context:
        whole, part = (rankme(encoder, manifest, context, num_images=n, **how) for n in (1000, 40))
    assert 1 < part <= 40 and part < whole <= 120


def test_rankme_counts_the_dimensions_in_use():
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 64)
    assert 2 < effective_rank(points.double()) <= 3.0001


@pytest.mark.parametrize("num_rows", [1, 39, 41, 100, 1000])
def test_a_sample_of_a_manifest_holds_enough_rows_from_everywhere(tmp_path, num_rows):
    write_shards(tmp_path, [encoded(i) for i in range(320)], rows_per_group=40)
    manifest = load_manifest(str(tmp_path))
    part = manifest.sample(num_rows)
    assert min(num_rows, 320) <= part.num_rows < min(num_rows + 40, 321)
    assert len(set(part.file_of_group.tolist())) == len(part.file_of_group)
    if num_rows == 100:
        assert np.ptp(part.file_of_group) >= 5
