import math

import torch
import torch.nn.functional as F

from pretrain.training.health import embedding_health, warnings_in_words
from pretrain.training.knn import knn_accuracy, knn_predict


def test_random_embeddings_are_healthy():
    torch.manual_seed(0)
    first, second = torch.randn(512, 32), torch.randn(512, 32)
    numbers = embedding_health(first, second)
    assert 0.97 < numbers["spread"] < 1.03
    assert 31 < numbers["effective_rank"] <= 32
    assert 1.9 < numbers["alignment"] < 2.1  # strangers are sqrt(2) apart
    assert numbers["uniformity"] < -3.5
    assert warnings_in_words(numbers, batch_size=512, dim=32, loss=1.0, chance_loss=6.9, step=500) == []


def test_health_equals_the_formulas_of_the_papers():
    torch.manual_seed(1)
    first, second = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    pairs = [math.exp(-2 * float((a[i] - a[j]).square().sum())) for i in range(6) for j in range(i)]
    shares = torch.linalg.svdvals(first) / torch.linalg.svdvals(first).sum()
    numbers = embedding_health(first, second)
    assert math.isclose(numbers["uniformity"], math.log(sum(pairs) / len(pairs)), rel_tol=1e-9)
    assert math.isclose(numbers["alignment"], float(((a - b) ** 2).sum(1).mean()), rel_tol=1e-9)
    assert math.isclose(numbers["effective_rank"], math.exp(float(-(shares * shares.log()).sum())), rel_tol=1e-6)


def test_collapse_is_said_in_words_after_the_first_steps():
    point = torch.ones(64, 16) + 1e-4 * torch.randn(64, 16)
    numbers = embedding_health(point, point)
    words = warnings_in_words(numbers, batch_size=64, dim=16, loss=1.0, chance_loss=4.8, step=120)
    assert len(words) == 1 and words[0].startswith("collapse: all images get nearly the same embedding")
    assert warnings_in_words(numbers, batch_size=64, dim=16, loss=1.0, chance_loss=4.8, step=50) == []


def test_a_loss_at_chance_is_said_in_words():
    words = warnings_in_words({}, batch_size=64, dim=16, loss=4.84, chance_loss=4.85, step=120)
    assert len(words) == 1 and "chance value 4.850" in words[0]


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
