"""The published sizes of DiT, counted without allocating them."""

import jax
import pytest

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.network import count_parameters, parameter_counts

LATENTS = DataSpec((32, 32, 4), 1000)


@pytest.mark.parametrize(
    "name,patch,millions,width",
    [("dit_s", 2, 33, 384), ("dit_b", 2, 130, 768), ("dit_l", 2, 458, 1024), ("dit_xl", 2, 675, 1152)],
)
def test_published_parameter_counts(name, patch, millions, width):
    network = NETWORKS[name](LATENTS, patch=patch)
    tree = jax.eval_shape(network.init, jax.random.key(0))
    total = count_parameters(tree)[""]
    # The published model also has outputs for a variance, and holds its position vectors as parameters.
    values, patches = patch**2 * 4, (32 // patch) ** 2
    published = total + (width + 1) * values + patches * width
    assert millions - 0.5 < published / 1e6 < millions + 1  # the paper rounds some sizes and truncates others
    if name == "dit_xl":
        assert published == 675_129_632  # printed by the published training script


def test_counts_by_path():
    network = NETWORKS["dit"](DataSpec((8, 8, 1), 3), width=16, depth=2, heads=2)
    tree = jax.eval_shape(network.init, jax.random.key(0))
    assert parameter_counts(tree)["embedding/label/table/embedding"] == 4 * 16
    by_part = count_parameters(tree, depth=1)
    h = 16
    assert by_part["block_0"] == by_part["block_1"] == 18 * h * h + 15 * h
    assert sum(by_part.values()) == count_parameters(tree)[""]
