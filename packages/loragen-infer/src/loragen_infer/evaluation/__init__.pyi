from .config import EvaluateConfig as EvaluateConfig
from .run import evaluate as evaluate
from .task_means import TaskMeans as TaskMeans
