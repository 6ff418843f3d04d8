"""The loop on a toy problem: unsound gradients and scores, bad rows, memory that does not suffice."""

import json
import math

import pytest
import torch

from cluster.errors import RunStopped, UserError
from cluster.training.rank_context import local_context
from pretrain.training import checkpoints
from pretrain.training.contract import TrainingBatch
from pretrain.training.loop import train
from pretrain.training.optimizers import Rates
from pretrain.training.plan import Evaluating, Plan
from pretrain.training.run_folder import RunFolder
from pretrain.training.settings import TrainingSettings
from tests.pretrain.toy import Toy, ToyBatches, assert_same_weights, run


def test_an_unsound_loss_never_moves_the_optimizer(tmp_path):
    module = Toy()
    module.poison_at = 9
    with pytest.raises(RunStopped, match=r"step 9: the loss \(nan\).*the parameters were not changed"):
        run(str(tmp_path / "run"), module=module)
    reference, *_ = run(str(tmp_path / "reference"), steps=9)
    assert_same_weights(reference, module)


def test_an_unsound_step_can_be_skipped(tmp_path):
    module = Toy()
    module.poison_at = 9
    _, outcome, records = run(str(tmp_path / "run"), module=module, on_nonfinite="skip")
    assert outcome.progress.skipped_steps == 1
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert sum(record.get("kind") == "warning" for record in records) == 1


def test_a_step_that_does_not_fit_into_memory_is_the_users_to_mend(tmp_path):
    class Large(Toy):
        def forward(self, inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    with pytest.raises(
        UserError,
        match=r"a step of 8 images on each of 1 workers .*Tried to allocate 20.*"
        r"activation_checkpointing.*batch_size_global",
    ):
        run(str(tmp_path / "run"), module=Large())
    with pytest.raises(UserError, match="does not fit") as told:
        run(str(tmp_path / "other"), module=Large(), activation_checkpointing=True)
    assert "activation_checkpointing" not in str(told.value)  # it is on already


def test_an_evaluation_that_does_not_fit_into_memory_is_not_taken_for_a_step(tmp_path):
    def evaluate(step, last):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    with pytest.raises(UserError, match=r"evaluation after step 5 .*Tried to allocate 20.*knn.linear=false"):
        run(str(tmp_path / "run"), evaluating=Evaluating(function=evaluate, every_steps=5))


class Blinded(Toy):
    """Its embeddings, logs and loss are not finite at some steps."""

    def forward(self, inputs):
        output = super().forward(inputs)
        bad = math.nan if 9 <= int(self.seen) < 12 else 1.0
        embeddings = self.layers[0](inputs).detach() * bad
        return output._replace(
            loss=output.loss * bad,
            embeddings=(embeddings, embeddings),
            logs={"twice": output.loss.detach() * bad},
        )


@pytest.mark.parametrize("log_every_steps", [1, 3])
def test_skipped_steps_are_logged_ones_too(tmp_path, log_every_steps):
    url = str(tmp_path / "run")
    options = {"on_nonfinite": "skip", "log_every_steps": log_every_steps, "checkpoint_every_steps": 10}
    _, outcome, _ = run(url, module=Blinded(), **options)
    assert outcome.progress.skipped_steps == 3 and checkpoints.load_newest(url).progress.step == 30
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and [json.loads(line)["step"] for line in text.splitlines()][-1] == 30


@pytest.mark.parametrize("scores", [[math.nan, 0.9, 0.7], [math.nan] * 3, [0.5, math.inf, 0.9]])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path, scores):
    kept = []
    _, outcome, records = run(
        str(tmp_path / "run"),
        evaluating=Evaluating(
            lambda step, last: {"accuracy": scores[step // 10 - 1]}, every_steps=10, best_metric="accuracy",
            keep_best=kept.append,
        ),
    )  # fmt: skip
    progress = outcome.progress
    assert kept and kept[-1] == progress.best_step  # there always is a model
    finite = [score for score in scores if math.isfinite(score)]
    assert progress.best_score == max(finite, default=None)
    if finite:
        assert scores[progress.best_step // 10 - 1] == max(finite)
    assert checkpoints.load_newest(str(tmp_path / "run")).progress.step == 30
    assert any("accuracy is" in record.get("text", "") for record in records)


def test_bad_rows_are_counted_and_too_many_stop_the_run(tmp_path):
    _, outcome, _ = run(str(tmp_path / "run"))
    assert outcome.progress.bad_row_count == 1
    assert outcome.progress.bad_rows == {"file: row group 0, row 3": "truncated"}

    class Rotten(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            return TrainingBatch(batch.inputs, {f"row {self.position + i}": "empty" for i in range(4)})

    with pytest.raises(
        RunStopped, match=r"12 of 24 rows could not be used, more than data.max_bad_fraction=0.05"
    ):
        module = Toy()
        with local_context() as context:
            training = TrainingSettings(batch_size_global=8)
            plan = Plan(str(tmp_path / "rotten"), training, 30, 10, lambda step: Rates(0.1, 0.1, 0.0))
            train(
                module,
                torch.optim.SGD(module.parameters()),
                plan,
                context=context,
                run=None,
                batches_from=Rotten,
            )


def test_bad_rows_that_lie_together_do_not_stop_a_run_as_long_as_the_share_holds(tmp_path):
    class Clustered(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            bad = {f"f.parquet: row group 0, row {self.position + i}": "empty" for i in range(8)}
            return TrainingBatch(batch.inputs, bad if self.position % 4000 in range(9, 25) else {})

    def trained(max_bad_fraction, url):
        module, records = Toy(), []
        with local_context(records.append) as context:
            folder = RunFolder(str(url))
            try:
                plan = Plan(
                    str(url), TrainingSettings(batch_size_global=8), 30, 500,
                    lambda step: Rates(0.01, 0.1, 0.0),
                    max_bad_fraction=max_bad_fraction,
                )  # fmt: skip
                train(
                    module,
                    torch.optim.SGD(module.parameters()),
                    plan,
                    context=context,
                    run=folder,
                    batches_from=Clustered,
                )
            finally:
                folder.close()
        return [record["text"] for record in records if record.get("kind") == "warning"]

    (warning,) = trained(0.01, tmp_path / "run")  # 16 of the first 24, and of 4,000
    assert "16 of 24 rows could not be used, more than data.max_bad_fraction=0.01" in warning
    with pytest.raises(RunStopped, match="16 of 24 rows could not be used"):
        trained(0.002, tmp_path / "stopped")
    for name in ("run", "stopped"):
        assert len((tmp_path / name / "bad_rows.jsonl").read_text().splitlines()) == 16
