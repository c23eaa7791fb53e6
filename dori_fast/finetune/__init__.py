"""Fine-tuning: remove memorized images from the weights, not only from the prompts."""

from dori_fast.finetune.adversarial import Adversarial
from dori_fast.finetune.checkpoint import Checkpoint
from dori_fast.finetune.step_report import StepReport
from dori_fast.finetune.surrogates import Surrogates, surrogates
from dori_fast.finetune.triggers import Pool

__all__ = ["Adversarial", "Checkpoint", "Pool", "StepReport", "Surrogates", "surrogates"]
