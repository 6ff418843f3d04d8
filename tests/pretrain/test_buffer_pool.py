"""Memory of batches comes back when nothing holds it any more, and never before."""

import gc
import pickle

import numpy as np
import torch

from pretrain.data.images.buffer_pool import BufferPool


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it():
    buffer_pool = BufferPool()
    first = buffer_pool.array((4, 3, 8, 8))
    second = buffer_pool.array((4, 3, 8, 8))
    where = address(first)
    assert where != address(second)
    del first
    assert address(buffer_pool.array((4, 3, 8, 8))) == where
    assert address(buffer_pool.array((8, 24), np.float32)) == where, "as many bytes"
    assert address(buffer_pool.array((4, 3, 8, 9))) != where


def test_whatever_is_made_of_an_array_holds_its_memory():
    buffer_pool = BufferPool()
    for make in (
        lambda array: array[1:, 0],
        lambda array: array.reshape(-1).view(np.uint32),
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[0].view(-1),
        memoryview,
    ):
        array = buffer_pool.array((4, 3, 8, 8))
        where, part = address(array), make(array)
        del array
        gc.collect()
        other = buffer_pool.array((4, 3, 8, 8))
        assert address(other) != where
        del part, other


def test_the_gradient_of_a_convolution_still_sees_its_input():
    buffer_pool, weight = BufferPool(), torch.ones(1, 1, 3, 3, requires_grad=True)
    images = buffer_pool.array((2, 1, 8, 8), np.float32)
    images[:] = 3
    loss = torch.nn.functional.conv2d(torch.from_numpy(images), weight).sum()
    del images
    buffer_pool.array((2, 1, 8, 8), np.float32)[:] = 7
    loss.backward()
    assert weight.grad.eq(3 * 2 * 36).all()


def test_an_array_outlives_its_pool_and_memory_stays_in_its_process():
    buffer_pool = BufferPool()
    array = buffer_pool.array((5,), np.float32)
    array[:] = 2
    again = pickle.loads(pickle.dumps(buffer_pool))
    del buffer_pool
    assert array.sum() == 10 and again.array((5,), np.float32).shape == (5,)
    assert BufferPool().array((0, 3)).shape == (0, 3)
