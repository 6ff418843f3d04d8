"""The benchmark that is to be the first program on a GPU runs to its end without one,
and loses no more than what fails.
"""

import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from tests.benchmarks import accelerator
from tests.benchmarks.accelerator_watch import Averaging, Phase, _kernel_lines, _Watched


def test_without_time_nothing_begins_and_all_is_named(tmp_path, capsys):
    page = tmp_path / "page.txt"
    assert accelerator.main(["--minutes", "0.1", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.rstrip() == capsys.readouterr().out.rstrip().removesuffix(str(page)).rstrip()
    last = text.rstrip().splitlines()[-1]
    for part in (
        "photos",
        "machine",
        "step: convattn_small",
        "run: timm:vit_small_patch16_224",
        "averaging",
    ):
        assert part in last
    assert "6,000 images/s" in text


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path):
    part = accelerator.Part("photos", ("photos", "--folder", str(tmp_path), "--size", "64", "--batch", "8",
                                       "--steps", "1",
                                       "--images", "100000"))  # fmt: skip
    text, fault = accelerator.measured(part, 1.0)
    assert text == ""
    assert fault.startswith("ended after 1 s")


@pytest.mark.slow
def test_a_small_setting_runs_to_the_end_on_the_cpu(tmp_path):
    page = tmp_path / "page.txt"
    arguments = [
        "--size",
        "32",
        "--batch",
        "8",
        "--steps",
        "2",
        "--images",
        "32",
        "--minutes",
        "40",
        "--part-minutes",
        "20",
    ]
    encoders = ["convattn_nano", "timm:no_such_network"]
    assert accelerator.main([*arguments, "--encoders", *encoders, "--page", str(page)]) == 1
    text = page.read_text()
    parts = dict(re.findall(r"^== (.*) \(\d+ s\)\n((?:(?!==).*\n)*)", text, re.MULTILINE))
    failed = {title for title, said in parts.items() if "FAILED" in said}
    assert failed == {title for title in parts if "no_such_network" in title}
    assert len(failed) == 3
    assert "no time was left" not in text
    assert "not measured" not in text
    assert "32 images, made like photos" in parts["photos"]
    step = parts["step: convattn_nano"]
    for pattern in (
        r"[\d.]+ images/s at 32 pixels, batch 8, [\d.]+% of the peak; [\d.]+ ms a step",
        r"GiB of the host's memory at most",
        r"operations of the CPU by time",
        r" +[\d.]+% +[\d.]+ ms +[\d.]+ x  aten::",
        r"waits of the host for the device, a step, beside .* \(goal 0\): [\d.]+",
        r"gradient bytes ready in the backward pass: 25% at \d+%, 50% at",
    ):
        assert re.search(pattern, step), pattern
    for title in ("run: convattn_nano", "run: convattn_nano, keep"):
        assert re.search(r"images/s .*% of the time waiting for data", parts[title])
    assert "images/s" in parts["lightly: convattn_nano"]
    assert re.search(
        r"2 ranks, batch 8 each, [\d.]+ MB in \d+ messages a step", parts["averaging: convattn_nano"]
    )
    assert "batch 32" in parts["step: convattn_nano, batch 32"]
    assert "32 pixels" in parts["run: convattn_nano, size 32 keep"]
    assert "no_such_network" in text.split("-- step: timm:no_such_network")[1]  # the fault in full


def test_messages_go_at_once_or_when_one_is_waited_for_or_never(monkeypatch):
    sent = []

    def all_reduce(tensor, async_op=False):
        sent.append(tensor)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    patched = Averaging()
    messages = [SimpleNamespace(numel=lambda: 5, element_size=lambda: 4) for _ in range(2)]

    def step(way):
        patched.way = way
        sent.clear()
        works = [patched(message, async_op=True) for message in messages]
        before = len(sent)
        for work in works:
            work.wait()
        return before, len(sent)

    assert step("during") == (2, 2)
    assert step("after") == (0, 2)
    assert sent == messages
    assert step("never") == (0, 0)
    assert (patched.num_bytes, patched.messages) == (120, 6)
    patched(messages[0])  # what is waited for at once is sent in any case
    assert sent == messages[:1]


def test_kernels_of_a_gpu_are_summed_by_name_and_their_time_counted_once(monkeypatch):
    # what the profiler gives on a GPU, where none is
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def event(name, start, end, device=DeviceType.CUDA, annotation=False):
        span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, device_type=device, time_range=span, is_user_annotation=annotation)

    events = [
        event("gemm", 0, 3000), event("gemm", 4000, 7000), event("all_reduce", 2000, 5000),
        event("step", 0, 9000, annotation=True), event("cudaStreamSynchronize", 0, 50, DeviceType.CPU),
    ]  # fmt: skip
    told = _kernel_lines(SimpleNamespace(events=lambda: events), 0.010, 2)
    assert "2 kernels a step, the GPU busy for 70% of 5.0 ms" in told[0]
    assert "cudaStreamSynchronize 0.5" in told[0]
    assert told[2].split() == ["66.7%", "3.00", "ms", "1.0", "x", "gemm"]
    assert len(told) == 4


def test_a_phase_that_fails_says_so_and_the_steps_go_on(capsys):
    @contextmanager
    def failing(module):
        yield
        raise RuntimeError("no such counter")

    ended = []

    @contextmanager
    def working(module):
        yield
        ended.append(module)

    def refused(module):
        raise_at_once = contextmanager(lambda: (_ for _ in ()).throw(OSError("not here")))
        return raise_at_once()

    class Batches:
        def __next__(self):
            return "batch"

        def close(self):
            ended.append("closed")

    watched = _Watched(
        Batches(), "module", [Phase(2, failing), Phase(1, refused), Phase(1, working)], fixed=False
    )
    assert [next(watched) for _ in range(5)] == ["batch"] * 5
    watched.close()
    assert ended == ["module", "closed"]
    told = capsys.readouterr().out.splitlines()
    assert told == ["not measured, RuntimeError: no such counter", "not measured, OSError: not here"]
