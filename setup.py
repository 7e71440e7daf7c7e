"""Distribution `flowjax-research`, import name `flowjax` (the name `flowjax` on PyPI is another library)."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "flowjax" / "__init__.py").read_text()).group(1)

# Ranges that were installed and tested: the lower ends on Python 3.11 with jax 0.10, the newest on 3.12 with jax 0.11.
REQUIRES = [
    "jax>=0.10,<0.12",
    "flax>=0.12,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "chex>=0.1.91,<0.2",
    "ml_collections>=1.1,<2",
    "einops>=0.8,<0.9",
    "clu>=0.0.12,<0.1",
    "grain>=0.2.18,<0.3",
    "array-record>=0.8.3,<0.9",
    "pillow>=12,<14",
    "tensorflow-datasets>=4.9.9,<5",
    "diffrax>=0.7.2,<0.8",
    "jaxtyping>=0.3.9,<0.4",
    "numpy>=2.0,<3",
    "scipy>=1.15,<2",
    "scikit-learn>=1.7,<2",
    "matplotlib>=3.10,<4",
    "tensorboardX>=2.6.4,<3",
    "rich>=14,<16",
    "absl-py>=2.1,<3",
]
TEST = ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "beartype>=0.22,<0.24", "ruff>=0.14,<0.18", "gymnasium>=1.0,<2"]
EXTRAS = {
    "test": TEST,
    "parity": [
        "torch>=2.9,<3",
        "torchvision>=0.24,<1",
        "diffusers>=0.40,<0.43",
        "flow-matching>=1.0.10,<2",
        "torchcfm>=1.0.7,<2",
        "pytorch-fid>=0.3,<0.4",
        "torch-fidelity>=0.4,<0.5",
        "tokenizers>=0.23,<1",
        "transformers>=5.23,<6",
        "lpips>=0.1.4,<0.2",
    ],
    "tensorflow": ["tensorflow-cpu>=2.21,<3", "tensorboard>=2.20,<3"],  # clu's writer imports both
    "pretrained": ["safetensors>=0.6,<1", "tokenizers>=0.21,<1"],
    "cuda": ["jax[cuda13]>=0.10,<0.12"],
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "wandb": ["wandb>=0.31,<1"],
    "control": ["gymnasium>=1.0,<2"],
    "sweep": ["submitit>=1.5.4,<2"],
}

setup(
    name="flowjax-research",
    version=VERSION,
    description="Flow matching and diffusion in JAX: pre-train, tune, distil, steer and measure, from a laptop to a pod.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["flowjax", "flowjax.*"]),
    package_data={"flowjax": ["evaluation/*.html", "evaluation/*.css", "evaluation/*.js"]},
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
