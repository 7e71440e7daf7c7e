"""What the literature calls different methods, as config deltas of `flow_matching`.

| preset         | path      | prediction | loss  | times        | weight | else                                     |
| rectified_flow | linear    | velocity   | same  | uniform      | 1      | Liu et al. 2022, Lipman et al. 2022      |
| sd3            | linear    | velocity   | same  | logit-normal | 1      | Esser et al. 2024                        |
| ddpm           | vp        | noise      | same  | uniform      | 1      | Ho et al. 2020, in continuous time       |
| dsm            | sub_vp    | score      | noise | uniform      | 1      | Song et al. 2020: |sigma score + x0|^2    |
| v              | vp_cosine | v          | same  | uniform      | 1      | Salimans & Ho 2022                       |
| edm            | edm       | data       | same  | log-normal   | edm    | Karras et al. 2022, with preconditioning |
| pfgmpp         | edm       | data       | same  | log-normal   | edm    | Xu et al. 2023: edm with another noise   |

A preset sets all seven entries that distinguish them, so applying one on top of another leaves nothing behind, and
leaves alone the network, the data, the optimizer and the samplers' grids.
"""

from ml_collections import ConfigDict

from flowjax.choices import choose


def _preset(path, prediction, loss=None, time="uniform", weight="uniform", noise=None, preconditioning="none"):
    return dict(
        path=dict(name=path),
        method=dict(prediction=prediction, loss=loss or prediction),
        time=dict(name=time),
        weight=dict(name=weight),
        noise=noise or dict(name="gaussian"),
        preconditioning=dict(name=preconditioning),
    )


PRESETS: dict[str, dict] = {
    "rectified_flow": _preset("linear", "velocity"),
    "sd3": _preset("linear", "velocity", time="logit_normal"),
    "ddpm": _preset("vp", "noise"),
    "dsm": _preset("sub_vp", "score", loss="noise"),
    "v": _preset("vp_cosine", "v"),
    "edm": _preset("edm", "data", time="edm_log_normal", weight="edm", preconditioning="edm"),
    "pfgmpp": _preset(
        "edm",
        "data",
        time="edm_log_normal",
        weight="edm",
        preconditioning="edm",
        noise=dict(name="pfgmpp", dimensions=128),
    ),
}


def apply_preset(config: ConfigDict, name: str) -> ConfigDict:
    """Writes a preset's entries into a config, in place. The other options of `method` (label_dropout) are kept."""
    for key, spec in choose("preset", name, PRESETS).items():
        kept = dict(config.method) if key == "method" else {}
        config[key] = ConfigDict({**kept, **spec})
    return config
