"""What a pipeline does next: tables of the pure functions."""

import itertools
import random

import pytest

from cluster.errors import UserError
from cluster.jobs.job import FAILED, PENDING, RUNNING, STOPPED, SUCCEEDED, JobState
from cluster.jobs.pipeline.plan import (
    Next,
    Record,
    Status,
    all_above,
    in_order,
    left_out,
    ready,
    resumed,
    verdict,
)

DIAMOND = {"d": ("b", "c"), "b": ("a",), "c": ("a",), "a": (), "e": ()}
W, R, D, F, L = Status.WAITING, Status.RUNNING, Status.DONE, Status.FAILED, Status.LEFT_OUT


def test_order_respects_after_and_else_the_file():
    assert in_order({"x": (), "y": (), "z": ()}) == ["x", "y", "z"]
    assert in_order(DIAMOND) == ["a", "b", "c", "d", "e"]
    generator = random.Random(0)
    for _ in range(50):  # any graph without rings
        names = [f"s{number}" for number in range(generator.randrange(1, 9))]
        after = {
            name: tuple(other for other in names[:index] if generator.random() < 0.4)
            for index, name in enumerate(names)
        }
        shuffled = dict(sorted(after.items(), key=lambda _: generator.random()))
        order = in_order(shuffled)
        assert sorted(order) == sorted(names)
        assert all(
            order.index(other) < order.index(name) for name, before in after.items() for other in before
        )
    assert all_above(DIAMOND) == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}, "e": set()}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"a": ("a",)}, "a -> a"),
        ({"a": ("b",), "b": ("c",), "c": ("a",)}, "wait for each other"),
        (
            {"pretrain": (), "x": ("pretrian",)},
            r"'pretrian'; did you mean 'pretrain'\? \(known: pretrain, x\)",
        ),
    ],
)
def test_rings_and_unknown_names_are_refused(after, message):
    with pytest.raises(UserError, match=message):
        in_order(after)


@pytest.mark.parametrize(
    ("status", "starts", "blamed"),
    [
        ("WWWWW", ["a", "e"], {}),
        ("RWWWW", ["e"], {}),
        ("DWWWD", ["b", "c"], {}),  # side by side
        ("DRDWD", [], {}),
        ("DDDWD", ["d"], {}),
        ("DFWWD", ["c"], {"d": "b"}),  # a failed stage does not stop its sibling
        ("DFDWD", [], {"d": "b"}),
        ("FWWWW", ["e"], {"b": "a", "c": "a", "d": "a"}),
        ("DDDDD", [], {}),
        ("DFRWR", [], {"d": "b"}),
    ],
)
def test_what_starts_and_what_never_can(status, starts, blamed):
    letters = {"W": W, "R": R, "D": D, "F": F}
    now = {name: letters[letter] for name, letter in zip("abcde", status, strict=True)}
    assert ready(DIAMOND, now) == starts
    assert left_out(DIAMOND, now) == blamed


def job(status, code=None):
    return JobState("x", status, "true", "first\nsecond", code)


def record(status, *, command=("run",), made_from=None):
    return Record(status, 1, "x", command, made_from or {"a": 1})


@pytest.mark.parametrize(
    ("noted", "at_work", "out_is_there", "expected"),
    [
        (None, None, False, Next.START),
        (record(D), None, True, Next.NOTHING),
        (record(D), None, False, Next.START),  # somebody removed it
        (
            record(D, command=("other",)),
            None,
            True,
            Next.START,
        ),  # the command knows whether it may continue there
        (record(D, made_from={"a": 2}), None, True, Next.REFUSE_OLD),
        (record(D, made_from={"a": 2}), None, False, Next.START),
        (record(F), None, True, Next.START),
        (record(R), job(RUNNING), True, Next.ATTACH),
        (record(R), job(PENDING), False, Next.ATTACH),
        (record(R), job(SUCCEEDED, 0), True, Next.COLLECT),  # it ended while no driver looked
        (record(R), job(FAILED, 7), True, Next.COLLECT),
        (
            record(R),
            None,
            True,
            Next.START,
        ),  # the cluster is another one, or the driver died before it submitted
        (record(R, command=("other",)), job(RUNNING), True, Next.REFUSE_OTHER),
        (record(R, command=("other",)), job(FAILED, 2), True, Next.START),
    ],
)
def test_what_a_later_driver_does(noted, at_work, out_is_there, expected):
    found = resumed(noted, command=["run"], made_from={"a": 1}, job=at_work, out_is_there=out_is_there)
    assert found == expected


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (job(SUCCEEDED, 0), None),
        (job(FAILED, 1), False),  # a command that ended by itself is not repeated
        (job(FAILED, 2), False),
        (job(FAILED, 3), False),
        (job(STOPPED, -15), False),  # by somebody's will
        (job(FAILED, 130), True),  # it was interrupted and would continue
        (job(FAILED, -9), True),
        (job(FAILED, 137), True),
        (job(FAILED, None), True),  # its node died
        (None, True),
    ],
)
def test_what_a_job_came_to(ended, again):
    for retries_left in (2, 0):
        status, reason = verdict(ended, retries_left=retries_left)
        if again is None:
            assert (status, reason) == (D, "")
        else:
            assert status == (W if again and retries_left else F)
            assert reason
            assert "\n" not in reason


def test_every_order_of_ends_leads_to_the_end():
    # whatever ends in whatever way, the loop of `ready` and `left_out` comes to rest with no stage forgotten
    for fates in itertools.product([D, F], repeat=5):
        fate = dict(zip("abcde", fates, strict=True))
        status = dict.fromkeys(DIAMOND, W)
        while names := ready(DIAMOND, status):
            for name in names:
                status[name] = fate[name]
        for name in left_out(DIAMOND, status):
            status[name] = L
        assert W not in status.values()
        assert all(
            status[name] == L for name in DIAMOND if any(status[other] in (F, L) for other in DIAMOND[name])
        )
