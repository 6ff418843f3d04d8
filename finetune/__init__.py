"""Turn an encoder into a task model. The functions below are imported when they are first asked for."""

from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        from cluster.process import set_up_process

        set_up_process()  # before torch is loaded
        homes = {
            "load_model": "finetune.model",
            "RunStopped": "cluster.errors",
            "UserError": "cluster.errors",
        }
        return getattr(import_module(homes.get(name, "finetune.api")), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
