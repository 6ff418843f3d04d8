"""Classes are imported when they are asked for, and not before."""

import subprocess
import sys

import pytest

from cluster.registry import Registry


@pytest.fixture
def places(tmp_path, monkeypatch):
    (tmp_path / "fovea_some_module.py").write_text("class One: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry({"one": "fovea_some_module:One", "two": "fovea_missing_module:Two"})
    sys.modules.pop("fovea_some_module", None)


def test_names_are_known_without_an_import_and_classes_after_one(places):
    assert list(places) == ["one", "two"] and len(places) == 2 and "one" in places and "three" not in places
    assert "fovea_some_module" not in sys.modules
    assert places["one"].__name__ == "One" and places["one"] is sys.modules["fovea_some_module"].One
    with pytest.raises(ModuleNotFoundError, match="fovea_missing_module"):
        places["two"]
    with pytest.raises(KeyError):
        places["three"]


def test_a_class_of_ones_own_takes_a_name(places):
    class Mine: ...

    places["mine"] = places["two"] = Mine
    assert places["mine"] is places["two"] is Mine
    del places["one"]
    assert list(places) == ["two", "mine"]


def test_commands_start_without_the_libraries_of_methods_and_tasks():
    heavy = ["lightly", "timm", "torchvision", "torchmetrics", "transformers", "ray", "torch._dynamo"]
    code = (
        "import sys, pretrain.run, finetune.run, finetune.predicting.command; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
