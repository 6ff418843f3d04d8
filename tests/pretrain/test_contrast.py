"""The losses that wait for nothing are lightly's to the last bit, gradients included."""

import pytest
import torch
from lightly.loss import DCLLoss, NTXentLoss, VICRegLoss

from pretrain.methods import vicreg
from pretrain.methods.contrast import DecoupledNTXent, NTXent, off_diagonal, without_own
from pretrain.methods.host_numbers import HostNumber


def embeddings(seed=0, rows=24, columns=16):
    torch.manual_seed(seed)
    return [torch.randn(rows, columns, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (lambda: NTXent(0.2, gather_distributed=False), lambda: NTXentLoss(0.2)),
        (lambda: NTXent(0.2, queue=(64, 16), gather_distributed=False),
         lambda: NTXentLoss(0.2, memory_bank_size=(64, 16))),
        (lambda: DecoupledNTXent(0.2), lambda: DCLLoss(0.2)),
        (vicreg._Loss, VICRegLoss),
    ],
    ids=["ntxent", "ntxent with queue", "decoupled", "vicreg"],
)  # fmt: skip
def test_equal_to_lightlys_bit_for_bit(mine, theirs):
    results = []
    for make in (mine, theirs):
        torch.manual_seed(1)
        loss = make()
        values = []
        for step in range(5):  # three steps fill the queue
            pair = embeddings(step)
            value = loss(*pair)
            value.backward()
            values += [value.detach(), *(one.grad for one in pair)]
        # of a queue of no size lightly leaves the pointer as memory that was never written
        buffers = [buffer for buffer in loss.buffers() if loss.memory_bank.size[0]]
        results.append([*values, *buffers])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("first", [0, 3, 6])
def test_the_own_column_is_left_out(first):
    matrix = torch.arange(27.0).view(3, 9)
    wanted = [
        [x for column, x in enumerate(row) if column != first + i] for i, row in enumerate(matrix.tolist())
    ]
    assert without_own(matrix, first).tolist() == wanted
    assert off_diagonal(torch.arange(9.0).view(3, 3)).tolist() == [1, 2, 3, 5, 6, 7]
    assert without_own(torch.ones(1, 1)).shape == (1, 0)


def test_a_number_on_the_host_follows_its_buffer():
    module, reads = torch.nn.Module(), []
    module.register_buffer("count", torch.zeros(()))
    number = HostNumber(module, "count", lambda tensor: reads.append(1) or int(tensor))
    assert number.get() == 0 and number.get() == 0 and len(reads) == 1
    number.set(7)
    assert number.get() == 7 and int(module.count) == 7 and len(reads) == 1
    module.load_state_dict({"count": torch.tensor(3.0)})
    assert number.get() == 3 and len(reads) == 2
    module.double()
    assert number.get() == 3
    module.count.fill_(5)
    assert number.get() == 5
