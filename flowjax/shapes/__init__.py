"""Shapes: captioned scenes drawn by a law, rendered, read back from pixels, and judged against a caption."""
