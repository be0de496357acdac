"""Where encoders and language models come from, and the device they run on."""

from loragen_infer.models.base_model import load_base_model
from loragen_infer.models.locate import hub_name, hub_revision, locate_model

__all__ = ["hub_name", "hub_revision", "load_base_model", "locate_model"]
