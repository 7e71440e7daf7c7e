r"""Reward models: scores learnt from comparisons (losses/comparisons.py), by scorers (models/scorer.py).

Roles: scorer, the averages of config.ema, and `trunk`, a frozen network that the scorer sees through, where it has one.

    loss     comparisons          value
    pair     of two, or rankings  -log sigmoid(better - worse - margin); of a ranking the mean over all its pairs (Xu et
                                  al. 2023), of a tie the mean of both directions
    tie      of two               -log P of what was observed, with ties at theta
    ranking  of three or more     -log P of the ranking, from the best down

A batch is one of comparisons (contract.py); those of a prompt share its conditions. Nothing is drawn from a reward model: its
sampler `scores` is asked for the scores of held-out comparisons, which the evaluator `comparisons` holds against how they came
out. So a config has

    samplers=dict(default=dict(name="scores", role="ema")), evaluators=dict(comparisons=dict(name="comparisons"))

A finished run is a reward of other runs (rewards/learned.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.choices import Spec, build, choose
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase, Role, Sampler
from flowjax.losses.comparisons import pair_loss, ranking_loss, tie_loss
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import average_roles, joined, refuse_unread
from flowjax.models.network import Conditions
from flowjax.models.scorer import Scorer, make_scorer

SCORER, TRUNK = "scorer", "trunk"
UNREAD = ("coupling", "text", "network", "path", "time", "weight", "noise", "preconditioning")
LOSSES = ("pair", "tie", "ranking")
OPEN = 0.2  # how far the first loss may be from that of no opinion
READINGS = {
    "accuracy": "How often the better example has the higher score, in training. Held out it can only be lower: far lower, and "
    "the comparisons are learnt by heart.",
    "margin": "By how much the better example is ahead. It grows for as long as the scores grow surer of themselves.",
}

Scores = Float[Array, "b k"]


def reward_model(
    config: ConfigDict,
    data: DataSpec,
    scorer: Spec,
    loss: str = "pair",
    theta: float | None = None,
    margin: float | str = 0.0,
) -> Method:
    """Learns scores from comparisons.

    Args:
      config: optimizer, ema, samplers ('scores').
      data: of comparisons.
      scorer: spec of models.scorer.SCORERS.
      loss: 'pair', 'tie' or 'ranking'.
      theta: of loss 'tie', above 1: how readily a comparison ends in a tie; 5 unless told.
      margin: of loss 'pair', by how much the better one is to be ahead; 'data' for what each comparison says.
    """
    refuse_unread(config, UNREAD, "reward_model")
    choose("method.loss", loss, dict.fromkeys(LOSSES))
    if data.compared < 2:
        raise ValueError(
            "A reward model learns from comparisons, and these data have none. Use data source 'comparisons', "
            "'compared_shapes', 'compared_emoji' or 'compared_points'."
        )
    if (loss == "tie" and data.compared > 2) or (loss == "ranking" and data.compared == 2):
        other = "'pair' or 'ranking'" if loss == "tie" else "'pair', which of two is the same, or 'tie'"
        raise ValueError(f"method.loss='{loss}' with comparisons of {data.compared} examples. Use {other}.")
    if loss != "tie" and theta is not None:
        raise ValueError(f"method.theta={theta} with loss='{loss}': only loss 'tie' knows ties by their likelihood.")
    if loss == "tie":
        theta = 5.0 if theta is None else theta
        if theta <= 1:
            raise ValueError(f"method.theta is {theta}; comparisons with ties need a number above 1.")
    if isinstance(margin, str) and margin != "data":
        raise ValueError(f"method.margin is '{margin}'; expected a number, or 'data'.")
    if loss != "pair" and margin != 0.0:
        raise ValueError(f"method.margin={margin} with loss='{loss}': only loss 'pair' has a margin.")
    model = make_scorer(scorer, data, config.precision)
    value = choose("method.loss", loss, dict(pair=_pairs(margin), tie=_ties(theta), ranking=_ranking))

    def compare(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        scores, present = all_scores(model, params, SCORER, batch), _present(batch, data.compared)
        ahead, counted = pair_differences(scores, batch["outcome"], present)
        mean = lambda array: jnp.sum(array * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)
        decided = batch["outcome"] != 0
        right = jnp.where(
            decided[:, None], (ahead > 0) + 0.5 * (ahead == 0), 0.5
        )  # who is undecided is right half the time
        return value(scores, batch, present), {"accuracy": mean(right), "margin": mean(ahead) * decided}

    def start_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        found = float(jnp.mean(compare(params, batch, key)[0]))
        same = jnp.zeros((len(batch["data"]), data.compared))
        expected = float(jnp.mean(value(same, batch, _present(batch, data.compared))))
        return CheckResult(
            "scores before training",
            abs(found - expected) < OPEN * expected,
            f"the loss is {found:.3f}, and {expected:.3f} where all scores are alike",
            "The scorer has opinions before it has seen anything: look at the scale of its trunk or of the data.",
        )

    optimizer = make_optimizer(config.optimizer, config.steps)
    load = None if model.load is None else lambda: jax.tree.map(np.asarray, model.load(jax.random.key(config.seed)))
    role = Role(init=model.init, load=load, tx=optimizer.tx, learning_rate=optimizer.learning_rate)
    return Method(
        roles=joined(
            {SCORER: role}, {} if model.trunk is None else {TRUNK: model.trunk}, average_roles(config, SCORER)
        ),
        phases={"comparisons": Phase(compare, trains=(SCORER,))},
        samplers={
            name: build("sampler of a reward model", spec, SAMPLERS, model=model, compared=data.compared)
            for name, spec in config.samplers.to_dict().items()
        },
        checks={"start": start_check},
        readings=READINGS,
    )


def all_scores(model: Scorer, params: Params, role: str, batch: Batch) -> Scores:
    """The scores of all examples of comparisons, `data` first.

    Args:
      model: what scores.
      params: the role's, and those of a frozen trunk.
      role: whose.
      batch: data, others, and the conditions that they share.
    """
    examples = jnp.concatenate([batch["data"][:, None], batch["others"]], axis=1)
    count = examples.shape[1]
    missing = [name for name in model.conditions if name not in batch]
    if missing:
        raise ValueError(f"The scorer reads {', '.join(missing)}, and the batch has {', '.join(sorted(batch))}.")
    cond: Conditions = {name: jnp.repeat(batch[name], count, axis=0) for name in model.conditions}
    flat = examples.reshape(-1, *examples.shape[2:])
    return model.score(params[role], params.get(TRUNK), flat, cond).reshape(-1, count)


def pair_differences(
    scores: Scores, outcome: Int[Array, " b"], present: Bool[Array, "b k"]
) -> tuple[Float[Array, "b p"], Bool[Array, "b p"]]:
    """By how much the better one of every pair is ahead, and which pairs there are; of ties the first one.

    Args:
      scores: of comparisons, rankings from the best down.
      outcome: of each.
      present: which examples there are.
    """
    one, other = jnp.triu_indices(scores.shape[1], 1)
    ahead = (scores[:, one] - scores[:, other]) * jnp.where(outcome < 0, -1.0, 1.0)[:, None]
    return ahead, present[:, one] & present[:, other]


def _present(batch: Batch, compared: int) -> Bool[Array, "b k"]:
    first = jnp.ones((len(batch["data"]), 1), bool)
    rest = batch["present"] if compared > 2 else first
    return jnp.concatenate([first, rest], axis=1)


def _pairs(margin: float | str) -> Callable:
    def value(scores: Scores, batch: Batch, present: Bool[Array, "b k"]) -> Float[Array, " b"]:
        if margin == "data" and "margin" not in batch:
            raise ValueError("method.margin='data', and these comparisons have no margins. Set a number instead.")
        asked = batch["margin"] if margin == "data" else margin
        ahead, counted = pair_differences(scores, batch["outcome"], present)
        level = jnp.zeros_like(ahead)
        won = jax.vmap(pair_loss, in_axes=(1, 1, None), out_axes=1)
        open_ended = 0.5 * (won(ahead, level, 0.0) + won(level, ahead, 0.0))
        losses = jnp.where((batch["outcome"] == 0)[:, None], open_ended, won(ahead, level, asked))
        return jnp.sum(jnp.where(counted, losses, 0.0), axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)

    return value


def _ties(theta: float | None) -> Callable:
    return lambda scores, batch, present: tie_loss(scores[:, 0], scores[:, 1], batch["outcome"], theta)


def _ranking(scores: Scores, batch: Batch, present: Bool[Array, "b k"]) -> Float[Array, " b"]:
    return ranking_loss(scores, present)


def scores(model: Scorer, compared: int, role: str = "ema") -> Sampler:
    """The scores of real, held-out comparisons.

    Args:
      model: the scorer.
      compared: examples of a comparison.
      role: whose parameters.
    """
    reads = ("data", "others", "outcome") + (("present",) if compared > 2 else ())
    draw = lambda params, conditions, keys: all_scores(model, params, role, conditions)
    also = () if model.trunk is None else (TRUNK,)
    about = dict(sampler="scores", nfe=1, role=role)
    return Sampler(draw, role, about, also=also, reads=reads, shape=(compared,))


SAMPLERS = {"scores": scores}
