r"""A reward that was learnt from comparisons: the scorer of a finished run of method 'reward_model'.

    dict(name="model", restore_from="runs/reward")

Scores are known up to a constant and have no scale of their own, so they are standardised,

    reward(x, c) = (score(x, c) - mean) / deviation,                                                               (1)

by mean and deviation over the held-out comparisons that the run was measured on when its last checkpoint was saved; they are
kept in that checkpoint. The reward is differentiable in x. Its parameters are frozen roles: the scorer, and its trunk if it has
one.
"""

import zlib

from flowjax.contract import DataSpec, Role
from flowjax.models import stored
from flowjax.models.scorer import make_scorer
from flowjax.rewards.reward import Reward

WHO = "The reward 'model'"
METHOD, TRAINED, TRUNK = "reward_model", "scorer", "trunk"


def model(
    data: DataSpec,
    restore_from: str,
    standardise: bool = True,
    mean: float | None = None,
    deviation: float | None = None,
) -> Reward:
    """Equation (1).

    Args:
      data: what is judged: examples of the shape, with the conditions, that the scorer was trained on.
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `scorer`.
      standardise: or give scores as they are.
      mean: of scores, where the run was not measured.
      deviation: likewise.
    """
    config = stored.config_of_run(restore_from, WHO)
    if config["method"]["name"] != METHOD:
        raise ValueError(
            f"{WHO} reads a run of method '{METHOD}', and '{restore_from}' is one of '{config['method']['name']}'. Train one "
            "with configs/reward_model.py."
        )
    if (mean is None) != (deviation is None) or (deviation is not None and (deviation <= 0 or not standardise)):
        raise ValueError(
            f"{WHO} has mean={mean}, deviation={deviation}, standardise={standardise}: give both numbers, the second above "
            "zero, or none."
        )
    reference = stored.reference_of_run(restore_from, WHO, TRAINED)
    scorer = make_scorer(config["method"]["scorer"], data, config["precision"])
    stored.check_words(reference, scorer.conditions, data.words, WHO)
    if not standardise:
        mean, deviation = 0.0, 1.0
    elif mean is None or deviation is None:
        mean, deviation = _measured(reference, config)
    # Two rewards of one config have roles of their own, and a run that goes on finds them under the same names.
    name = f"reward_{zlib.crc32(reference.encode()):08x}"
    roles = {name: Role(init=scorer.init, restore_from=reference)}
    if scorer.trunk is not None:
        folder = reference.rpartition(":")[0]
        roles[f"{name}_{TRUNK}"] = Role(init=scorer.trunk.init, restore_from=f"{folder}:{TRUNK}")

    def value(params, samples, cond):
        missing = [condition for condition in scorer.conditions if condition not in cond]
        if missing:
            given = ", ".join(sorted(cond)) or "none"
            raise ValueError(f"{WHO} reads the condition(s) {', '.join(missing)}; samples were drawn under {given}.")
        raw = scorer.score(params[name], params.get(f"{name}_{TRUNK}"), samples, cond)
        return (raw - mean) / deviation

    return Reward(value, roles=roles)


def _measured(reference: str, config: dict) -> tuple[float, float]:
    """Mean and deviation of the scores of a role, from its checkpoint."""
    folder, role = stored.split_reference(reference, WHO)
    step = stored.existing_step(folder, None)
    measured = stored.read_measured(folder, step)
    ways = "Give mean and deviation, or standardise=False"
    if not {"score_mean", "score_std"} <= measured.keys():
        raise ValueError(
            f"{WHO} standardises scores by what was measured with the checkpoint of step {step} of {folder}, and nothing was. "
            f"Train with the evaluator 'comparisons' due at the last step. {ways}."
        )
    samplers = config["samplers"]
    sampler = samplers["default"] if "default" in samplers else next(iter(samplers.values()))
    if (of := sampler.get("role", "ema")) != role:
        raise ValueError(
            f"{WHO} is to use the role '{role}', and the scores that were measured are those of '{of}'. Use "
            f"restore_from='{reference.rpartition(':')[0]}:{of}'. {ways}."
        )
    if measured["score_std"] <= 0:
        raise ValueError(f"{WHO}: all scores of '{reference}' are alike, so it prefers nothing. Train it for longer.")
    return measured["score_mean"], measured["score_std"]
