"""Bilinear resizing against PyTorch's, both conventions, up and down, and to and from one pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flax_mnv2.models.ops.resize import resize_bilinear


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((6, 7), (17, 23)), ((6, 7), (5, 3)), ((6, 7), (1, 9)), ((6, 7), (6, 1)), ((6, 7), (6, 7)), ((1, 4), (5, 3))],
)
def test_as_pytorch(shape, size, align_corners):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), size=size, mode="bilinear", align_corners=align_corners
    )
    ours = resize_bilinear(jnp.asarray(x), size, align_corners=align_corners)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-6)


def test_it_keeps_the_type():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    assert resize_bilinear(x, (5, 5), align_corners=True).dtype == jnp.bfloat16


@pytest.mark.parametrize("align_corners", [True, False])
def test_sizes_that_are_known_when_it_is_run(align_corners):
    scope = export.SymbolicScope()

    def resize(x, like):
        return resize_bilinear(x, like.shape[1:3], align_corners=align_corners)

    sizes = (export.symbolic_shape(text, scope=scope) for text in ("1,h,w,2", "1,2*h,3*w,2"))
    program = export.export(jax.jit(resize))(*(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes))
    x, like = (
        np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32),
        np.zeros((1, 10, 21, 2), np.float32),
    )
    np.testing.assert_allclose(program.call(x, like), resize(jnp.asarray(x), like), atol=1e-5)
