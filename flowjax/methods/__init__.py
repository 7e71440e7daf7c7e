"""Training algorithms: each reads a config, wires networks to losses and returns a contract.Method."""

from flowjax.methods.adversarial import add, ladd
from flowjax.methods.autoencoder import autoencoder
from flowjax.methods.best_of import best_of
from flowjax.methods.boot import boot
from flowjax.methods.consistency import consistency
from flowjax.methods.continuous_consistency import continuous_consistency
from flowjax.methods.direct import direct
from flowjax.methods.distribution_matching import dmd, dmd2, sid
from flowjax.methods.flow_matching import flow_matching
from flowjax.methods.mean_flow import mean_flow
from flowjax.methods.moment_matching import moment_matching
from flowjax.methods.negative_aware import negative_aware
from flowjax.methods.perflow import perflow
from flowjax.methods.policy_gradient import PRESETS as POLICY_GRADIENTS
from flowjax.methods.preference import dpo, kto
from flowjax.methods.progressive import progressive
from flowjax.methods.reflow import reflow
from flowjax.methods.reinflow import reinflow
from flowjax.methods.reward_gradient import draft, refl
from flowjax.methods.reward_model import reward_model
from flowjax.methods.shortcut import shortcut
from flowjax.methods.trajectory_consistency import trajectory_consistency

METHODS = {
    "flow_matching": flow_matching,
    "autoencoder": autoencoder,
    "mean_flow": mean_flow,
    "direct": direct,
    "boot": boot,
    "perflow": perflow,
    "progressive": progressive,
    "reflow": reflow,
    "dmd": dmd,
    "dmd2": dmd2,
    "sid": sid,
    "add": add,
    "ladd": ladd,
    "consistency": consistency,
    "continuous_consistency": continuous_consistency,
    "moment_matching": moment_matching,
    "shortcut": shortcut,
    "trajectory_consistency": trajectory_consistency,
    "best_of": best_of,
    "dpo": dpo,
    "kto": kto,
    "nft": negative_aware,
    "refl": refl,
    "draft": draft,
    "reward_model": reward_model,
    **POLICY_GRADIENTS,
    "reinflow": reinflow,
}
