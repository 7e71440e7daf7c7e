r"""IMM: inductive moment matching (Zhou et al. 2025), two times, from data alone, without a derivative.

Groups of particles share their times; the jumps of a group from t must make the same distribution as its jumps from the
neighbouring r (losses/moment_matching.py). Of b rows, the group of row i < b / M is i, i + b / M, i + 2 b / M, ...: they stay
together when a batch is dealt out to micro-batches, and the times are drawn with the first one's row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.moment_matching import discrepancy, follower, time_weight
from flowjax.methods.parts import check_shares, draw, make_samplers, refuse_unread
from flowjax.methods.students import make_student
from flowjax.paths.flow_maps import flow_jump

READINGS = {
    "error": "The discrepancy of small groups. Tiny and noisy; it falls by orders of magnitude and then stays.",
}


def moment_matching(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    particles: int = 4,
    step: float = 2.0**-12,
    highest: float = 160.0,
    width: float = 1.0,
    a: float = 1.0,
    b: float = 4.0,
    label_dropout: float = 0.1,
) -> Method:
    """Trains jumps by the maximum mean discrepancy of small groups.

    Args:
      config: path, time, noise, network (two_times=True), optimizer, ema, samplers ('flow_map').
      data: shape, classes and scale of the data; its `std` is the scale of the kernel.
      prediction: what the network outputs.
      particles: M, of a group; divides the batch.
      step: how far r lies behind t, in noise level, as a share of `highest`.
      highest: noise level.
      width: of the kernel, in reaches of the jump; smaller ones see finer differences, from nearer by.
      a, b: of the weight of a time.
      label_dropout: how often conditions are replaced by their null.
    """
    refuse_unread(config, ["weight"], "moment_matching")
    micro = config.batch_size // config.gradient_accumulation
    if particles < 1 or micro % particles:
        raise ValueError(
            f"method.particles is {particles}, and a (micro-)batch has {micro} examples: they do not divide into "
            "groups. Choose a divisor."
        )
    check_shares(label_dropout=label_dropout)
    if not 0 < step < 1 or highest <= 0 or width <= 0:
        raise ValueError(
            f"method has step={step}, highest={highest} and width={width}; expected 0 < step < 1, and a positive noise level "
            "and width."
        )
    student = make_student(config, data, "moment_matching", prediction, two_times=True)
    setting, path = student.setting, student.setting.path

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_end = jax.random.split(key)
        drawn = draw(setting, batch, key_draw, label_dropout)
        groups = len(drawn.t) // particles
        place = uniform_rows(example_keys(key_end, batch["row"][:groups]))
        t_group = drawn.t[:groups]
        s_group = t_group + (path.end - t_group) * place
        r_group = follower(path, t_group, s_group, step, highest)
        t, r, s = (jnp.tile(times, particles) for times in (t_group, r_group, s_group))

        def jump(tree, now):
            x = path.sample(drawn.noise, drawn.data, now)
            value = setting.network.apply(tree, x, now, drawn.cond, s=s, keys=drawn.keys)
            return flow_jump(path, prediction, value, x, now, s)

        grouped = lambda array: array.reshape(particles, groups, -1).swapaxes(0, 1)
        own = grouped(jump(params["student"], t))
        target = grouped(jump(jax.lax.stop_gradient(params["student"]), r))
        unit = jnp.ones(groups)
        reach = jnp.abs(flow_jump(path, prediction, unit, 0.0 * unit, t_group, s_group)) * data.std * width
        squared = discrepancy(own, target, 1.0 / jnp.maximum(reach, 1e-6), grouped(batch["mask"])[..., 0])
        squared = squared.swapaxes(0, 1).reshape(-1)
        return time_weight(path, t, a, b) * squared, {"t": t, "error": squared}

    return Method(
        roles=student.roles,
        phases={"moments": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )
