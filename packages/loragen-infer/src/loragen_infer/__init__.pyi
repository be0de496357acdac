from .adapters import adapter_attached as adapter_attached
from .adapters import swap_adapter as swap_adapter
from .bundle import GeneratorBundle as GeneratorBundle
from .encoder import PromptEncoder as PromptEncoder
from .errors import LoragenInferError as LoragenInferError
from .evaluation import TaskMeans as TaskMeans
from .generator import LoraGenerator as LoraGenerator
from .generator import scale_adapter as scale_adapter
