"""Flow policies, cloned from poor demonstrations and tuned by ReinFlow: what they are worth beside the best there is.

    python experiments/control/run.py [--tiny] [--parts lqr pendulum] [--work DIR] [--out DIR]

    lqr        the linear-quadratic regulator, whose best return is known; the gain of the tuned policy beside Riccati's
    pendulum   Pendulum-v1 of gymnasium (extra `control`)

Three seeds of each: configs/reinflow.py twice, first to learn from demonstrations, then to tune. Every policy plays the same
episodes. Finished runs are not trained again.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.arrays import example_keys
from flowjax.config import load
from flowjax.control import Environment, Episodes, make_expert, roll_out
from flowjax.control.lqr import average_reward, linear_return
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.experiment import run_parts, train
from flowjax.evaluation.receipts import make_receipt, read_receipts, replace_receipts
from flowjax.evaluation.resampling import bootstrap_mean
from flowjax.training.run import Run

CONFIG = "configs/reinflow.py"
SEEDS = (0, 1, 2)
COUNT = {"lqr": 10_000, "pendulum": 200}  # episodes that every policy plays
STARTS = {"default": "", "zero": ", from zero", "noisy": ", with noise"}  # samplers of the config
REFERENCE = dict(name="swing_up", pump=1.0, catch=4.0)  # of the pendulum: a good controller, written by hand
EPISODES = 77  # seed of the episodes: no run evaluates itself on them
STATES = ("position", "speed")


def tuned_runs(options: argparse.Namespace, task: str, seed: int) -> tuple[Run, pathlib.Path]:
    """Trains both stages of a seed; returns the second as a run that has not begun, and where it is."""
    tiny = "tiny," if options.tiny else ""
    cloned, tuned = (options.work / f"{task}_{stage}_{seed}" for stage in ("cloned", "tuned"))
    train(options.root, f"{options.root / CONFIG}:{tiny}task={task}", cloned, f"--config.seed={seed}")
    config = f"{options.root / CONFIG}:{tiny}run={cloned}"
    train(options.root, config, tuned)
    return Run(load(config)), tuned


def played(environment: Environment, act: Any, keys: jax.Array) -> Episodes:
    """Episodes of a policy that remembers nothing."""
    return jax.jit(lambda keys: roll_out(environment, lambda seen, keys: (act(seen, keys), ()), keys))(keys)


class Table:
    """The receipts of one task.

    Args:
      task: its name.
      environment: where all policies play.
      keys: one for each episode.
    """

    def __init__(self, task: str, environment: Environment, keys: jax.Array):
        self.task, self.environment, self.keys, self.receipts = task, environment, keys, []
        self.problem, self.best, self.control = environment.oracle, environment.best_return, None
        if self.problem is not None:
            # The best gain's return is known exactly: what chance added to it in these episodes is taken off all policies.
            riccati = played(environment, make_expert(dict(name="linear"), environment), keys)
            known = float(linear_return(self.problem, self.problem.gain, environment.horizon))
            self.control, self.states = np.asarray(riccati.returns) - known, riccati.observations[:500, :, :]

    def add(self, run: Run, metric: str, value: float, policy: str, **more: Any) -> None:
        """One receipt."""
        fields = dict(step=0, seconds=0.0, sampler="episodes", nfe=run.config.method.steps) | more
        self.receipts.append(
            make_receipt(
                metric,
                value,
                config=run.config.to_dict(),
                config_path=CONFIG,
                seed=run.config.seed,
                images_seen=fields["step"] * run.config.batch_size,
                guidance_scale=None,
                ema="student",
                evaluator="episodes that every policy plays",
                samples=len(self.keys),
                task=self.task,
                policy=policy,
                **fields,
            )
        )

    def returns(self, run: Run, policy: str, returns: Any, **more: Any) -> None:
        """The mean return of a policy, and how much less that is than the best."""
        returns = np.asarray(returns, np.float64).ravel()
        if self.problem is not None:
            returns = returns - self.control
            more["shortfall_percent"] = 100 * (self.best - returns.mean()) / abs(self.best)
        interval = list(bootstrap_mean(returns))
        self.add(run, "return", float(returns.mean()), policy, interval=interval, better="higher", **more)
        print(f"{self.task}, seed {run.config.seed}, {policy}: {returns.mean():.2f}", flush=True)

    def gains(self, run: Run, policy: str, actions: Any, **more: Any) -> None:
        """The linear policy that is nearest to a policy's actions in the states that the best gain visits."""
        seen = np.asarray(self.states, np.float64).reshape(-1, self.states.shape[-1])
        gain = -np.linalg.lstsq(seen, np.asarray(actions, np.float64))[0].T
        self.gain(run, policy, gain, **more)
        left = np.square(actions + seen @ gain.T).sum() / np.square(actions - actions.mean()).sum()
        self.add(run, "linear_share", float(1 - left), policy, **more)

    def gain(self, run: Run, policy: str, gain: Any, **more: Any) -> None:
        """A gain, and what it costs a step of an endless episode over the best, exactly."""
        for name, value in zip(STATES, np.asarray(gain)[0]):
            self.add(run, f"gain_{name}", float(value), policy, **more)
        cost = average_reward(self.problem, jnp.asarray(gain, jnp.float32))
        over = 100 * (cost / average_reward(self.problem, self.problem.gain) - 1)
        self.add(run, "excess_percent", max(over, 0.0), policy, **more)


def measure(options: argparse.Namespace, task: str) -> None:
    """Three seeds, before and after."""
    curves, table = [], None
    for seed in SEEDS[:1] if options.tiny else SEEDS:
        run, tuned = tuned_runs(options, task, seed)
        if table is None:
            count = 16 if options.tiny else COUNT[task]
            keys = example_keys(jax.random.key(EPISODES), jnp.arange(count))
            table = Table(task, run.source.environment, keys)
            references(table, run)
        samplers = {name: jax.jit(sampler.draw) for name, sampler in run.method.samplers.items()}
        after = Run(run.config, tuned).latest_state()
        seconds = run_files.seconds_until(tuned, int(after.step))
        for stage, params, step in (
            ("cloned", run.executor.start().params, 0),
            ("tuned", after.params, int(after.step)),
        ):
            more = dict(step=step, seconds=seconds if step else 0.0)
            for name, words in STARTS.items():
                table.returns(run, stage + words, samplers[name](params, {}, table.keys), **more)
            if table.problem is not None:
                seen = table.states.reshape(-1, len(STATES))
                own = example_keys(jax.random.key(seed), jnp.arange(len(seen)))
                table.gains(run, stage, np.asarray(samplers["actions"](params, {"observation": seen}, own)), **more)
        begun = [r for r in table.receipts if (r["policy"], r["metric"], r["seed"]) == ("cloned", "return", seed)][0]
        period = run.method.collect.every
        written = [receipt for receipt in read_receipts(tuned / run_files.RECEIPTS) if receipt["metric"] == "return"]
        for receipt in [{**begun, "step": 0}, *written]:
            episodes = receipt["step"] // period * run.config.method.episodes
            curves.append({**receipt, "seed": seed, "policy": "tuned", "episodes": episodes})
    replace_receipts(options.out / "receipts", task, table.receipts)
    draw(options.out / f"{task}.png", table, curves)


def references(table: Table, run: Run) -> None:
    """Who taught, and who knows better."""
    plain = dict(sampler="none", nfe=None)
    expert = make_expert(run.config.data.expert, table.environment)
    table.returns(run, "demonstrations", played(table.environment, expert, table.keys).returns, **plain)
    if table.problem is None:
        better = make_expert(REFERENCE, table.environment)
        table.returns(run, "a good controller", played(table.environment, better, table.keys).returns, **plain)
        return
    riccati = make_expert(dict(name="linear"), table.environment)
    table.returns(run, "Riccati's gain", played(table.environment, riccati, table.keys).returns, **plain)
    table.add(run, "return", table.best, "the best there is", shortfall_percent=0.0, better="higher", **plain)
    table.gain(run, "Riccati's gain", table.problem.gain, **plain)


def draw(path: pathlib.Path, table: Table, curves: list[dict]) -> None:
    """Return against episodes played, with what there is to be reached."""
    goal = "the best there is" if table.problem is not None else "a good controller"
    level = next(r for r in table.receipts if r["policy"] == goal)
    ends = [min(r["episodes"] for r in curves), max(r["episodes"] for r in curves)]
    lines = [*curves, *({**level, "seed": 0, "episodes": end} for end in ends)]
    titles = {"episodes": "episodes played", "value": "return"}
    tables.figure(path, lines, "episodes", lines="policy", title=table.task, titles=titles)


PARTS = {
    "lqr": lambda options: measure(options, "lqr"),
    "pendulum": lambda options: measure(options, "pendulum"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
