"""MM-DiT against SD3Transformer2DModel of diffusers: the same random weights, the same output; and the published sizes.

Their timestep is 1000 sigma and runs through the same waves as our time times `time_scale`, so their timestep / 1000 is
given as our t: what the time means is no matter here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import apart

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.network import count_parameters

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")


def theirs(depth, heads, head_size, patch=2, side=8, channels=3, text=5, pooled=7, table=16, qk_norm=None, dual=0):
    return diffusers.SD3Transformer2DModel(
        sample_size=side,
        patch_size=patch,
        in_channels=channels,
        num_layers=depth,
        attention_head_dim=head_size,
        num_attention_heads=heads,
        joint_attention_dim=text,
        caption_projection_dim=heads * head_size,
        pooled_projection_dim=pooled,
        out_channels=channels,
        pos_embed_max_size=table,
        qk_norm=qk_norm,
        dual_attention_layers=tuple(range(dual)),
    )


def converted(state, depth, dual):
    """Their weights as our tree."""
    array = lambda name: jnp.asarray(state[name].numpy())

    def dense(*names):
        kernel = jnp.concatenate([array(f"{name}.weight") for name in names]).T
        return {"kernel": kernel, "bias": jnp.concatenate([array(f"{name}.bias") for name in names])}

    scale = lambda name: {"scale": array(f"{name}.weight")}

    def swapped(name):
        """Their last modulations hold the scale before the shift."""
        both = dense(name)
        return {
            "linear": {key: jnp.concatenate(jnp.split(leaf, 2, axis=-1)[::-1], axis=-1) for key, leaf in both.items()}
        }

    convolution = array("pos_embed.proj.weight")  # [out, channel, p, q]
    tree = {
        "patch_embedding": {
            "kernel": convolution.transpose(2, 3, 1, 0).reshape(-1, len(convolution)),
            "bias": array("pos_embed.proj.bias"),
        },
        "text_embedding": dense("context_embedder"),
        "pooled_in": dense("time_text_embed.text_embedder.linear_1"),
        "pooled_out": dense("time_text_embed.text_embedder.linear_2"),
        "embedding": {
            "time": {
                "Dense_0": dense("time_text_embed.timestep_embedder.linear_1"),
                "Dense_1": dense("time_text_embed.timestep_embedder.linear_2"),
            }
        },
        "final_modulation": swapped("norm_out.linear"),
        "output": dense("proj_out"),
    }
    normed = "transformer_blocks.0.attn.norm_q.weight" in state
    for index in range(depth):
        at, last = f"transformer_blocks.{index}.", index + 1 == depth
        block = {
            "image_modulation": {"linear": dense(at + "norm1.linear")},
            "image_query_key_value": dense(at + "attn.to_q", at + "attn.to_k", at + "attn.to_v"),
            "image_output": dense(at + "attn.to_out.0"),
            "image_mlp_in": dense(at + "ff.net.0.proj"),
            "image_mlp_out": dense(at + "ff.net.2"),
        }
        if last:
            block["text_modulation"] = swapped(at + "norm1_context.linear")
            block["text_key_value"] = dense(at + "attn.add_k_proj", at + "attn.add_v_proj")
        else:
            block["text_modulation"] = {"linear": dense(at + "norm1_context.linear")}
            block["text_query_key_value"] = dense(*(f"{at}attn.add_{part}_proj" for part in "qkv"))
            block["text_output"] = dense(at + "attn.to_add_out")
            block["text_mlp_in"] = dense(at + "ff_context.net.0.proj")
            block["text_mlp_out"] = dense(at + "ff_context.net.2")
        if normed:
            block["image_query_norm"], block["image_key_norm"] = scale(at + "attn.norm_q"), scale(at + "attn.norm_k")
            block["text_key_norm"] = scale(at + "attn.norm_added_k")
            if not last:
                block["text_query_norm"] = scale(at + "attn.norm_added_q")
        if index < dual:
            block["image_attention"] = {
                "qkv": dense(at + "attn2.to_q", at + "attn2.to_k", at + "attn2.to_v"),
                "output": dense(at + "attn2.to_out.0"),
            }
            if normed:
                block["image_attention"]["query_norm"] = scale(at + "attn2.norm_q")
                block["image_attention"]["key_norm"] = scale(at + "attn2.norm_k")
        tree[f"block_{index}"] = block
    return tree


@pytest.mark.parametrize("qk_norm,dual", [("none", 0), ("rms", 2)])
def test_same_weights_same_output(within, qk_norm, dual):
    depth, heads, head_size = 3, 2, 8
    torch.manual_seed(0)
    model = theirs(depth, heads, head_size, qk_norm={"none": None, "rms": "rms_norm"}[qk_norm], dual=dual).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1 / np.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.5)
    data = DataSpec((8, 8, 3), text_length=4, text_channels=5, pooled_channels=7)
    network = NETWORKS["mmdit"](
        data, depth=depth, width=heads * head_size, heads=heads, qk_norm=qk_norm, dual_blocks=dual, position_grid=16
    )
    tree = converted(model.state_dict(), depth, dual)
    expected = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, expected)
    draw = np.random.default_rng(0)
    for side in (8, 12):  # the size it is built for, and a larger one: both sides see the middle of the table
        x = draw.normal(size=(2, side, side, 3)).astype(np.float32)
        text, pooled = (draw.normal(size=shape).astype(np.float32) for shape in ((2, 4, 5), (2, 7)))
        t = np.array([0.3, 0.9], np.float32)
        with torch.no_grad():
            reference = model(
                hidden_states=torch.from_numpy(x.transpose(0, 3, 1, 2)),
                encoder_hidden_states=torch.from_numpy(text),
                pooled_projections=torch.from_numpy(pooled),
                timestep=torch.from_numpy(1000 * t),
                return_dict=False,
            )[0].numpy()
        cond = {"text": text, "text_mask": np.ones((2, 4), bool), "text_pooled": pooled}
        ours = network.apply(tree, jnp.asarray(x), jnp.asarray(t), jax.tree.map(jnp.asarray, cond))
        assert np.abs(reference).max() > 0.5
        measure = "largest difference, over the largest magnitude"
        assert within(
            "MM-DiT, random weights", "diffusers", apart(ours, reference.transpose(0, 2, 3, 1), True), 1e-4, measure
        )


@pytest.mark.parametrize(
    "model,depth,qk_norm,dual",
    [("18 blocks", 18, "none", 0), ("SD3-M", 24, "none", 0), ("SD3.5-M", 24, "rms", 13), ("SD3.5-L", 38, "rms", 0)],
)
def test_as_many_parameters_as_the_published_models(within, model, depth, qk_norm, dual):
    with torch.device("meta"):
        published = theirs(
            depth,
            depth,
            64,
            side=128,
            channels=16,
            text=4096,
            pooled=2048,
            table=1,  # their table of positions is a buffer
            qk_norm={"none": None, "rms": "rms_norm"}[qk_norm],
            dual=dual,
        )
    data = DataSpec((128, 128, 16), text_length=154, text_channels=4096, pooled_channels=2048)
    network = NETWORKS["mmdit"](data, depth=depth, qk_norm=qk_norm, dual_blocks=dual)
    count = count_parameters(jax.eval_shape(network.init, jax.random.key(0)))[""]
    width = 64 * depth
    unread = width * width + width + (64 if qk_norm == "rms" else 0)  # the last block's queries of the text
    expected = sum(parameter.numel() for parameter in published.parameters())
    assert within(
        f"MM-DiT, parameters of {model}", "diffusers", abs(count + unread - expected), 0, "difference of the counts"
    )
