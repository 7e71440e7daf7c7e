r"""The KL autoencoder of latent diffusion: L1 + perceptual + KL, and from some step on an adversary.

Roles: autoencoder, discriminator, the averages of config.ema, and `perceptual`, a frozen image network.

    phase          trains         loss
    autoencoder    autoencoder    equation (2) of losses/autoencoding.py; its adversarial term from `adversarial_start` on
    discriminator  discriminator  hinge of real images and reconstructions (+ R1), due from `adversarial_start` on

Both phases run at every step, one after the other: the discriminator sees the reconstructions of the autoencoder that has
just moved. Each draws its own latents. The adaptive weight is a ratio of gradients of means over a batch: with gradient
accumulation or pmap it is that of the micro-batch at hand, the one place where a loss here depends on its neighbours.

What a flow then learns is the latents of a finished run: data source `latents` (data/latents.py).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, normal_rows
from flowjax.choices import Spec, build
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase, Role, Sampler
from flowjax.losses import adversarial as games
from flowjax.losses import autoencoding as losses
from flowjax.methods import judges
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import average_roles, joined, refuse_unread
from flowjax.models.autoencoder import AUTOENCODERS, Autoencoder
from flowjax.models.discriminator import DISCRIMINATORS, Discriminator
from flowjax.models.perceptual import Perceptual, make_perceptual

READINGS = {
    **judges.READINGS,
    "l1": "The absolute error of a pixel. Falls quickly, then slowly.",
    "perceptual": "The distance that a frozen network sees.",
    "kl": "Of the posterior from a normal, per picture. It rises as latents begin to say something, and then stays.",
    "adversarial": judges.GENERATOR_READING,
    "adaptive_weight": "The ratio of gradients at the last layer.",
}


STUDENT, JUDGE, EYE = "autoencoder", "discriminator", "perceptual"  # the roles
UNREAD = ("coupling", "path", "time", "weight", "noise", "preconditioning")
LARGEST_KL = 10.0  # nats a latent value at the start: more is a posterior far from the prior before any training
LARGEST_PULL = 1.0  # of the KL on the encoder at the start, over that of the reconstruction

Values = Float[Array, " b"]
Images = Float[Array, "b height width c"]


def autoencoder(
    config: ConfigDict,
    data: DataSpec,
    kl_weight: float = 1e-6,
    perceptual: Spec | None = None,
    perceptual_weight: float = 1.0,
    adversarial_weight: float = 0.5,
    adversarial_start: int = 0,
    discriminator: Spec | None = None,
    discriminator_optimizer: Spec | None = None,
    penalty_weight: float = 0.0,
) -> Method:
    """Trains config.network, a spec of models.autoencoder.AUTOENCODERS.

    Args:
      config: network, optimizer, ema, samplers ('reconstruct', 'prior').
      data: shape of the images.
      kl_weight: w_k of equation (2): 1e-6 for latents that a flow is to model, about 1 for a generative model by itself.
      perceptual: spec of models/perceptual.py, such as dict(name='features', extractor='efficientnet_lite0'). None for no
        such term.
      perceptual_weight: w_p.
      adversarial_weight: w_a; 0 for no adversary at all.
      adversarial_start: the step from which on the adversary plays.
      discriminator: spec of models.discriminator.DISCRIMINATORS.
      discriminator_optimizer: its optimizer; None for one like config.optimizer.
      penalty_weight: of the R1 penalty on real images; 0 for none.
    """
    refuse_unread(config, UNREAD, "autoencoder")
    if data.masked:
        raise ValueError(
            "An autoencoder reads no masks, so it would learn the padding of images of several sizes. Leave mask_multiple out "
            "of the data."
        )
    numbers = dict(
        kl_weight=kl_weight,
        perceptual_weight=perceptual_weight,
        adversarial_weight=adversarial_weight,
        penalty_weight=penalty_weight,
    )
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"method.{name} is {value}; it must be at least 0.")
    if perceptual is None and perceptual_weight != 1.0:
        raise ValueError(f"method.perceptual_weight is {perceptual_weight}, but method.perceptual names no network.")
    if not adversarial_weight and (discriminator or discriminator_optimizer or penalty_weight or adversarial_start):
        raise ValueError(
            "method.adversarial_weight is 0, so there is no discriminator: drop discriminator, discriminator_optimizer, "
            "penalty_weight and adversarial_start, or give it a weight."
        )
    model = build("autoencoder", config.network, AUTOENCODERS, data=data, dtype=config.precision)
    optimizer = make_optimizer(config.optimizer, config.steps)
    roles = {STUDENT: Role(init=model.init, tx=optimizer.tx, learning_rate=optimizer.learning_rate)}
    judge = None
    if adversarial_weight:
        spec = discriminator or dict(name="patch")
        judge = build("discriminator", spec, DISCRIMINATORS, data=data, dtype=config.precision)
        own = make_optimizer(discriminator_optimizer or config.optimizer, config.steps)
        roles[JUDGE] = Role(init=judge.init, tx=own.tx, learning_rate=own.learning_rate)
    eye = None
    if perceptual is not None:
        eye = make_perceptual(perceptual)
        roles[EYE] = eye.role
    game = _Game(model, judge, eye, adversarial_start=adversarial_start, **numbers)
    phases = {STUDENT: Phase(game.autoencoder_loss, trains=(STUDENT,))}
    if judge is not None:
        phases[JUDGE] = Phase(game.discriminator_loss, trains=(JUDGE,), start=adversarial_start)
    samplers = {
        name: build("sampler of an autoencoder", spec, SAMPLERS, model=model)
        for name, spec in config.samplers.to_dict().items()
    }
    checks = {"posterior_at_the_start": game.check_posterior, "gradient_balance": game.check_balance}
    return Method(joined(roles, average_roles(config, STUDENT)), phases, samplers, checks=checks, readings=READINGS)


@dataclasses.dataclass(frozen=True)
class _Game:
    """The players and the weights of their terms; its methods are the phases' losses and the checks."""

    model: Autoencoder
    judge: Discriminator | None
    eye: Perceptual | None
    kl_weight: float
    perceptual_weight: float
    adversarial_weight: float
    adversarial_start: int
    penalty_weight: float

    def posterior(
        self, tree: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."], Float[Array, "b ..."]]:
        """Mean and log-variance of the posterior, and one latent drawn from it for each example."""
        mean, logvar = self.model.encode(tree, batch["data"])
        noise = normal_rows(example_keys(key, batch["row"]), mean.shape[1:])
        return mean, logvar, losses.sample_posterior(mean, logvar, noise)

    def reconstruction(self, params: Params, painted: Images, images: Images) -> tuple[Values, Metrics]:
        """What the autoencoder is to keep of an image, and its terms."""
        absolute = losses.absolute_error(images, painted)
        if self.eye is None:
            return absolute, {"l1": absolute}
        distance = self.eye.distance(jax.lax.stop_gradient(params[EYE]), painted, images)
        return absolute + self.perceptual_weight * distance, {"l1": absolute, "perceptual": distance}

    def fooling(self, params: Params, painted: Images) -> Values:
        """The adversarial term, of a discriminator that holds still."""
        return games.generator_hinge(self.judge.apply(jax.lax.stop_gradient(params[JUDGE]), painted))

    def balance(self, params: Params, hidden: Float[Array, "b ..."], batch: Batch) -> Float[Array, ""]:
        """lambda of equation (3); nothing before the output layer is differentiated."""
        hidden, params = jax.lax.stop_gradient((hidden, params))
        paint = lambda layer: self.model.output({"output": layer}, hidden)
        return losses.balanced(
            lambda layer: self.reconstruction(params, paint(layer), batch["data"])[0],
            lambda layer: self.fooling(params, paint(layer)),
            params[STUDENT]["output"],
            batch["mask"],
        )

    def autoencoder_loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Values, Metrics]:
        """Equation (2)."""
        tree, images = params[STUDENT], batch["data"]
        mean, logvar, latents = self.posterior(tree, batch, key)
        hidden = self.model.hidden(tree, latents)
        painted = self.model.output(tree, hidden)
        value, metrics = self.reconstruction(params, painted, images)
        kl = losses.gaussian_kl(mean, logvar)
        value = value + self.kl_weight * kl / math.prod(images.shape[1:])
        metrics = {**metrics, "kl": kl}
        if self.judge is None:
            return value, metrics
        play = lambda: (self.fooling(params, painted), self.balance(params, hidden, batch))
        wait = lambda: (jnp.zeros(len(images)), jnp.zeros(()))
        adversarial, gain = jax.lax.cond(jnp.max(batch["step"]) >= self.adversarial_start, play, wait)
        value = value + self.adversarial_weight * gain * adversarial
        return value, {**metrics, "adversarial": adversarial, "adaptive_weight": gain}

    def discriminator_loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Values, Metrics]:
        """The hinge, and the penalty where it has a weight."""
        score = lambda images: self.judge.apply(params[JUDGE], images)
        latents = self.posterior(params[STUDENT], batch, key)[2]
        real, fake = score(batch["data"]), score(self.model.decode(params[STUDENT], latents))
        value = games.discriminator_hinge(real, fake)
        metrics = {"logits_real": -games.generator_hinge(real), "logits_fake": -games.generator_hinge(fake)}
        if not self.penalty_weight:
            return value, metrics
        penalty = games.gradient_penalty(score, batch["data"])
        return value + self.penalty_weight * penalty, {**metrics, "penalty": penalty}

    def check_posterior(self, params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        """The KL before any training, a latent value."""
        mean, logvar = jax.jit(self.model.encode)(params[STUDENT], batch["data"])
        kl = losses.masked_mean(losses.gaussian_kl(mean, logvar), batch["mask"]) / math.prod(mean.shape[1:])
        return CheckResult(
            "posterior_at_the_start",
            bool(kl < LARGEST_KL),
            f"{float(kl):.3g} nats a latent value, means of std {float(mean.std()):.3g}",
            "The encoder starts far from the prior: look at the scale of the data and at the encoder's first layers.",
        )

    def check_balance(self, params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        """How hard the KL pulls at the encoder beside the reconstruction, and how the adversary is weighted."""

        @jax.jit
        def measure(params, batch, key):
            tree, images = params[STUDENT], batch["data"]

            def pull(term):
                def loss(encoder):
                    changed = {**tree, "encoder": encoder}
                    mean, logvar, latents = self.posterior(changed, batch, key)
                    values = (
                        self.kl_weight * losses.gaussian_kl(mean, logvar) / math.prod(images.shape[1:])
                        if term == "kl"
                        else self.reconstruction(params, self.model.decode(changed, latents), images)[0]
                    )
                    return losses.masked_mean(values, batch["mask"])

                return losses.norm(jax.grad(loss)(tree["encoder"]))

            hidden = self.model.hidden(tree, self.posterior(tree, batch, key)[2])
            gain = self.balance(params, hidden, batch) if self.judge is not None else jnp.zeros(())
            return pull("kl"), pull("reconstruction"), gain

        kl, reconstruction, gain = (float(value) for value in measure(params, batch, key))
        adversary = f"; adversary times {self.adversarial_weight:.3g} x {gain:.3g}" if self.judge is not None else ""
        return CheckResult(
            "gradient_balance",
            math.isfinite(kl + reconstruction + gain) and kl <= LARGEST_PULL * reconstruction,
            f"on the encoder: reconstruction {reconstruction:.3g}, KL {kl:.3g}{adversary}",
            "The KL outweighs the reconstruction, so the latents would carry nothing: lower method.kl_weight.",
        )


def reconstruct(model: Autoencoder, role: str = "ema", sampled: bool = False) -> Sampler:
    """Real, held-out images through encoder and decoder.

    Args:
      model: the autoencoder.
      role: whose parameters.
      sampled: decode a latent drawn from the posterior instead of its mean.
    """

    def draw(params, conditions, keys):
        mean, logvar = model.encode(params[role], conditions["data"])
        latents = losses.sample_posterior(mean, logvar, normal_rows(keys, mean.shape[1:])) if sampled else mean
        return model.decode(params[role], latents)

    return Sampler(draw, role, dict(sampler="reconstruct", nfe=1, sampled=sampled, role=role), reads=("data",))


def prior(model: Autoencoder, role: str = "ema") -> Sampler:
    """Latents from N(0, I), decoded: samples of a variational autoencoder, and a picture of what a small KL weight leaves.

    Args:
      model: the autoencoder.
      role: whose parameters.
    """

    def draw(params, conditions, keys):
        return model.decode(params[role], normal_rows(keys, model.latent_shape))

    return Sampler(draw, role, dict(sampler="prior", nfe=1, role=role))


SAMPLERS = {"reconstruct": reconstruct, "prior": prior}
