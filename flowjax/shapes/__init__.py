"""Shapes: captioned scenes drawn by a law, rendered, read back from pixels, and judged against a caption."""

from flowjax.shapes.captions import VOCABULARY, CaptionLaw, detokenize, tokenize
from flowjax.shapes.render import render
from flowjax.shapes.requirements import VERDICTS, Requirement, judge, understand
from flowjax.shapes.scenes import Scene, SceneLaw, concatenate

__all__ = [
    "VERDICTS",
    "VOCABULARY",
    "CaptionLaw",
    "Requirement",
    "Scene",
    "SceneLaw",
    "concatenate",
    "detokenize",
    "judge",
    "render",
    "tokenize",
    "understand",
]
