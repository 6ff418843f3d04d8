"""Turn an encoder into a task model. The functions below are imported when they are first asked for."""

from typing import TYPE_CHECKING

from cluster.registry import imported_later

__all__ = [
    "Evaluated",
    "Finetuned",
    "Predictions",
    "RunStopped",
    "UserError",
    "evaluate",
    "finetune",
    "load_model",
    "predict",
]

if TYPE_CHECKING:
    from cluster.errors import RunStopped, UserError
    from finetune.api import Evaluated, Finetuned, Predictions, evaluate, finetune, predict
    from finetune.model import load_model
else:
    __getattr__, __dir__ = imported_later(
        __name__,
        __all__,
        "finetune.api",
        load_model="finetune.model",
        RunStopped="cluster.errors",
        UserError="cluster.errors",
    )
