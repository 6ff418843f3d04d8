"""What of a working tree is sent with a job."""

import os
import zipfile
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.jobs.working_tree import LIMIT_BYTES, TreeFile, files_of, pack, packed


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(root):
    return [file.name for file in files_of(root)]


def test_code_and_configurations_are_sent_and_nothing_else(tmp_path):
    write(
        tmp_path, "pretrain/run.py", "configs/a.yaml", "README.md", "constraints.txt", "cluster/slurm/job.sh"
    )
    kept = names(tmp_path)
    write(
        tmp_path,
        ".git/config",
        ".env",
        ".venv/bin/python",
        "pretrain/__pycache__/run.pyc",
        "fovea.egg-info/PKG-INFO",
    )
    write(tmp_path, "my/photos/a.JPG", "my/shards/a.parquet", "model.safetensors", "old.ckpt", "data.tar.gz")
    write(tmp_path, "env/pyvenv.cfg", "env/lib/python/torch.py")  # an environment by any name
    write(tmp_path, "first/settings.yaml", "first/metrics.json", "first/checkpoints/8/state.json")  # a run
    (tmp_path / "elsewhere").symlink_to("/usr")
    assert names(tmp_path) == kept == sorted(kept)
    assert len(kept) == 5


def test_ignore_files_are_obeyed_as_git_reads_them(tmp_path):
    write(
        tmp_path,
        "a/keep.py",
        "a/drop.py",
        "a/b/drop.py",
        "runs/x.py",
        "a/runs/x.py",
        "c/tokenizer.bin",
        "c/x.bin",
    )
    (tmp_path / ".gitignore").write_text("/runs/\n# a comment\ndrop.py\n")
    (tmp_path / "a/b").mkdir(exist_ok=True)
    (tmp_path / "a/b/.gitignore").write_text("!drop.py\n")  # the nearer file has the last word
    (tmp_path / ".rayignore").write_text("keep.py\n!tokenizer.bin\n")
    assert names(tmp_path) == ["a/b/drop.py", "a/runs/x.py", "c/tokenizer.bin"]


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    root = tmp_path / "tree"
    write(root, "a.py", "b/run.sh")
    (root / "b/run.sh").chmod(0o755)
    with packed(root) as first:
        before = Path(first).read_bytes()
        with zipfile.ZipFile(first) as content:
            assert content.namelist() == ["a.py", "b/run.sh"]
            assert content.getinfo("b/run.sh").external_attr >> 16 == 0o755
    assert not os.path.exists(first)
    os.utime(root / "a.py", (1, 1))
    with packed(root) as again:
        assert Path(again).read_bytes() == before
    (root / "a.py").write_text("other")
    with packed(root) as changed:
        assert Path(changed).read_bytes() != before


def test_too_large_a_tree_is_refused_with_what_is_large(tmp_path):
    files = [
        TreeFile("code/a.py", 1000),
        TreeFile("images/a.raw", LIMIT_BYTES),
        TreeFile("images/b.raw", 2**20),
    ]
    with pytest.raises(
        UserError,
        match=r"101 MiB to send, Ray takes 100 \(largest: images 101 MiB, code 0 MiB\).*\.rayignore",
    ):
        pack(tmp_path, files, tmp_path / "tree.zip")
    with pytest.raises(UserError, match="nothing to send"), packed(tmp_path):
        pass
