"""Every method's loss against float64 pseudo-code of its paper, as plainly as it is written there."""

import math

import pytest
import torch

from pretrain.methods import METHODS
from pretrain.papers import PAPERS
from tests.pretrain.small_methods import BATCH, TEACHER_CHANNELS, make_inputs, make_method, make_views

pytestmark = pytest.mark.usefixtures("one_thread")


def heads(method, views, *names, encoder=None):
    """What a chain of heads makes of each view's pooled features."""
    outputs = []
    for features in method.features(views, encoder):
        for name in names:
            features = getattr(method, name)(features)
        outputs.append(features)
    return outputs


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def paper_simclr(method, views):
    z = unit(torch.stack(method.projector(torch.cat(method.features(views))).chunk(2), 1).flatten(0, 1))
    s, n, total = z @ z.T, len(z), 0.0
    for i in range(n):
        j = i ^ 1  # views 2k and 2k + 1 are of one image
        others = [k for k in range(n) if k != i and not (method._num_others == 2 and k == j)]
        t = method.criterion.temperature
        total -= s[i, j] / t - torch.stack([s[i, k] / t for k in others]).exp().sum().log()
    return total / n


def paper_moco(method, views):
    q = unit(heads(method, views[:1], "projector")[0])
    k = unit(heads(method, views[1:], "key_projector", encoder=method.key_encoder)[0])
    queue = method.criterion.memory_bank.bank
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / method.criterion.temperature
    return -logits.log_softmax(1)[:, 0].mean()


def paper_mocov3(method, views):
    q = [unit(x) for x in heads(method, views, "projector", "predictor")]
    k = [unit(x) for x in heads(method, views, "key_projector", encoder=method.key_encoder)]

    def ctr(q, k):
        logits = q @ k.T / method.temperature
        return 2 * method.temperature * -logits.log_softmax(1).diagonal().mean()

    return ctr(q[0], k[1]) + ctr(q[1], k[0])


def paper_byol(method, views):
    p = [unit(x) for x in heads(method, views, "projector", "predictor")]
    z = [unit(x) for x in heads(method, views, "target_projector", encoder=method.target_encoder)]
    return ((p[0] - z[1]) ** 2).sum(1).mean() + ((p[1] - z[0]) ** 2).sum(1).mean()


def paper_simsiam(method, views):
    z = heads(method, views, "projector")
    p = [method.predictor(x) for x in z]

    def d(p, z):
        return -(unit(p) * unit(z.detach())).sum(1).mean()

    return d(p[0], z[1]) / 2 + d(p[1], z[0]) / 2


def paper_barlow_twins(method, views):
    # the authors normalise by batch norm, which has an epsilon
    a, b = (
        (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in heads(method, views, "projector")
    )
    c = a.T @ b / len(a)
    on = ((c.diagonal() - 1) ** 2).sum()
    off = (c**2).sum() - (c.diagonal() ** 2).sum()
    return on + method.criterion.lambda_param * off


def paper_vicreg(method, views):
    a, b = heads(method, views, "projector")
    n, d = a.shape
    loss = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        loss = loss + 25 * torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (n - 1)
        loss = loss + ((covariance**2).sum() - (covariance.diagonal() ** 2).sum()) / d
    return loss


def paper_swav(method, views):
    scores = [unit(x) @ unit(method.prototypes.heads[0].weight).T for x in heads(method, views, "projector")]
    losses = []
    for s in range(2):
        q = (scores[s].detach() / 0.05).exp()
        for _ in range(3):
            q = q / q.sum(0, keepdim=True) / q.shape[1]  # prototypes get equal shares
            q = q / q.sum(1, keepdim=True) / q.shape[0]  # and so do images
        q = q * len(q)
        losses += [-(q * (x / 0.1).log_softmax(1)).sum(1).mean() for v, x in enumerate(scores) if v != s]
    return sum(losses) / len(losses)


def paper_dino(method, views):
    student = heads(method, views, "head")
    teacher = heads(method, views[:2], "teacher_head", encoder=method.teacher)
    losses = []
    for t, gt in enumerate(teacher):
        probability = ((gt - method.criterion.center[0]) / 0.04).softmax(1)
        losses += [
            -(probability * (gs / 0.1).log_softmax(1)).sum(1).mean()
            for s, gs in enumerate(student)
            if s != t
        ]
    return sum(losses) / len(losses)


def paper_densecl(method, views):
    maps = (
        method.maps(views[:1])[0].flatten(2).mT,
        method.maps(views[1:], method.key_encoder)[0].flatten(2).mT,
    )
    q, k = unit(method.projector(maps[0].mean(1))), unit(method.key_projector(maps[1].mean(1)))
    r, t = unit(method.dense_projector(maps[0])), unit(method.key_dense_projector(maps[1]))
    queue, dense_queue = method.criterion.memory_bank.bank, method.dense_criterion.memory_bank.bank

    def nce(query, positive, negatives):
        logits = torch.cat([(query @ positive)[None], negatives @ query]) / 0.2
        return -logits.log_softmax(0)[0]

    whole = torch.stack([nce(q[i], k[i], queue) for i in range(len(q))]).mean()
    dense = []
    for i in range(len(r)):
        similarity = unit(maps[0][i]) @ unit(maps[1][i]).T
        dense += [nce(r[i, s], t[i, int(similarity[s].argmax())], dense_queue) for s in range(r.shape[1])]
    return 0.5 * whole + 0.5 * torch.stack(dense).mean()


def paper_lejepa(method, views):
    z = torch.stack(heads(method, views, "projector"))
    invariance = ((z[:2].mean(0) - z) ** 2).mean()
    torch.manual_seed(int(method.steps))
    directions = torch.randn(z.shape[-1], 32, dtype=z.dtype)
    directions = directions / directions.norm(dim=0)
    t = torch.linspace(0, 3, 17, dtype=z.dtype)
    target = (-(t**2) / 2).exp()
    statistics = []
    for view in z:  # Epps-Pulley: weighted squared distance of the characteristic functions
        for along in (view @ directions).T:
            phase = along[:, None] * t
            error = ((phase.cos().mean(0) - target) ** 2 + phase.sin().mean(0) ** 2) * target
            statistics.append(2 * torch.trapezoid(error, t) * len(along))
    return 0.05 * torch.stack(statistics).mean() + 0.95 * invariance


def paper_distill(method, inputs):
    views, said = inputs
    knowledge, total = method.knowledge, 0.0
    target = unit((said.pooled[0].double() - knowledge.mean_D) @ knowledge.directions_DK)
    stored_maps = said.maps[0][0].double()
    pooled = [maps[-1].mean((2, 3)) for maps in method.pyramids(views, 2)]
    predicted = [unit(z) for z in method.predictor(torch.cat(pooled)).chunk(2)]
    for p in predicted:
        total += (1 - (p * target).sum(1)).mean() / 2
        total += 0.2 * -(p @ target.T / 0.07).log_softmax(1).diagonal().mean() / 2
    for v, maps in enumerate(method.pyramids(views, 2)):
        for predictor, level in zip(method.map_predictors, maps, strict=True):
            _, _, height, width = level.shape
            wanted = torch.zeros(BATCH, TEACHER_CHANNELS, height, width, dtype=torch.float64)
            for b, (left, top, right, bottom, mirrored) in enumerate(said.geometry_VB5[v].tolist()):
                for row in range(height):
                    for column in range(width):
                        # four points of a cell, read between the centres of the teacher's cells
                        for i in (0.25, 0.75):
                            for j in (0.25, 0.75):
                                y = top + (row + i) / height * (bottom - top)
                                across = (column + j) / width
                                x = left + (1 - across if mirrored else across) * (right - left)
                                wanted[b, :, row, column] += between(stored_maps[b], y, x) / 4
            apart = predictor(level) - wanted
            huber = torch.where(apart.abs() < 1, apart**2 / 2, apart.abs() - 0.5)
            total += 0.7 * huber.mean() / 4
    z = unit(torch.stack(method.projector(torch.cat(pooled)).chunk(2), 1).flatten(0, 1))
    s = z @ z.T / 0.2
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k not in (i, i ^ 1)]
        total -= 0.3 * (s[i, i ^ 1] - s[i, others].exp().sum().log()) / len(z)
    return total


def between(map_CHW, y, x):
    """Bilinear, y and x as shares of the sides; at the rim the outermost cell goes on."""
    cells = map_CHW.shape[1]
    y, x = (min(max(place * cells - 0.5, 0), cells - 1) for place in (y, x))
    value = 0.0
    for i in (int(y), min(int(y) + 1, cells - 1)):
        for j in (int(x), min(int(x) + 1, cells - 1)):
            value = value + map_CHW[:, i, j] * max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
    return value


@pytest.mark.parametrize("name", sorted(METHODS))
def test_loss_is_the_papers(name):
    method = make_method(name)
    inputs = make_inputs(method, name)
    wanted = globals()[f"paper_{name}"](method, inputs)
    assert float(method(inputs).loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_similarities_are_the_teachers():
    method = make_method(
        "distill", loss="similarity", batch_weight=0.0, map_weight=0.0, contrast_weight=0.0, queue_size=20
    )
    before = []
    for step in range(3):
        inputs = make_inputs(method, "distill", step)
        knowledge = method.knowledge
        target = unit((inputs.said.pooled[0].double() - knowledge.mean_D) @ knowledge.directions_DK)
        others = torch.cat([target, *before[::-1]])[: BATCH + 20]
        theirs, wanted = (target @ others.T / 0.04).softmax(1), 0.0
        for z in method.predictor(
            torch.cat([m[-1].mean((2, 3)) for m in method.pyramids(inputs.views, 1)])
        ).chunk(2):
            wanted -= (theirs * (unit(z) @ others.T / 0.2).log_softmax(1)).sum(1).mean() / 2
        assert float(method(inputs).loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
        before.append(target)


def test_mixing_is_of_rows_and_of_what_the_teacher_says_of_them_whatever_the_ranks():
    arguments = {"map_weight": 0.0, "contrast_weight": 0.0}
    plain, mixing = make_method("distill", **arguments), make_method("distill", mixing=0.5, **arguments)
    (views, said), (whole, taught) = (make_inputs(method, "distill") for method in (plain, mixing))
    for start in (0, BATCH // 2):  # a rank's share is mixed as it is in the whole batch
        part, told = make_inputs(mixing, "distill", rows=slice(start, start + BATCH // 2))
        for mine, all_rows in zip([*part, told.pooled[0]], [*whole, taught.pooled[0]], strict=True):
            assert torch.equal(mine, all_rows[start : start + BATCH // 2])
    changed = [row for row in range(BATCH) if not torch.equal(whole[0][row], views[0][row])]
    assert 0 < len(changed) < BATCH
    for row in changed:
        weights = [
            (values[row] - before[row]) / (before[row ^ 1] - before[row])
            for values, before in (
                (whole[0].flatten(1), views[0].flatten(1)),
                (taught.pooled[0].double(), said.pooled[0].double()),
            )
        ]
        share = float(weights[0].median())
        assert 0 < share <= 0.5
        for values in weights:
            assert float(values.median()) == pytest.approx(share, abs=1e-4)


def test_decoupled_simclr_leaves_the_positive_out():
    method, views = make_method("simclr", decoupled=True), make_views("simclr")
    output = method(views)
    assert float(output.loss.detach()) == pytest.approx(
        float(paper_simclr(method, views).detach()), rel=1e-6
    )
    assert output.chance_loss == pytest.approx(math.log(2 * BATCH - 2))


def test_every_method_has_its_papers_settings():
    assert PAPERS.keys() == METHODS.keys()
