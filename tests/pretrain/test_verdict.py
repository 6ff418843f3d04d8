"""The two sentences at the top of a report, over a table of runs."""

import re

import pytest

from pretrain.reporting.folder import History, RunRecord
from pretrain.reporting.verdict import pretraining_verdict

SETTINGS = {"training": {"steps": 100, "batch_size_global": 64}, "optimizer": {"learning_rate": 0.01}}
COLLAPSE = (
    "collapse: all images get nearly the same embedding (spread 0.004 of 1, effective rank 1.1 of "
    "64), since step 20; a"
)


def rows(steps=10, **last):
    made = [
        {"step": step, "loss": 5.0 - 0.1 * step, "spread": 0.97, "effective_rank": 30.0}
        for step in range(1, steps + 1)
    ]
    made[-1] |= last
    return made


def run(status, *, lines=None, **more):
    return RunRecord(
        "runs/first", SETTINGS, History(rows() if lines is None else lines), status=status, **more
    )


TABLE = {
    "finished, with kNN": (
        run("finished", lines=rows(100, knn_accuracy=0.31)), 0.1,
        ("good", "finished", r"31\.0 % of unseen .* correctly, .* reaches 10\.0 %\.",
         r"well spread \(0\.97.* 30 dimensions"),
    ),
    "finished, with kNN before and after": (
        run("finished", lines=rows(100, knn_accuracy=0.31, knn_accuracy_untrained=0.24)), 0.1,
        ("good", "finished",
         r"31\.0 % .* the weights it started from reach 24\.0 % and always .* reaches 10\.0 %\.", r"0\.97"),
    ),
    "finished, no better than before": (
        run("finished", lines=rows(100, knn_accuracy=0.24, knn_accuracy_untrained=0.24)), None,
        ("warn", "finished, little learnt", r"learnt little .* the weights it started from reach 24\.0 %",
         r"0\.97"),
    ),
    "finished at chance": (
        run("finished", lines=rows(100, knn_accuracy=0.105)), 0.1,
        ("warn", "finished, little learnt", r"learnt little .* 10\.5 %", r"0\.97"),
    ),
    "finished without labels": (
        run("finished", lines=rows(40)), None,
        ("good", "finished", r"finished, and the loss fell from 4\.9 to 1", r"0\.97"),
    ),
    "finished, crowded": (
        run("finished", lines=rows(40, spread=0.2)), None,
        ("warn", "finished", "finished", r"close together \(0\.20"),
    ),
    "finished, unhealthy": (
        run("finished",
            lines=rows(findings={"no learning": "no learning: the loss 4.1 is stuck at its chance "
                                                        "value"})), None,
        ("warn", "finished, unhealthy", r"something is wrong: no learning: the loss 4\.1", r"0\.97"),
    ),
    "collapsed and finished": (
        run("finished", lines=rows(100, findings={"collapse": COLLAPSE})), 0.1,
        ("bad", "collapsed", r"collapsed but trained to the end: all images .* 0\.004 of 1", r"0\.01.* 64"),
    ),
    "collapsed and stopped": (
        run("stopped", lines=rows(30, findings={"collapse": COLLAPSE}),
            result={"reason": f"step 30: {COLLAPSE}"}), None,
        ("bad", "collapsed", r"collapsed and ended at step 30 of 100 \(30 %\)", "should not be used"),
    ),
    "collapsed, no finding was logged": (
        run("finished", lines=rows(100, spread=0.01)), None,
        ("bad", "collapsed", r"spread 0\.01 of 1", "0.01"),
    ),
    "collapsed and killed": (
        run("killed", lines=rows(30, findings={"collapse": COLLAPSE})), None,
        ("bad", "collapsed", "ended at step 30", ""),
    ),
    "killed": (
        run("killed", lines=rows(30), silent_seconds=130.0, checkpoint_step=25), None,
        ("bad", "killed", r"killed at step 30 of 100 \(30 %\).* 2:10 min",
         r"4\.9 to 2; .* checkpoint of step 25\."),
    ),
    "killed at once": (
        run("killed", lines=[]), None, ("bad", "killed", "killed at step 0 of 100",
                                        "no checkpoint.* from scratch at step 0"),
    ),
    "running": (
        run("running", lines=rows(30, knn_accuracy=0.2)), 0.1,
        ("open", "running", r"not finished: it is at step 30 of 100", r"So far the loss fell .* 20\.0 %"),
    ),
    "unfinished, of unknown "
    "fate": (run("unfinished"), None, ("open", "unfinished", "not finished", "So far the loss fell")),
    "unfinished, empty": (
        run("unfinished", lines=[]), None, ("open", "unfinished", "not finished",
                                            r"No number .* \(0 lines\)"),
    ),
    "interrupted": (
        run("interrupted", checkpoint_step=10, result={"step": 11}), None,
        ("warn", "interrupted", r"interrupted at step 11 of 100",
         "continues from the checkpoint of step 10"),
    ),
    "stopped": (
        run("stopped", result={"reason": "step 10: the loss (nan) is not finite"}), None,
        ("bad", "stopped", r"was stopped by a rule at step 10 .*\(nan\) is not finite", "4.9"),
    ),
    "failed": (
        run("failed",
            result={"reason": "worker died\nTraceback:\n  File x\nOSError: [Errno 28] No space left"}), None,
        ("bad", "failed", r"failed at step 10 .* No space left\.",
         "once that is fixed .*from scratch at step 0"),
    ),
    "a step beyond the "
    "plan": (run("killed", lines=rows(7), result={}), None, ("bad", "killed", r"\(7 %\)", "")),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_verdicts(case):
    record, chance, (tone, word, first, second) = TABLE[case]
    verdict = pretraining_verdict(record, chance=chance)
    assert (verdict.tone, verdict.word) == (tone, word)
    assert re.search(first, verdict.first), verdict.first
    assert re.search(second, verdict.second), verdict.second
    for sentence in (verdict.first, verdict.second):
        assert sentence[0].isupper() and sentence.endswith(".") and not sentence.endswith("..")
        assert re.search(r"\d", sentence), f"no number behind: {sentence}"


def test_the_number_of_steps_follows_from_epochs():
    record = RunRecord("x", {"training": {"steps": 0, "epochs": 4.0}}, History([{"step": 50, "epoch": 2.0}]))
    assert record.num_steps == 100
