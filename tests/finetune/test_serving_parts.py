"""Parts of serving that need no server: files of a form, records that are cut short, the token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.calling import settings_given
from cluster.errors import UserError
from finetune.predicting.records import record_of
from finetune.serving.command import is_loopback, parser, token_of
from finetune.serving.multipart import files_of
from finetune.serving.served_model import shortened
from finetune.serving.settings import ServeSettings
from finetune.tasks.classification.predictor import Classification as Classified
from finetune.tasks.detection.predictor import Detections
from tests.finetune.asking import form


@given(st.lists(st.tuples(st.text("ab c.ü", min_size=1), st.binary()), max_size=4), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_any_files_come_out_of_a_form_as_they_went_in(files, most):
    body, kind = form(*files)
    assert files_of(kind, body, max_files=most) == files[: most + 1]


def test_records_are_cut_to_the_threshold_and_the_best():
    classes = record_of(Classified("b", 0.6, {"a": 0.3, "b": 0.6, "c": 0.1}, ["b"]))
    assert shortened(classes, None, 2)["scores"] == {"b": 0.6, "a": 0.3}
    assert shortened(classes, None, None) == classes
    boxes = record_of(Detections(np.arange(12).reshape(3, 4), ["a", "b", "c"], np.array([0.9, 0.5, 0.2])))
    assert shortened(boxes, 0.5, None)["labels"] == ["a", "b"]
    assert shortened(boxes, 0.1, 1)["boxes"] == [[0, 1, 2, 3]]
    assert shortened({"error": "truncated"}, 0.5, 1) == {"error": "truncated"}


def test_the_token_is_given_or_made_where_others_can_reach_the_server(tmp_path, monkeypatch):
    def token(*words):
        return token_of(settings_given(parser().parse_args(["model", *words]), ServeSettings))

    monkeypatch.delenv("FOVEA_SERVE_TOKEN", raising=False)
    assert token() == token("--host", "::1") == token("--host", "localhost") == (None, False)
    (first, made), (second, _) = token("--host", "0.0.0.0"), token("--host", "0.0.0.0")
    assert made and len(first) > 40 and first != second
    (tmp_path / "token").write_text("x" * 20 + "\n")
    assert token("--token-file", str(tmp_path / "token"), "--host", "0.0.0.0") == ("x" * 20, False)
    monkeypatch.setenv("FOVEA_SERVE_TOKEN", "y" * 20)
    assert token() == ("y" * 20, False)
    for weak in ("", "short", "with a blank in its midst"):
        monkeypatch.setenv("FOVEA_SERVE_TOKEN", weak)
        with pytest.raises(UserError, match=f"has {len(weak)} characters"):
            token()
    assert not is_loopback("example.org") and not is_loopback("10.0.0.1") and is_loopback("127.1.2.3")
