"""The receipt of a figure that was measured of a run's parameters."""

from typing import Any

from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import make_receipt
from flowjax.training.run import Run


def receipt_of(run: Run, metric: str, value: float, step: int, seconds: float, **about: Any) -> dict[str, Any]:
    """A receipt, with what a run itself says of it.

    Args:
      run: its config and seed.
      metric: what was measured.
      value: what came out.
      step: how many updates made the parameters.
      seconds: how long that took.
      **about: the other fields of receipts.make_receipt.
    """
    config = run.config
    return make_receipt(
        metric,
        float(value),
        config=config.to_dict(),
        config_path=run_files.CONFIG,
        seed=config.seed,
        images_seen=run.images(step),
        seconds=seconds,
        step=step,
        **about,
    )
