from .config import GenerateConfig as GenerateConfig
from .run import run_generate as run_generate
