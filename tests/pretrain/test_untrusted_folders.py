"""A saved folder comes from anybody: it describes an architecture,
and loading it opens no socket and writes no file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from cluster.errors import UserError
from finetune.model import load_model, save_model
from finetune.tasks import TASKS
from finetune.tasks.summarization.tokenizer import CaptionTokenizer
from pretrain.encoders import build_encoder, load_encoder, save_encoder
from pretrain.encoders.sources import open_encoder
from pretrain.encoders.teachers import open_teacher
from pretrain.encoders.timm_arguments import ARCHITECTURE
from pretrain.exporting.command import main as export

EVIL = {
    "pretrained": True,
    "pretrained_cfg": {"url": "http://127.0.0.1:9/evil.pth"},
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/evil.pth"},
    "checkpoint_path": "/tmp/evil.pth",
    "cache_dir": "/tmp/evil",
    "url": "http://127.0.0.1:9/evil.pth",
    "file": "/tmp/evil.pth",
    "pretrained_filter_fn": "os.system",
    "feature_cls": "hook",
    "weights": {"a": 1},
    "drop_path_rate": {"a": 1},
    "name": "timm:resnet18",
    "device": "cuda",
    "scriptable": True,
}


def change(path, edit):
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def encoder_folder(tmp_path, name="timm:resnet10t"):
    torch.manual_seed(0)
    save_encoder(build_encoder(name), str(tmp_path / "encoder"), input_size=32)
    return tmp_path / "encoder"


def model_folder(task: str, tmp_path):
    """A model of a task with random weights, as fine-tuning leaves one."""
    torch.manual_seed(0)
    encoder = build_encoder("timm:resnet10t")
    config = {
        "task": task,
        "mode": "full",
        "encoder": encoder.spec,
        "encoder_url": "some/encoder",
        "image_size": 64,
        "crop_fraction": 0.875,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "image_column": "image",
        "columns": {},
        "class_names": ["a", "b"],
        "class_values": ["a", "b"],
        "keywords": ["cat"],
        "tokenizer": CaptionTokenizer.trained_on(["a cat", "a dog"], vocabulary_size=300).to_json(),
        "mean_tokens": 3.0,
        "num_beams": 1,
        "length_penalty": 0.6,
        "keyword_threshold": 0.5,
        "thumbnail_fraction": 0.6,
        "box_format": "xywh",
        "score_threshold": 0.3,
        "strides": [8, 16],
        "anchors": [],
        "channels": 32,
        "depth": 1,
        "max_detections": 10,
        "hard_attention_keys": 0,
        "hard_attention_stages": 1,
    }
    heads = {
        "classification": "pooled",
        "detection": "fcos",
        "summarization": {
            "width": 32,
            "depth": 1,
            "num_heads": 2,
            "num_maps": 1,
            "num_fed": 1,
            "max_tokens": 8,
        },
    }
    config["head"] = heads[task]
    save_model(str(tmp_path / task), TASKS[task].new_model(encoder, config), config)
    return tmp_path / task


@pytest.mark.parametrize("task", TASKS)
def test_a_model_folder_says_nothing_but_an_architecture_of_its_encoder(task, tmp_path, monkeypatch):
    folder = model_folder(task, tmp_path)
    load_model(str(folder))
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    whole = (folder / "config.json").read_text()
    for key, value in EVIL.items():
        (folder / "config.json").write_text(whole)
        change(
            folder / "config.json",
            lambda config, key=key, value=value: config["encoder"]["arguments"].update({key: value}),
        )
        with pytest.raises(UserError) as caught:
            load_model(str(folder))
        assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", EVIL)
def test_an_encoder_folder_says_nothing_but_an_architecture(key, tmp_path, monkeypatch):
    folder = encoder_folder(tmp_path)
    change(folder / "config.json", lambda config: config["arguments"].update({key: EVIL[key]}))
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    for opened in (load_encoder, open_teacher, lambda url: open_encoder(f"random:{url}", "", {})):
        with pytest.raises(UserError) as caught:
            opened(str(folder))
        assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", EVIL)
def test_an_exported_timm_folder_says_nothing_but_an_architecture(key, tmp_path, monkeypatch):
    folder = encoder_folder(tmp_path)
    assert export([str(folder), str(tmp_path / "timm"), "--format", "timm"]) == 0
    change(tmp_path / "timm" / "config.json", lambda config: config["model_args"].update({key: EVIL[key]}))
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    for opened in (open_teacher, lambda name: open_encoder(name, "", {})):
        with pytest.raises(UserError) as caught:
            opened(f"timm:local-dir:{tmp_path / 'timm'}")
        assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "timm:hf-hub:evil/net",
        "timm:local-dir:/tmp/evil",
        "timm:resnet18.hf-hub:evil/net",
        "timm:https://evil",
        "timm:",
        "os",
    ],
)
def test_a_folder_names_no_network_of_somewhere_else(name, tmp_path):
    folder = encoder_folder(tmp_path, "convattn_nano")
    change(folder / "config.json", lambda config: config.update(name=name, arguments={}))
    with pytest.raises(UserError) as caught:
        load_encoder(str(folder))
    assert "unknown" in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_timm_folder_says_of_its_weights_source_is_not_followed(tmp_path):
    folder = encoder_folder(tmp_path)
    assert export([str(folder), str(tmp_path / "timm"), "--format", "timm"]) == 0
    evil = {
        "url": "http://127.0.0.1:9/evil.pth",
        "hf_hub_id": "evil/net",
        "custom_load": True,
        "source": "url",
    }
    change(tmp_path / "timm" / "config.json", lambda config: config["pretrained_cfg"].update(evil))
    images = torch.randn(1, 3, 64, 64)
    ours = load_encoder(str(folder)).eval()(images)[-1]
    theirs = open_encoder(f"timm:local-dir:{tmp_path / 'timm'}", "", {}).encoder.eval()(images)[-1]
    torch.testing.assert_close(theirs, ours)


def test_the_list_holds_no_argument_of_timms_factory():
    import inspect

    import timm
    from timm.models import build_model_with_cfg

    of_the_factory = {
        *inspect.signature(timm.create_model).parameters,
        *inspect.signature(build_model_with_cfg).parameters,
        "features_only",
        "feature_cls",
        "pruned",
    }
    assert not of_the_factory & ARCHITECTURE


WATCHED = """
    import os, sys

    # what they do when they are imported is not the folder's doing
    import torch, timm, numpy, safetensors.torch, transformers
    from transformers import Dinov2Model, Dinov2Config
    import finetune.tasks
    from finetune.model import load_model
    from pretrain.encoders import load_encoder
    from pretrain.encoders.sources import open_encoder
    from pretrain.encoders.teachers import open_teacher
    from pretrain.explaining import *

    seen = []

    def watch(event, arguments):
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            seen.append((event, arguments))
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not str(path).startswith("/dev/"):
                seen.append((event, path, mode))
        changing = ("os.mkdir", "os.rename", "os.remove", "os.symlink")
        if event in (*changing, "subprocess.Popen", "os.system", "os.exec"):
            seen.append((event, arguments))

    sys.dont_write_bytecode = True
    sys.addaudithook(watch)
    openers = {"encoder": load_encoder, "model": load_model, "teacher": open_teacher,
               "start": lambda name: open_encoder(name, "", {}), "write": lambda path: open(path, "w")}
    for kind, url in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        openers[kind](url)
        print(kind, "sees to" if seen else "leaves all alone", seen[:3])
        seen.clear()
"""


@pytest.mark.slow
def test_loading_opens_no_socket_and_writes_nothing(tmp_path):
    """One process for every kind of folder, for starting it takes longer than all of them."""
    from tests.pretrain.test_teachers import of_transformers

    given: list[tuple[str, str]] = []
    for name in ("convattn_nano", "convattn_classic", "timm:vit_tiny_patch16_224", "timm:resnet10t"):
        (tmp_path / name).mkdir()
        folder = str(encoder_folder(tmp_path / name, name))
        given += [("encoder", folder), ("teacher", folder), ("start", folder)]
    for form in ("timm", "huggingface"):
        assert export([folder, str(tmp_path / form), "--format", form]) == 0
    given += [(kind, f"timm:local-dir:{tmp_path / 'timm'}") for kind in ("teacher", "start")]
    given += [("teacher", str(tmp_path / "huggingface"))]
    given += [("model", str(model_folder(task, tmp_path))) for task in TASKS]
    for kind in ("dinov2", "siglip"):
        of_transformers(kind, kind, tmp_path)
        given += [("teacher", str(tmp_path / kind))]
    given += [("write", str(tmp_path / "written"))]  # the watch itself works
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), *(word for pair in given for word in pair)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = ran.stdout.splitlines()
    assert lines[-1].startswith("write sees to [('open', ") and len(lines) == len(given)
    assert lines[:-1] == [f"{kind} leaves all alone []" for kind, _ in given[:-1]]
