"""Learn an image encoder from images without labels.
The functions below are imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "Embedded",
    "Imported",
    "Pretrained",
    "RunStopped",
    "UserError",
    "check",
    "embed",
    "import_images",
    "load_encoder",
    "pretrain",
]

if TYPE_CHECKING:
    from cluster.errors import RunStopped, UserError
    from pretrain.api import Embedded, Imported, Pretrained, check, embed, import_images, pretrain
    from pretrain.encoders import load_encoder
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        from cluster.process import set_up_process

        set_up_process()  # before torch is loaded
        homes = {
            "load_encoder": "pretrain.encoders",
            "RunStopped": "cluster.errors",
            "UserError": "cluster.errors",
        }
        return getattr(import_module(homes.get(name, "pretrain.api")), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
