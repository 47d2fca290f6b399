"""Convolutions as matrix products, for networks of few channels on a CPU.

Feature maps are [channels, H, W, N] here: a CPU's vectors run along the batch, and the shifted
copies that make up the windows are copied in long rows. Letters: c in features, o out features,
h and w of the kernel, i and j of the output, n of the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from disguide_jax.models.conv import bilinear, set_gradients

Array = jax.Array

# Where rows appear twice, taps of a 3x3 kernel fall together. Two neighbouring rows make two
# outputs: the second of the upper one and the first of the lower one. [row, output, tap]
TAPS = np.array([[[1, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 1]]])


def conv(x: Array, kernel: Array, padding: int = 0, stride: int = 1) -> Array:
    """Convolves maps [c, H, W, N] with a kernel [size, size, c, o].

    The stride divides the kernel's size, and height and width of the padded maps. It
    differentiates in reverse mode only, to any order; under `jax.vmap` see `models.conv`.
    """
    if stride > 1:
        return conv(_fold(_pad(x, padding), stride), _fold_kernel(kernel, stride))
    size, _, num_in, num_out = kernel.shape
    if num_in <= 2 * num_out:  # at twice as many, windows of the input are up to twice as fast
        return _output(_pad(x, padding), kernel)
    # The windows of the output are far fewer. It is cut from what every input pixel spreads to.
    spread = _input_grad(kernel[::-1, ::-1].swapaxes(2, 3), x)
    return _pad(spread, padding + 1 - size)


def conv_transposed(x: Array, kernel: Array, padding: int = 0, stride: int = 1) -> Array:
    """Maps [c, H, W, N] through the transpose of `conv`, with its kernel [size, size, o, c].

    There are no zeros between pixels: a stride of 2 makes four features of every one, which are
    the pixels of a block.
    """
    # Windows of the output although they are more: here it has no margin to cut off.
    spread = _input_grad(_fold_kernel(kernel, stride), x)
    return _pad(_unfold(spread, stride), -padding)


def conv_doubled(x: Array, kernel: Array) -> Array:
    """Doubles height and width by repeating pixels, then convolves 3x3, padded by 1.

    The four outputs that see the same 2x2 pixels are made from those: 2.25 times fewer
    products than from the doubled maps.
    """
    num_out = kernel.shape[3]
    taps = TAPS.astype(kernel.dtype)
    kernel = jnp.einsum("pad,qbe,deco->pqcabo", taps, taps, kernel)
    y = conv(x, kernel.reshape(2, 2, -1, 4 * num_out), padding=1)
    return _pad(_unfold(y, 2), -1)


def _fold(x: Array, size: int) -> Array:
    """Makes channels of blocks of pixels, which turns a stride into one of 1."""
    channels, height, width, batch = x.shape
    x = x.reshape(channels, height // size, size, width // size, size, batch)
    return x.transpose(2, 4, 0, 1, 3, 5).reshape(-1, height // size, width // size, batch)


def _unfold(x: Array, size: int) -> Array:
    """Inverse of `_fold`."""
    _, height, width, batch = x.shape
    x = x.reshape(size, size, -1, height, width, batch).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(-1, height * size, width * size, batch)


def _fold_kernel(kernel: Array, size: int) -> Array:
    return jnp.moveaxis(_fold(jnp.moveaxis(kernel, 2, 0), size), 0, 2)


def _pad(x: Array, padding: int) -> Array:
    edge = (padding, padding, 0)  # below 0 it cuts
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), edge, edge, (0, 0, 0)])


def _windows(x: Array, size: int) -> Array:
    """Copies all windows, [c, H, W, N] -> [h w c, i j n]."""
    height, width = (length + 1 - size for length in x.shape[1:3])
    # First those of columns: shifted by rows, they are copied in one piece. XLA would make one
    # loop of both steps, which takes three times as long.
    columns = jnp.stack([x[:, :, w : w + width] for w in range(size)])
    columns = lax.optimization_barrier(columns.reshape(-1, x.shape[1], width * x.shape[3]))
    rows = [columns[:, h : h + height].reshape(len(columns), -1) for h in range(size)]
    return jnp.concatenate(rows)


def _spread(windows: Array) -> Array:
    """Adds every window to the pixels that it was copied from, the transpose of `_windows`."""
    size, _, channels, height, width, batch = windows.shape
    x = jnp.zeros((channels, height + size - 1, width + size - 1, batch), windows.dtype)

    def add_row(h: Array, x: Array) -> Array:
        for w in range(size):  # in place: twice as fast as a sum of padded windows
            at, window = (0, h, w, 0), windows[h, w]
            x = lax.dynamic_update_slice(x, lax.dynamic_slice(x, at, window.shape) + window, at)
        return x

    return lax.fori_loop(0, size, add_row, x)  # as fast as unrolled, and compiles sooner


# Clones are folded into the out features wherever only the other operand is shared.


@bilinear(None, (3, 0))
def _output(x: Array, k: Array) -> Array:
    size, _, _, num_out = k.shape
    height, width = (length + 1 - size for length in x.shape[1:3])
    y = k.reshape(-1, num_out).T @ _windows(x, size)
    return y.reshape(num_out, height, width, x.shape[3])


@bilinear(None, None)
def _input_grad(k: Array, y: Array) -> Array:
    windows = k.reshape(-1, len(y)) @ y.reshape(len(y), -1)
    return _spread(windows.reshape(*k.shape[:3], *y.shape[1:]))


@bilinear((0, 3), None)
def _kernel_grad(y: Array, x: Array) -> Array:
    size = x.shape[1] + 1 - y.shape[1]
    k = _windows(x, size) @ y.reshape(len(y), -1).T
    return k.reshape(size, size, len(x), len(y))


set_gradients(_output, _input_grad, _kernel_grad)
set_gradients(_input_grad, _kernel_grad, _output)
set_gradients(_kernel_grad, _output, _input_grad)
