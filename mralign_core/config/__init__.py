"""The run configuration: one frozen section a stage, a file each; every field documented, unknown fields refused.

Nothing else in the project reads settings. Field docstrings are what ``--help``, the Prefect form and the error
messages show. Defaults are the paper's values (arXiv 2510.24794) where it gives one.
"""

from mralign_core.config.annotate import AnnotateConfig
from mralign_core.config.base import Section
from mralign_core.config.distil import DistilConfig
from mralign_core.config.endpoint import AskAgain, AskingSection, EndpointConfig
from mralign_core.config.estimate import EstimateConfig
from mralign_core.config.evaluate import EvaluateConfig
from mralign_core.config.generate import GenerateConfig
from mralign_core.config.induce import InduceConfig
from mralign_core.config.judge import EvidenceConfig, JudgeConfig
from mralign_core.config.match import MatchConfig
from mralign_core.config.model import ModelConfig, PocketConfig
from mralign_core.config.questions import QuestionsConfig, QuestionSetConfig
from mralign_core.config.reward import RewardConfig
from mralign_core.config.run import RunConfig, load_config, overridden, parse_config
from mralign_core.config.sampling import VllmConfig
from mralign_core.config.storage import RetentionConfig, StorageConfig
from mralign_core.config.train import TrainConfig, Variant

__all__ = [
    "AnnotateConfig",
    "AskAgain",
    "AskingSection",
    "DistilConfig",
    "EndpointConfig",
    "EstimateConfig",
    "EvaluateConfig",
    "EvidenceConfig",
    "GenerateConfig",
    "InduceConfig",
    "JudgeConfig",
    "MatchConfig",
    "ModelConfig",
    "PocketConfig",
    "QuestionSetConfig",
    "QuestionsConfig",
    "RetentionConfig",
    "RewardConfig",
    "RunConfig",
    "Section",
    "StorageConfig",
    "TrainConfig",
    "Variant",
    "VllmConfig",
    "load_config",
    "overridden",
    "parse_config",
]
