"""From prompts to embeddings."""

from loragen_infer.encoder.base import ConditionEncoder
from loragen_infer.encoder.condition import Condition, load_encoder
from loragen_infer.encoder.encoder import PromptEncoder
from loragen_infer.encoder.state_encoder import StateEncoder

__all__ = [
    "Condition",
    "ConditionEncoder",
    "PromptEncoder",
    "StateEncoder",
    "load_encoder",
]
