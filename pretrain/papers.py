"""The settings of each method's paper: the defaults of a run that names the method and nothing else.

Plain data without torch, for the command line reads it before anything else. Learning rates are those of 256
images; they are scaled by the batch (`optimizer.scaling`). Weight decay is that of matrices and kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAPERS: dict[str, dict[str, dict[str, Any]]] = {
    "barlow_twins": {  # 2103.03230, section 2.2
        "optimizer": {"name": "lars", "learning_rate": 0.2, "weight_decay": 1.5e-6, "final_fraction": 0.001},
        "training": {"batch_size_global": 2048, "epochs": 1000.0, "warmup_epochs": 10.0},
    },
    "byol": {  # 2006.07733, section 3.3
        "optimizer": {"name": "lars", "learning_rate": 0.2, "weight_decay": 1.5e-6},
        "training": {"batch_size_global": 4096, "epochs": 1000.0, "warmup_epochs": 10.0},
    },
    "densecl": {  # 2011.09157, section 4.1
        "optimizer": {"name": "sgd", "learning_rate": 0.3, "weight_decay": 1e-4},
        "training": {"batch_size_global": 256, "epochs": 200.0, "warmup_epochs": 0.0},
    },
    "dino": {  # 2104.14294, section 3.2 and its code
        "optimizer": {
            "name": "adamw",
            "learning_rate": 5e-4,
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "final_fraction": 0.002,
        },
        "training": {
            "batch_size_global": 1024,
            "epochs": 100.0,
            "warmup_epochs": 10.0,
            "clip_gradient": 3.0,
        },
    },
    "distill": {  # no paper's: what tests/benchmarks/distilling.py found, with the usual decay of AdamW
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "scaling": "sqrt"},
        "training": {"batch_size_global": 1024, "epochs": 100.0, "warmup_epochs": 5.0},
    },
    "lejepa": {  # 2511.08544, section 6
        "optimizer": {"name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05, "final_fraction": 0.001},
        "training": {"batch_size_global": 256, "epochs": 100.0, "warmup_epochs": 10.0},
    },
    "moco": {  # 2003.04297, table 1, and 1911.05722, section 3.3
        "optimizer": {"name": "sgd", "learning_rate": 0.03, "weight_decay": 1e-4},
        "training": {"batch_size_global": 256, "epochs": 200.0, "warmup_epochs": 0.0},
    },
    "mocov3": {  # 2104.02057, section 4.3, for transformers
        "optimizer": {"name": "adamw", "learning_rate": 1.5e-4, "weight_decay": 0.1},
        "training": {"batch_size_global": 4096, "epochs": 300.0, "warmup_epochs": 40.0},
    },
    "simclr": {  # 2002.05709, section 2.2
        "optimizer": {"name": "lars", "learning_rate": 0.3, "weight_decay": 1e-6},
        "training": {"batch_size_global": 4096, "epochs": 100.0, "warmup_epochs": 10.0},
    },
    "simsiam": {  # 2011.10566, section 3
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "weight_decay": 1e-4},
        "training": {"batch_size_global": 512, "epochs": 100.0, "warmup_epochs": 0.0},
    },
    "swav": {  # 2006.09882, appendix A.1
        "optimizer": {"name": "lars", "learning_rate": 0.3, "weight_decay": 1e-6, "final_fraction": 0.001},
        "training": {"batch_size_global": 4096, "epochs": 800.0, "warmup_epochs": 10.0},
    },
    "vicreg": {  # 2105.04906, section 4.2
        "optimizer": {"name": "lars", "learning_rate": 0.2, "weight_decay": 1e-6, "final_fraction": 0.01},
        "training": {"batch_size_global": 2048, "epochs": 1000.0, "warmup_epochs": 10.0},
    },
}


# In place of LARS, which was made for residual networks with batch norm, for networks with layer norm: the
# values of MoCo v3 (2104.02057, section 4.3), whose authors trained SimCLR, BYOL and SwAV by AdamW as well.
# At small scale tests/benchmarks/choosing_optimizers.py found no method for which LARS was ahead.
WITH_LAYER_NORM = {"name": "adamw", "learning_rate": 1.5e-4, "weight_decay": 0.1}


def defaults_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the paper whose method these settings name; none for a method that is not known.

    The convattn family has AdamW where the paper has LARS, unless `optimizer.name=lars` is asked for.
    """
    paper = PAPERS.get(str(settings["method"]["name"]), {})
    optimizer, encoder = paper.get("optimizer", {}), settings["encoder"]
    # that of a run's folder is seldom any other, and by default there is none
    is_convattn = not str(encoder["name"] or encoder["url"] or "").startswith(("timm:", "package:"))
    if optimizer.get("name") == "lars" != settings["optimizer"]["name"] and is_convattn:
        return {**paper, "optimizer": optimizer | WITH_LAYER_NORM}
    return paper
