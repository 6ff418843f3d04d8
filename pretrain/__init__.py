"""Learn an image encoder from images without labels.
The functions below are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from cluster.registry import imported_later

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
    __getattr__, __dir__ = imported_later(
        __name__,
        __all__,
        "pretrain.api",
        load_encoder="pretrain.encoders",
        RunStopped="cluster.errors",
        UserError="cluster.errors",
    )
