"""FlowJAX: train, tune, distil, steer and measure flow-matching and diffusion models in JAX."""

__version__ = "0.1.0"
