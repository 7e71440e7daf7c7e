"""Speed of our programs against PyTorch doing the same work, as ratios measured in one run on one machine.

    python experiments/bench/run.py [--tiny] [--only NAME ...] [--torch PYTHON] [--rounds N] [--no-compile]

The PyTorch side (torch_side.py, torch_worker.py) runs in a process of its own under `--torch` (default: this interpreter,
with the extra `parity`), with as many threads as there are cores, and times on request: the two sides take turns, so
that a busy moment of the machine falls on both. Before a case is timed, our parameters are loaded there and the outputs
of the two networks are compared. On a machine with a GPU that both see, both use it.

Writes receipts/*.json, one for each case and variant of PyTorch; `value` is its time over ours. Then:

    python -m flowjax.evaluation.tables experiments/bench/README.md
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from jax_side import Side, cases, config_of, torch_options

from flowjax.evaluation.receipts import check_receipt, make_receipt
from flowjax.evaluation.run_files import write_atomically

HERE = pathlib.Path(__file__).parent
LARGEST_DIFFERENCE = 1e-3  # of the outputs of the two sides on the same parameters, over the largest output
LONGEST, LEAST_ROUNDS = 30.0, 3  # seconds of turns for one case, and how many turns it has at least
PAUSE = 0.05  # seconds between turns: the threads of the side that has finished stop spinning


class Worker:
    """The PyTorch process."""

    def __init__(self, python: str, threads: int):
        command = [python, str(HERE / "torch_worker.py"), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                "The PyTorch process ended. Give an interpreter that has PyTorch with --torch PYTHON, or install the "
                "extra: pip install 'flowjax-research[parity]'."
            )
        return json.loads(line)

    def ask(self, **request) -> dict:
        """One request, one answer."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Lets the process end."""
        self.process.stdin.close()
        self.process.wait(timeout=30)


def measure(name: str, case: dict, worker: Worker, variants: list[str], rounds: int) -> dict:
    """Times of both sides, turn by turn: {'jax': [...], 'eager': [...], ...}, in seconds for one update or draw."""
    side = Side(case)
    request = dict(
        network=case["network"]["name"],
        torch=torch_options(case),
        kind=case["kind"],
        batch_size=case["batch_size"],
        classes=0 if len(case["shape"]) == 1 else 10,
        steps=case.get("steps", 0),
    )
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/arrays.npz", **side.arrays())
        built = worker.ask(do="build", case=request, file=f"{folder}/arrays.npz")
    if "error" in built:
        raise SystemExit(f"{name}: {built['error']}")
    if built["parameters"] != side.parameters or not built["difference"] < LARGEST_DIFFERENCE:
        raise SystemExit(f"{name}: the networks differ: {built}, {side.parameters} parameters here.")

    calls = {"jax": side.time}
    failed = {}
    for variant in variants:
        calls[variant] = lambda count, variant=variant: worker.ask(do="time", variant=variant, count=count)
    for variant, call in list(calls.items()):  # compiles, allocates, warms up
        answer = call(case.get("dispatch", 1) if variant == "jax" else 2)
        if "error" in answer:
            failed[variant] = answer["error"]
            print(f"  {name}: PyTorch {variant} does not run here: {answer['error']}", flush=True)
            del calls[variant]
    times = {variant: [] for variant in calls}
    start = time.perf_counter()
    for index in range(rounds):
        if index >= LEAST_ROUNDS and time.perf_counter() - start > LONGEST:
            break
        order = list(calls) if index % 2 == 0 else list(calls)[::-1]
        for variant in order:
            time.sleep(PAUSE)
            answer = calls[variant](case["repeat"])
            times[variant].append({key: value / case["repeat"] for key, value in answer.items()})
    return dict(times=times, parameters=side.parameters, difference=built["difference"], images=side.step)


def write_receipts(name: str, case: dict, result: dict, worker: Worker, seconds: float) -> None:
    """One receipt for each variant of PyTorch: the ratio of the medians, and of each pair of turns."""
    ours = result["times"]["jax"]
    rounds = len(ours)
    median = lambda times, key: float(np.median([item[key] for item in times]))
    for variant, theirs in result["times"].items():
        if variant == "jax":
            continue
        ratios = [b["wall"] / a["wall"] for a, b in zip(ours, theirs)]
        receipt = make_receipt(
            metric="speed_ratio",
            value=float(np.median(ratios)),
            config=config_of(case).to_dict(),
            config_path="experiments/bench/jax_side.py",
            seed=0,
            images_seen=result["images"] * case["batch_size"],
            seconds=seconds,
            sampler="heun" if case["kind"] == "sample" else "none",
            nfe=2 * case["steps"] if case["kind"] == "sample" else None,
            guidance_scale=None,
            ema="student",
            evaluator=f"time of PyTorch {variant} over ours, {rounds} turns of each",
            samples=rounds,
            case=name,
            variant=variant,
            least=min(ratios),
            most=max(ratios),
            processor_ratio=median(theirs, "processor") / median(ours, "processor"),
            milliseconds=1000 * median(ours, "wall"),
            torch_milliseconds=1000 * median(theirs, "wall"),
            parameters=result["parameters"],
            largest_difference=result["difference"],
            better="higher",
            threads=worker.about["threads"],
            versions=dict(jax=jax.__version__, torch=worker.about["version"]),
            devices=dict(jax=jax.devices()[0].platform, torch="cpu" if worker.about["device"] == "cpu" else "gpu"),
        )
        check_receipt(receipt)
        # A name of its own, so that measuring again on such a machine replaces the receipt.
        path = HERE / "receipts" / f"{jax.devices()[0].platform}_{name}_{variant}.json"
        write_atomically(path, json.dumps(receipt, indent=2) + "\n")


def main() -> None:
    """Measures every case and writes receipts, unless --tiny."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks, few repeats, no receipts")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(cases(False))}")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each side (default 9, tiny 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no-receipts", action="store_true", help="print only")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.tiny else 9)
    listed = cases(options.tiny)
    unknown = set(options.only or ()) - set(listed)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(listed)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    worker = Worker(options.torch, cores)
    for name, case in listed.items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        variants = ["eager"]
        variants += ["channels_last"] if case["network"]["name"] == "unet" else []
        variants += ["compile"] if case["compile"] and not (options.no_compile or options.tiny) else []
        result = measure(name, case, worker, variants, rounds)
        seconds = time.perf_counter() - start
        ours = result["times"]["jax"]
        for variant, times in result["times"].items():
            walls, processor = ([item[key] for item in times] for key in ("wall", "processor"))
            ratios = [b["wall"] / a["wall"] for a, b in zip(ours, times)]
            print(
                f"{name:14} {variant:14} {1000 * np.median(walls):9.2f} ms  processor {1000 * np.median(processor):9.2f} ms"
                f"  ratio {np.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                f"  processor {np.median(processor) / np.median([item['processor'] for item in ours]):5.2f}",
                flush=True,
            )
        print(f"{name:14} {seconds:.0f} s", flush=True)
        if not options.tiny and not options.no_receipts:
            write_receipts(name, case, result, worker, seconds)
    worker.close()


if __name__ == "__main__":
    main()
