import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.training.health import (
    EMBEDDING_NUMBERS,
    MAX_COLUMNS,
    HealthWatch,
    assignment_information,
    effective_rank,
    embedding_health,
    fallen_rank,
    outputs_in_use,
    watched_part,
)


def test_random_embeddings_are_healthy():
    torch.manual_seed(0)
    first, second = torch.randn(512, 32), torch.randn(512, 32)
    numbers = embedding_health(first, second)
    assert 0.97 < numbers["spread"] < 1.03
    assert 31 < numbers["effective_rank"] <= 32
    assert 1.9 < numbers["alignment"] < 2.1  # strangers are sqrt(2) apart
    assert numbers["uniformity"] < -3.5
    watch = HealthWatch(num_steps=1000, batch_size_global=512)
    for step in range(10, 1000, 10):
        assert watch.look(step, numbers | {"loss": 1.0, "gradient_norm": 0.3}, dim=32, chance_loss=6.9) == []


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.full((8, 4), NAN),
        torch.full((8, 4), INF),
        torch.randn(8, 4).index_fill(0, torch.tensor([3]), NAN),
        torch.randn(8, 4).index_fill(1, torch.tensor([1]), -INF),
        torch.zeros(8, 4),
        torch.ones(8, 4),
        torch.randn(1, 4),
        torch.full((8, 4), 1e300, dtype=torch.float64),
        torch.randn(2, 1),
    ],
)
def test_no_embeddings_end_a_run(embeddings):
    numbers = embedding_health(embeddings, embeddings)
    assert tuple(numbers) == EMBEDDING_NUMBERS
    assert all(isinstance(number, float) for number in numbers.values())
    watch = HealthWatch(num_steps=1000, batch_size_global=8)
    for step in range(1, 200):
        for loss in (NAN, INF, 1.0):
            told = watch.look(step, numbers | {"loss": loss, "gradient_norm": NAN}, dim=4, chance_loss=2.0)
            assert all("nan" not in finding.text for finding in told)


def test_a_number_that_is_not_finite_hides_nothing_that_comes_later():
    records = [{"loss": NAN, "gradient_norm": NAN}] * 3 + [{"loss": 4.85, "gradient_norm": 1.0}] * 20
    told = findings(HealthWatch(num_steps=100, batch_size_global=64), records, dim=16, chance_loss=4.85)
    assert told[-1] and told[-1][0].startswith("no learning")
    watch = HealthWatch(num_steps=1000, batch_size_global=64)
    norms = [1.0] * 15 + [INF, NAN] + 3 * [INF]
    assert "exploding gradient" in findings(watch, [{"gradient_norm": norm} for norm in norms])[-1][0]


def test_words_and_numbers_of_a_loss_agree():
    watch = HealthWatch(num_steps=1000, batch_size_global=64)
    told = findings(watch, 14 * [{"loss": 3.974}], dim=16, chance_loss=2.639)
    assert (
        "the loss 3.974 does not fall and is above 2.639" in told[-1][0]
        and "chance value" not in told[-1][0]
    )
    short = HealthWatch(num_steps=6, batch_size_global=8)
    assert not any(short.look(step, {"loss": 2.64}, dim=16, chance_loss=2.639) for step in range(1, 50))
    falling = [{"loss": 9.0 - 0.1 * number} for number in range(30)]
    assert not any(
        findings(HealthWatch(num_steps=100, batch_size_global=8), falling, dim=16, chance_loss=2.639)
    )


def test_health_equals_the_formulas_of_the_papers():
    torch.manual_seed(1)
    first, second = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    pairs = [math.exp(-2 * float((a[i] - a[j]).square().sum())) for i in range(6) for j in range(i)]
    shares = torch.linalg.svdvals(first) / torch.linalg.svdvals(first).sum()
    numbers = embedding_health(first, second)
    assert math.isclose(numbers["uniformity"], math.log(sum(pairs) / len(pairs)), rel_tol=1e-9)
    assert math.isclose(numbers["alignment"], float(((a - b) ** 2).sum(1).mean()), rel_tol=1e-9)
    assert math.isclose(
        numbers["effective_rank"], math.exp(float(-(shares * shares.log()).sum())), rel_tol=1e-6
    )


def findings(watch: HealthWatch, records: list[dict[str, float]], **given) -> list[list[str]]:
    """The texts told at steps 10, 20, ..."""
    return [
        [found.text for found in watch.look(10 * (i + 1), numbers, **given)]
        for i, numbers in enumerate(records)
    ]


def test_collapse_is_told_from_the_third_line_on_and_since_when():
    torch.manual_seed(2)
    point = torch.ones(64, 16) + 1e-4 * torch.randn(64, 16)
    sound = embedding_health(torch.randn(64, 16), torch.randn(64, 16))
    collapsed = embedding_health(point, point)
    told = findings(
        HealthWatch(num_steps=1000, batch_size_global=64), [sound] + 4 * [collapsed] + [sound], dim=16
    )
    assert [len(texts) for texts in told] == [0, 0, 0, 1, 1, 0]
    assert told[3][0].startswith("collapse: all images get nearly the same embedding (spread 0.0")
    assert ", since step 20; a lower learning rate" in told[3][0]


def embeddings_of(kind: str, rows: int, columns: int) -> torch.Tensor:
    noise = torch.randn(rows, columns)
    return {
        "healthy": noise,
        "one point": torch.ones(columns) + 1e-4 * noise,
        "one line": torch.randn(columns) * (1 + 0.1 * torch.randn(rows, 1)),
        "four directions": torch.randn(rows, 4) @ torch.randn(4, columns),
    }[kind]


@pytest.mark.parametrize("kind", ["healthy", "one point", "one line", "four directions"])
@pytest.mark.parametrize(("rows", "columns"), [(256, 128), (512, 2048), (256, 8192)])
def test_part_of_the_columns_in_float32_gives_the_verdict_of_all_in_float64(kind, rows, columns):
    torch.manual_seed(3)
    all_of_it = embeddings_of(kind, rows, columns)
    part = watched_part(all_of_it)
    assert part.shape == (rows, min(columns, MAX_COLUMNS)) and part.dtype == torch.float32
    told = [
        findings(
            HealthWatch(num_steps=1000, batch_size_global=rows),
            [embedding_health(some, some)] * 3,
            dim=columns,
        )
        for some in (all_of_it.double(), part)
    ]
    kinds = [[text.split(":")[0] for text in texts[-1]] for texts in told]
    assert kinds[0] == kinds[1] == ([] if kind == "healthy" else ["collapse"])
    assert math.isclose(effective_rank(all_of_it.double()), effective_rank(part), rel_tol=0.15, abs_tol=0.5)


def test_columns_are_chosen_alike_each_time():
    embeddings = torch.arange(5000.0).expand(2, -1)
    assert torch.equal(watched_part(embeddings), watched_part(embeddings + 0.0))
    assert len(set(watched_part(embeddings)[0].tolist())) == MAX_COLUMNS


def test_a_bad_line_between_good_ones_is_not_told():
    bad, good = {"queue_spread": 0.01}, {"queue_spread": 0.9}
    assert not any(findings(HealthWatch(num_steps=100, batch_size_global=64), [bad, bad, good, bad, bad]))


def test_a_loss_at_chance_is_told_once_the_warm_up_is_over():
    told = findings(
        HealthWatch(num_steps=1000, batch_size_global=64), 14 * [{"loss": 4.84}], dim=16, chance_loss=4.85
    )
    assert not any(told[:12])  # steps up to 100 do not count, then three lines must agree
    assert told[12] == [
        "no learning: the loss 4.840 is stuck at its chance value 4.850, since step 110; "
        "another learning rate or milder crops usually help"
    ]


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ({"assignment_information": 1e-5}, "collapse of assignments"),
        ({"assignment_information": 0.4, "outputs_in_use": 1.8}, "collapse of assignments"),
        ({"queue_spread": 0.001}, "dead queue"),
        ({"teacher_distance": 0.0}, "idle teacher"),
        ({"gradient_norm": 1e-9}, "vanishing gradient"),
    ],
)
def test_each_number_that_is_wrong_has_its_line(numbers, kind):
    (told,) = findings(HealthWatch(num_steps=1000, batch_size_global=64), 3 * [numbers])[2:]
    assert len(told) == 1 and told[0].startswith(kind + ": ")


def test_a_gradient_a_hundred_times_the_usual_is_told():
    records = [{"gradient_norm": 1.0 + 0.1 * (i % 3)} for i in range(20)] + 3 * [{"gradient_norm": 300.0}]
    told = findings(HealthWatch(num_steps=1000, batch_size_global=64), records)
    assert not any(told[:-1])
    assert "exploding gradient: its norm 300 is 273 times the usual 1.1, since step 210" in told[-1][0]


def test_assignment_information_is_that_of_the_formula():
    certain, same = torch.eye(4).double(), torch.full((4, 4), 0.25).double()
    assert math.isclose(float(assignment_information(certain)), math.log(4), rel_tol=1e-12)
    assert abs(float(assignment_information(same))) < 1e-12
    assert math.isclose(float(outputs_in_use(certain)), 4, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("trained", "untrained", "told"),
    [(1.1, 12.3, True), (3.9, 7.9, True), (3.9, 5.0, False), (1.1, 1.2, False), (9, 90, False)],
)
def test_features_on_one_line_are_told_unless_they_were_so_from_the_start(trained, untrained, told):
    finding = fallen_rank(trained, untrained)
    assert (finding is not None) == told
    if finding is not None:
        assert f"RankMe {trained:.1f}, and {untrained:.1f} before training" in finding.text
