"""Which VQ-VAEs a job trains, and which shards their patches come from."""

from __future__ import annotations

from dataclasses import dataclass

from bioembed_ray.codebooks.sample import SampleRule
from bioembed_ray.config import TrainingConfig
from bioembed_ray.datasets import Dataset, PlannedEncoder
from bioembed_ray.draw import drawn_shards, groups_of
from bioembed_ray.encoders import mel_patches
from bioembed_ray.plan import Plan, Work
from bioembed_ray.versions import model_folder, plan_patches
from bioembed_ray.vqvae.mel import MelRule

MAX_HELD_OUT = 5000


@dataclass(frozen=True, slots=True)
class Training:
    """A model that is wanted.

    Attributes:
        name: Name of the encoder.
        version: Digest of all that decides it.
        folder: Where it goes: models/<name>/version=<v>.
        config: How it is trained.
        mel: The front end.
    """

    name: str
    version: str
    folder: str
    config: TrainingConfig
    mel: MelRule

    @property
    def sample(self) -> SampleRule:
        """Which patches are trained on and judged by."""
        config = self.config
        return SampleRule(config.patches, config.held_out, MAX_HELD_OUT, config.balance)


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model that does not stand, and where its patches come from.

    Attributes:
        training: The model.
        patches: Its front end, as an encoder of its own.
        groups: Recording -> group that shares the sample; None takes all alike.
    """

    training: Training
    patches: PlannedEncoder
    groups: dict[str, str] | None

    @property
    def source(self) -> Dataset:
        """Where the patches stand while the model is trained."""
        return self.patches.outputs[0].embeddings


def missing_models(plan: Plan) -> list[WantedModel]:
    """Return the models that encoders of a plan wait for.

    Raises:
        ConfigError: a column to balance by that the manifest lacks.
    """
    found = []
    for encoder in plan.encoders:
        if not encoder.is_untrained:
            continue
        name = encoder.name
        config, mel = mel_patches.settings(plan.job.encoders[name])
        folder = model_folder(name, plan.job)
        training = Training(name, folder.rpartition("version=")[2], folder, config, mel)
        patches = plan_patches(name, plan.job)
        key = f"encoders.{name}.training.balance"
        groups = groups_of(plan.ledger, config.balance, key)
        found.append(WantedModel(training, patches, groups))
    return found


def shards_of(plan: Plan, wanted: WantedModel) -> list[str]:
    """Return the ids of the shards that a training draws on, ascending."""
    return drawn_shards(plan, wanted.patches, wanted.training.sample, wanted.groups)


def patch_work(plan: Plan, wanted: WantedModel) -> list[Work]:
    """Return the shards whose patches have to be made before the model can be trained."""
    standing = plan.standing(wanted.source)
    shards = shards_of(plan, wanted)
    return [Work(plan.shards[shard], (wanted.source,)) for shard in shards if shard not in standing]
