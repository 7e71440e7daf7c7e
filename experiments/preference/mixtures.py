"""Preference tuning where the best is known: every method on a flow of a Gaussian mixture, against the true frontier.

    python experiments/preference/mixtures.py [--tiny] [--parts linear quadratic] [--only PATTERN] [--seeds 0 1 2] [--work DIR]

For a linear or a quadratic reward the most that can be gained at a divergence is closed form (paths/closed_forms.py). Each run
of configs/preference.py goes on from one flow of four uneven modes; its watchdog measures the gain over that flow, and the
divergence by likelihood. Best of N draws at log N - (N - 1) / N.

    share     the gain over the most that could be gained at the run's own divergence
    path      (divergence, gain) on the way, kept in the receipt and drawn in the figure

Finished runs are not trained again; `--only "dpo*"` measures some methods anew and leaves the receipts of the others.
"""

import argparse
import sys
from collections.abc import Mapping
from fnmatch import fnmatch

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.evaluation import run_files
from flowjax.evaluation.experiment import last_receipts, run_parts, train
from flowjax.evaluation.receipts import read_receipts, replace_receipts
from flowjax.paths.closed_forms import QuadraticReward, distance_reward, linear_reward, tilt
from flowjax.paths.oracles import GaussianMixture, ring

MIXTURE = dict(modes=4, radius=1.5, std=0.3, weights="uneven")
REWARDS = {"linear": linear_reward(jnp.array([1.0, 0.0])), "quadratic": distance_reward(jnp.zeros(2))}
# How firmly the reference holds, where a method can be told: a quadratic reward gains half as much at a divergence.
FIRMNESS = {"linear": 1.0, "quadratic": 0.25}
# Comparisons of samples of the reference. Their evidence is averaged over many times and noises, and looked at most where it
# varies most: where modes are decided.
EVIDENCE = dict(
    weight=dict(name="evidence"),
    time=dict(name="beta", a=4.0, b=2.5, high=0.98, importance=True),
    optimizer=dict(learning_rate=7e-4),
)
OF_REFERENCE = dict(policy="reference", group_size=2)
# A high temperature leaves small margins, where the spread of the evidence does not bias the sigmoid. What bias is left holds a
# student near the one field among those of equal margins that costs least; where the reference holds less firmly it errs.
HIGH = 8.0
CALM = dict(OF_REFERENCE, temperature=HIGH, outcomes="expected")
AVERAGED = {"linear": dict(draws=24), "quadratic": dict(draws=8, unbiased=True)}
# As people would choose. Fewer draws leave a bias that fewer pairs do not.
CHOSEN = dict(EVIDENCE, method=dict(OF_REFERENCE, draws=96, temperature=1.0), batch_size=256)
# The gradient of a reward without end: what holds it is the data's own loss, whose gradient is small until it is too late.
SLOWER = dict(optimizer=dict(learning_rate=3e-4))
# case -> argument of the config, hold before FIRMNESS, and overrides: as published where one is named so.
CASES: dict[str, tuple[str, float | None, dict]] = {
    "flow_grpo": ("method=flow_grpo", 1.0, {}),
    "flow_grpo_fast": ("method=flow_grpo_fast", 1.0, {}),
    "dance_grpo": ("method=dance_grpo", 1.0, {}),
    "mix_grpo": ("method=mix_grpo", 1.0, {}),
    "nft": ("method=nft", 1e-4, dict(method=dict(adaptive=False, highest=0.97, slope=1.0))),
    "nft_published": ("method=nft,updates=60", 1e-4, {}),
    "dpo": ("method=dpo,updates=300", 2.0 / HIGH, dict(EVIDENCE, method=CALM)),
    "dpo_published": ("method=dpo,updates=120", 1.0, {}),
    "kto": ("method=kto", 2.0, CHOSEN),
    "refl": ("method=refl", 0.3, dict(method=dict(stop=(0, 19)), **SLOWER)),
    "draft": ("method=draft,updates=300", 0.3, dict(method=dict(steps=20), **SLOWER)),
    "best_of": ("method=best_of", None, {}),
}
STEPS, BATCH, COUNT = 600, 512, 8192
MEASURED = (5, 15, 35, 60, 100)  # percent of the run
BEST_OF = (2, 4, 8, 16, 32)
FAR = 7.0  # nats
PREFIX = "watchdog_"


def flat(changes: Mapping, prefix: str = "--config.") -> list[str]:
    """Overrides of the command line; a spec replaces the one that is there."""
    found = []
    for key, value in changes.items():
        if isinstance(value, Mapping) and key in ("method", "optimizer"):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={dict(value) if isinstance(value, Mapping) else value!r}")
    return found


def part(reward: str):
    """The part of one reward."""

    def run(options: argparse.Namespace) -> None:
        base = options.work / "base"
        of_mixture = [f"--config.data.{key}={value!r}" for key, value in MIXTURE.items()]
        train(options.root, f"configs/points.py{':tiny' if options.tiny else ''}", base, *of_mixture)
        for seed in options.seeds:
            for case in (case for case in CASES if fnmatch(case, options.only)):
                receipt = measured(options, reward, case, seed, tuned(options, reward, case, seed))
                same = lambda earlier, own=(case, seed): (earlier["method"], earlier["seed"]) == own
                replace_receipts(options.out / "receipts", reward, [receipt], same)
                print(f"{reward}, {case}, seed {seed}: share {receipt['value']:.3f}", flush=True)
        drawn = [r for r in read_receipts(str(options.out / "receipts")) if r.get("part") == reward]
        picture(options.out / f"{reward}.png", reward, drawn)

    return run


def tuned(options: argparse.Namespace, reward: str, case: str, seed: int):
    """The folder of a run, trained unless it is finished."""
    argument, hold, changes = CASES[case]
    if case == "dpo":
        changes = {**changes, "method": {**changes["method"], **AVERAGED[reward]}}
    argument += f",hold={hold * FIRMNESS[reward]}" if hold is not None else ""
    argument = f"run={options.work / 'base'},reward={reward},held=none,divergence=0,spread=0,{argument}"
    if "updates=" not in argument:
        argument += f",updates={STEPS}"
    measures = [f"--config.watchdog.count={COUNT}", f"--config.evaluation.batch_size={COUNT}"]
    size = [
        f"--config.batch_size={BATCH}",
        "--config.optimizer.decay='cosine'",
        "--config.optimizer.learning_rate=1e-3",
    ]
    if options.tiny:
        argument, measures, size = f"{argument},tiny", [], []
    quiet = ["--config.evaluators={}", "--config.when.sample.at_percent=()", "--config.writers.tensorboard=False"]
    quiet.append(f"--config.when.evaluate.at_percent={MEASURED}")
    folder = options.work / reward / f"{case}_{seed}"
    config = f"configs/preference.py:{argument}"
    train(options.root, config, folder, f"--config.seed={seed}", *quiet, *measures, *size, *flat(changes))
    return folder


def measured(options: argparse.Namespace, reward: str, case: str, seed: int, folder) -> dict:
    """The receipt of a run: its share of the frontier, and its path."""
    path = [
        (line[f"eval/{PREFIX}divergence"], gain)
        for line in run_files.read_lines(folder / run_files.METRICS)
        for name, gain in line.items()
        if name.startswith(f"eval/{PREFIX}gain_")
    ]
    last = next(r for r in last_receipts(folder) if r["metric"] == f"{PREFIX}divergence")
    divergence, gain = path[-1]
    share = gain / max(float(np.interp(divergence, *frontier(reward))), 1e-9)  # a tiny run has not moved
    about = dict(metric="share", value=share, better="higher", reward=reward, method=case)
    return {**last, **about, "divergence": divergence, "gain": gain, "path": path}


def frontier(reward: str) -> tuple[np.ndarray, np.ndarray]:
    """(divergences, the most that can be gained there), rising."""
    mixture, worth = ring(**MIXTURE), REWARDS[reward]
    least = float(worth.expected(mixture))
    best = [tilt(mixture, worth, float(beta)) for beta in np.geomspace(50.0, 0.02, 200)]
    rows = [(0.0, 0.0), *((float(one.kl), float(one.expected_reward) - least) for one in best)]
    return tuple(np.asarray(rows).T)


def best_of(mixture: GaussianMixture, worth: QuadraticReward) -> list[tuple[float, float]]:
    """(divergence, gain) of the best of N, for several N: the gain by many draws."""
    values = np.sort(np.asarray(worth(mixture.sample(jax.random.key(0), 400_000))))
    ranks = (np.arange(len(values)) + 0.5) / len(values)
    gains = [float(np.mean(n * ranks ** (n - 1) * values) - values.mean()) for n in BEST_OF]
    return [(np.log(n) - (n - 1) / n, gain) for n, gain in zip(BEST_OF, gains)]


def picture(path, reward: str, receipts: list[dict]) -> None:
    """Every method's paths under the frontier, those of further seeds fainter."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(plot)
    axes = plot.subplots()
    axes.plot(*frontier(reward), color="black", lw=1.5, label="the most there is")
    axes.plot(
        *zip(*best_of(ring(**MIXTURE), REWARDS[reward])), "k^", ms=6, label=f"best of {', '.join(map(str, BEST_OF))}"
    )
    methods = sorted({receipt["method"] for receipt in receipts})
    labelled: set[str] = set()
    for receipt in sorted(receipts, key=lambda r: (r["method"], r["seed"])):
        method = receipt["method"]
        about = dict(alpha=0.4) if method in labelled else dict(label=method.replace("_", " "))
        labelled.add(method)
        divergences, gains = zip((0.0, 0.0), *receipt["path"])
        dashed = "--" if method.endswith("published") else "-"
        again, color = divmod(methods.index(method), 10)
        axes.plot(divergences, gains, dashed, marker="os"[again], ms=3, color=f"C{color}", **about)
    ends = (receipt["path"][-1][0] for receipt in receipts)
    right = 1.05 * max((end for end in ends if end < FAR), default=FAR)  # what has run away leaves the picture
    axes.set(xlabel="divergence from the first model, nats", ylabel=f"gain of the {reward} reward", xlim=(0, right))
    axes.set_ylim(0, 1.1 * float(np.interp(right, *frontier(reward))))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", metadata={"Software": None})
    run_files.write_atomically(path, buffer.getvalue())


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--only", default="*", help="only the cases whose name matches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


PARTS = {reward: part(reward) for reward in REWARDS}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())
