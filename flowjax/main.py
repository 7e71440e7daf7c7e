"""The command line: python -m flowjax.main --config=configs/digits.py [--workdir=DIR] [--mode=train] [--config.key=value]."""

import argparse
import os
import pathlib
import sys

MODES = {
    "train": "train to the end, from the latest checkpoint if there is one; sample, evaluate, write report.html",
    "sample": "draw samples from the latest checkpoint into workdir/samples",
    "eval": "measure the latest checkpoint and write receipts",
    "plan": "parameters, floating-point operations and bytes a device, before anything is allocated",
    "check": "the pre-flight doctor: shapes, gradients, time density, precision, one batch learnt by heart",
    "combine": "search a linear combination of the kept checkpoints that measures best; --combined uses it",
    "pairs": "make the stored pairs of the data source 'pairs': noise and where its teacher's flow takes it",
    "replay": "repeat the update at which a run stopped with a NaN, and say where it began",
}


class Parser(argparse.ArgumentParser):
    """A mistake is one line, as every other one, and not a page of usage."""

    def error(self, message):
        """Ends with exit status 2."""
        self.exit(2, f"flowjax: {message} (--help lists the options)\n")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into its own options and the --config.key=value overrides."""
    parser = Parser(
        prog="python -m flowjax.main",
        description="Train, sample, evaluate, plan or check a FlowJAX config.",
        epilog="modes:\n" + "\n".join(f"  {name:7} {text}" for name, text in MODES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, help="a config file, with an argument after a colon: configs/digits.py:tiny"
    )
    parser.add_argument("--workdir", help="where the run lives (default: runs/NAME)")
    parser.add_argument("--mode", default="train", choices=MODES, help="what to do (default: train)")
    parser.add_argument("--sampler", help="sample and eval: which of the config's samplers")
    parser.add_argument("--count", type=int, help="sample and eval: how many samples")
    parser.add_argument(
        "--ema_std", type=float, help="sample and eval: a power-function average made afterwards, e.g. 0.08"
    )
    parser.add_argument(
        "--combined",
        action="store_true",
        help="sample and eval: the combination of checkpoints that --mode=combine found",
    )
    parser.add_argument("--metric", help="combine: what of the evaluators to improve (default: the first)")
    parser.add_argument(
        "--trials", type=int, default=200, help="combine: how many combinations to measure (default: 200)"
    )
    parser.add_argument("--out", help="sample: also write the samples as arrays to this .npz file")
    parser.add_argument("--platform", help="cpu, gpu or tpu; the default is the best there is")
    parser.add_argument(
        "--distributed", action="store_true", help="several hosts: start jax.distributed (Slurm, Kubernetes, TPU pods)"
    )
    parser.add_argument("--coordinator", help="several hosts without a launcher: HOST:PORT of process 0")
    parser.add_argument("--processes", type=int, help="with --coordinator: how many processes")
    parser.add_argument("--process", type=int, help="with --coordinator: which one this is, from 0")
    known, rest = parser.parse_known_args(arguments)
    if known.count is not None and known.count < 1:
        parser.error(f"--count is {known.count}; it must be at least 1")
    if (known.processes is not None or known.process is not None) and not known.coordinator:
        parser.error("--processes and --process go with --coordinator=HOST:PORT")
    if known.trials < 1:
        parser.error(f"--trials is {known.trials}; it must be at least 1")
    if known.combined and known.ema_std is not None:
        parser.error("--combined and --ema_std are two ways to make parameters after training; give one")
    if known.out and not pathlib.Path(known.out).absolute().parent.is_dir():
        parser.error(f"--out={known.out}: there is no folder {pathlib.Path(known.out).parent}")
    overrides, i = [], 0
    while i < len(rest):
        name, equals, value = rest[i].partition("=")
        if not name.startswith("--config."):
            parser.error(f"unknown option {rest[i]}; config entries are set as --config.key=value")
        if not equals:
            i += 1
            if i == len(rest):
                parser.error(f"{name} needs a value: {name}=VALUE")
            value = rest[i]
        overrides.append(f"{name.removeprefix('--config.')}={value}")
        i += 1
    return known, overrides


def main(arguments: list[str] | None = None) -> int:
    """Runs one mode; a mistake of the user ends in one line on stderr and exit status 2, a failed run in 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, overrides = parse(arguments)
    if options.platform:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.platform, options.platform)
    import absl.logging

    from flowjax.config import ConfigError, load

    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells about each of its own steps otherwise

    try:
        config = load(options.config, overrides)
    except ConfigError as error:
        return _refuse(error, 2)
    if options.distributed or options.coordinator:
        import jax

        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    try:
        import jax

        jax.devices()
    except Exception as error:  # JAX raises whatever its plugins do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _refuse(f"--platform={options.platform or 'default'} is not available here: {reason}", 2)
    from flowjax import disk, modes
    from flowjax.training.checkpoints import CheckpointError
    from flowjax.training.guard import NotFinite

    workdir = pathlib.Path(options.workdir or os.path.join("runs", config.name))
    try:
        with disk.told(workdir):
            return modes.MODES[options.mode](config, workdir, options) or 0
    except (ConfigError, CheckpointError, NotFinite) as error:
        return _refuse(f"{error}{_leftover(str(error), overrides)}", 2 if isinstance(error, ConfigError) else 1)
    except ImportError as error:
        if "pip install" not in str(error):  # a mistake of ours, not a package that the user left out
            raise
        return _refuse(error, 2)
    except OSError as error:
        what = f"{error.strerror}: '{error.filename}'" if error.filename else str(error)
        return _refuse(
            f"{what} (--workdir={workdir} must be a folder that can be written)" if error.filename else what, 1
        )


def _leftover(message: str, overrides: list[str]) -> str:
    """What to do when --config.network.name=unet meets options that the config file gave to another network."""
    named = [override.partition("=") for override in overrides if override.partition("=")[0].endswith(".name")]
    if "has no option" not in message or not named:
        return ""
    ways = " or ".join(f"--config.{key.removesuffix('.name')}=\"{{'name': '{value}'}}\"" for key, _, value in named)
    return f" If the config file set it, for another name, replace the whole entry: {ways}."


def _refuse(error: Exception | str, status: int) -> int:
    print(f"flowjax: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
