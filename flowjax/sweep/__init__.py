"""Many configs, one command: python -m flowjax.sweep --config configs/points.py --out runs/points.

points.py    what to run: product, zipped, chain, fix, sweep
jobs.py      from points to jobs: names, commands, validation of all before the first is launched
launch.py    a pool of local processes, or Slurm
results.py   one table and one figure from the receipts of all runs
"""

from flowjax.sweep.points import Point, chain, fix, product, sweep, zipped

__all__ = ["Point", "chain", "fix", "product", "sweep", "zipped"]
