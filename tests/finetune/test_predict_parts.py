"""Parts of `predict` that need no model: events of alarms, scores of records, tracks, names of files."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from cluster.errors import UserError
from finetune.predicting.alarms import Alarms, Rule, clock, event_record, score_of
from finetune.predicting.following import stem_of
from finetune.predicting.tracking import Tracker, mot_lines


def frame(index, score, seconds=None, source="video"):
    return {"source": source, "index": index, "seconds": seconds, "error": None, "scores": {"x": score}}


@pytest.mark.parametrize(
    ("scores", "gap", "wanted"),
    [
        ([0.9, 0.9, 0.1, 0.9], 1.0, [(0, 3)]),  # one frame of a second's gap is bridged
        ([0.9, 0.9, 0.1, 0.9], 0.0, [(0, 0), (1, 1), (3, 3)]),
        ([0.1, 0.2, 0.3], 1.0, []),
        ([0.9, 0.1, 0.1, 0.1, 0.9], 1.0, [(0, 0), (4, 4)]),
    ],
)
def test_neighbouring_frames_make_an_event(scores, gap, wanted):
    alarms = Alarms(Rule("x", 0.5), gap_seconds=gap)
    events = [alarms.look(frame(i, score, i * 0.5))[1] for i, score in enumerate(scores)] + [alarms.close()]
    assert [(event.first_index, event.last_index) for event in events if event is not None] == wanted


def test_images_without_a_time_are_neighbours_by_their_number():
    alarms = Alarms(Rule("x", 0.5), gap_frames=1)
    events = [alarms.look(frame(i, 0.9, source=f"{i}.jpg"))[1] for i in (0, 2, 5)] + [alarms.close()]
    found = [event_record(event) for event in events if event is not None]
    assert [(event["first_index"], event["last_index"], event["start"]) for event in found] == [
        (0, 2, None),
        (5, 5, None),
    ]


def test_scores_of_every_kind_of_record():
    assert score_of({"scores": {"cat": 0.3}}, "cat") == 0.3
    assert score_of({"labels": ["cat", "dog", "cat"], "scores": [0.2, 0.9, 0.5]}, "cat") == 0.5
    assert score_of({"keywords": [{"text": "cat", "score": 0.7}]}, "cat") == 0.7
    assert score_of({"labels": [], "scores": []}, "cat") == 0.0
    assert clock(3723.0456) == "01:02:03.046"
    with pytest.raises(UserError, match="write CLASS>FRACTION"):
        Rule.parse("cat=0.5")
    assert Rule.parse("a > b>0.25") == Rule("a > b", 0.25)


def distances(truth, ours):
    """1 - IoU, NaN where boxes are too far apart to be the same; motmetrics' own needs an older NumPy."""
    iou = box_iou(torch.tensor(truth).float().view(-1, 4), torch.tensor(ours).float().view(-1, 4)).numpy()
    return np.where(iou >= 0.5, 1 - iou, np.nan)


def test_crossing_boxes_keep_their_tracks():
    import motmetrics

    pytest.importorskip("trackers", reason="OpenCV in it needs libGL", exc_type=ImportError)
    tracker = Tracker(["a"], frame_rate=10, min_score=0.5)
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    text = ""
    for step in range(40):
        truth = [(10 + 4 * step, 10, 50 + 4 * step, 60), (200 - 4 * step, 80, 240 - 4 * step, 130)]
        tracked = tracker.follow(truth, ["a", "a"], [0.9, 0.8])
        text += mot_lines(step, tracked)
        accumulator.update([0, 1], [t.track for t in tracked], distances(truth, [t.box for t in tracked]))
    summary = motmetrics.metrics.create().compute(accumulator, metrics=["mota", "num_switches"])
    assert float(summary["mota"].iloc[0]) > 0.95 and int(summary["num_switches"].iloc[0]) == 0
    first = text.splitlines()[0].split(",")  # a track is told from its second frame on
    assert first[0] == "2" and len(first) == 10 and [float(x) for x in first[2:6]] == [14, 10, 40, 50]


def test_file_names_hold_nothing_that_a_shell_or_page_reads():
    assert stem_of("s3://b/a <b>/x;rm -rf.jpg", 3) == "000003-x_rm_-rf"
    assert stem_of("../../etc/passwd") == "passwd"
