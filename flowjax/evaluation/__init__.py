"""Evaluation: distances, coverage, features, and the evaluators that put a floor beside every figure (EVALUATORS)."""

from flowjax.evaluation.evaluators import EVALUATORS, HIGHER_IS_BETTER, Evaluator

__all__ = ["EVALUATORS", "HIGHER_IS_BETTER", "Evaluator"]
