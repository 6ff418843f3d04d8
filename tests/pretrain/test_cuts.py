"""Row groups on cuts between streams are fetched once for neighbours, and not kept for ever."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pretrain.data.reading import chunks
from pretrain.data.reading.chunks import Chunks
from pretrain.data.reading.cuts import CutGroups, OpenGroup

CONTENT = bytes(range(256)) * 40


class Store:
    """Counts what is fetched; nothing arrives before `future` is given a result."""

    def __init__(self):
        self.futures, self.stopped = [], []

    def fetch(self, stopped):
        self.futures.append(Future())
        self.stopped.append(stopped)
        return OpenGroup(self.futures[-1])


def ask(groups, store, group, num_rows, stopped=lambda: False):
    return groups.opened(
        group, num_rows=num_rows, rows_of_group=64, num_bytes=100, stopped=stopped, fetch=store.fetch
    )


def test_streams_share_a_group_until_all_its_rows_were_asked_for():
    groups, store = CutGroups(), Store()
    assert len({id(ask(groups, store, 5, num_rows)) for num_rows in (20, 30, 14)}) == 1
    ask(groups, store, 5, 20)  # in the next epoch
    assert len(store.futures) == 2


def test_a_group_is_decoded_once_and_what_was_sent_is_let_go():
    group, decodings = OpenGroup(Future()), []
    for _ in range(3):
        assert group.decoded(lambda: decodings.append(1) or ["rows"]) == ["rows"]
    assert decodings == [1] and group.chunks is None and not group.has_failed()


def test_the_oldest_goes_when_there_is_no_room():
    groups, store = CutGroups(kept_bytes=200), Store()
    for group in (1, 2, 1, 3, 1):  # 2 is the one not used for longest
        ask(groups, store, group, 10)
    assert len(store.futures) == 3
    ask(groups, store, 2, 10)
    assert len(store.futures) == 4
    small = CutGroups(kept_bytes=50)
    for _ in range(2):
        ask(small, store, 1, 10)
    assert len(store.futures) == 6


def test_a_failure_is_not_kept():
    groups, store = CutGroups(), Store()
    failed = [ask(groups, store, 1, 10), ask(groups, store, 1, 10)]
    failed[0].chunks.set_exception(OSError("away"))
    assert failed[1] is failed[0] and ask(groups, store, 1, 10).chunks is store.futures[1]
    store.futures[1].cancel()
    assert ask(groups, store, 1, 10).chunks is store.futures[2]


def test_fetching_goes_on_while_anybody_waits():
    groups, store, gone = CutGroups(), Store(), [False, False]
    for user in (0, 1):
        ask(groups, store, 1, 10, lambda user=user: gone[user])
    (stopped,) = store.stopped
    gone[0] = True
    assert not stopped()
    gone[1] = True
    assert stopped()


def test_readers_of_the_same_chunks_do_not_disturb_each_other(monkeypatch):
    asked = []

    def read_range(start, stop):
        asked.append((start, stop))
        return CONTENT[start:stop]

    with ThreadPoolExecutor(4) as pool:
        whole = Chunks(len(CONTENT), [(100, 5000), (6000, 9000)], read_range, pool)
        files = [whole.file(), whole.file()]
        for position in (200, 6500):
            for file in files:
                file.seek(position)
                assert bytes(file.read(50)) == CONTENT[position : position + 50]
        assert asked == [(100, 9000)]
        asked.clear()
        monkeypatch.setattr(chunks, "WHOLE_GROUP_BYTES", 0)
        monkeypatch.setattr(chunks, "MIN_BLOCK_BYTES", 1000)
        blocks = Chunks(len(CONTENT), [(100, 5000)], read_range, pool)
        for _ in range(2):  # blocks that the first reader has passed are sent again to the second
            file = blocks.file()
            file.seek(100)
            assert b"".join(bytes(file.read(700)) for _ in range(7)) == CONTENT[100:5000]
        assert sorted(asked) == sorted(
            [(start, min(start + 1000, 5000)) for start in range(100, 5000, 1000)] * 2
        )


@pytest.mark.parametrize("megabytes", [9, 10, 30, 200])
@pytest.mark.parametrize("is_shared", [False, True])
def test_large_row_groups_take_few_requests_within_bounded_memory(megabytes, is_shared):
    size, labels = megabytes * 10**6, 200_000
    asked, held = [], []

    def read_range(start, stop):
        asked.append(stop - start)
        return bytes(stop - start)

    with ThreadPoolExecutor(1) as pool:
        opened = Chunks(
            size + labels, [(0, labels), (labels, labels + size)], read_range, pool, is_shared=is_shared
        )
        file, done = opened.file(), 0
        for start, stop in ((0, labels), (labels, labels + size)):
            file.seek(start)
            while file.tell() < stop:
                done += len(file.read(2**18))
                held.append(
                    sum(len(block.result()) for blocks in file._blocks for block in blocks._at.values())
                )
        assert done == size + labels == sum(asked)
    assert max(held) <= (4 * 2**19 + labels if is_shared else chunks.WHOLE_GROUP_BYTES + labels)
    num = {9: 5, 10: 5, 30: 15, 200: 96}[megabytes] + 1
    assert len(asked) == (-(-size // 2**19) + 1 if is_shared else num)
    assert asked.count(labels) == 1  # a small column is one request
