"""The autoencoder's shapes, its parts, its clipped posterior; the discriminator judges patches, example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models.autoencoder import LOGVAR_RANGE, convolutional
from flowjax.models.discriminator import patch
from flowjax.models.network import count_parameters

SPEC = DataSpec((8, 16, 3))
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 16, 3))
SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, latent_channels=4)


def tree_of(model):
    return model.init(jax.random.key(1))


def test_latents_have_one_cell_for_every_f_by_f_pixels():
    model = convolutional(SPEC, **SMALL)
    tree = tree_of(model)
    mean, logvar = model.encode(tree, IMAGES)
    assert model.factor == 2 and model.latent_shape == (4, 8, 4)
    assert mean.shape == logvar.shape == (2, 4, 8, 4)
    assert model.decode(tree, mean).shape == IMAGES.shape
    np.testing.assert_array_equal(
        model.decode(tree, mean), model.output({"output": tree["output"]}, model.hidden(tree, mean))
    )


def test_it_reads_images_of_any_size():
    model = convolutional(SPEC, **SMALL)
    tree = tree_of(model)
    larger = jnp.concatenate([IMAGES, IMAGES], axis=1)
    assert model.decode(tree, model.encode(tree, larger)[0]).shape == larger.shape


def test_log_variances_are_clipped():
    model = convolutional(SPEC, **SMALL)
    tree = tree_of(model)
    tree["encoder"]["output"]["kernel"] = 1e4 * tree["encoder"]["output"]["kernel"]
    logvar = model.encode(tree, IMAGES)[1]
    assert (float(logvar.min()), float(logvar.max())) == LOGVAR_RANGE


def test_the_autoencoder_of_stable_diffusion_has_its_published_size():
    """83,653,863 parameters (SD 1: channels 128, multipliers 1 2 4 4, two blocks, 4 latent channels), less what differs.

    Theirs has 1 x 1 convolutions on both sides of the latent (8 to 8 and 4 to 4 channels); everything else is the same.
    """
    model = convolutional(DataSpec((32, 32, 3)), channels=128, multipliers=(1, 2, 4, 4), blocks=2)
    total = count_parameters(jax.eval_shape(model.init, jax.random.key(0)))[""]
    assert total == 83_653_863 - (8 * 8 + 8) - (4 * 4 + 4)


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((8, 10, 3), dict(multipliers=(1, 1, 1)), "not divisible by 4"),
        ((2,), {}, "reads images"),
        ((8, 8, 3), dict(convolution="fft"), "Unknown convolution 'fft'"),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        convolutional(DataSpec(shape), **options)
    with pytest.raises(ValueError, match="allows 1 to 3. Change discriminator.layers"):
        patch(DataSpec((8, 8, 3)), layers=4)


def test_a_logit_sees_its_patch_and_its_own_image():
    """47 x 47 pixels with three layers: 1 -> 3 -> 5 -> 11 -> 23 -> 47 back through the strides; group norm sees all cells."""
    model = patch(DataSpec((64, 64, 1)), channels=4, layers=3)
    tree = tree_of(model)
    images = jax.random.normal(jax.random.key(2), (2, 64, 64, 1))
    logits = model.apply(tree, images)
    assert logits.shape == (2, 8, 8)
    np.testing.assert_allclose(model.apply(tree, images[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    moved = model.apply(tree, images.at[1].add(1.0))
    np.testing.assert_array_equal(moved[0], logits[0])
    assert not np.allclose(moved[1], logits[1])
