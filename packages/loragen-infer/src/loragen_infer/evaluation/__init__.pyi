from .config import EvaluateConfig as EvaluateConfig
from .run import evaluate as evaluate
from .task_means import TASK_MEANS_NAME as TASK_MEANS_NAME
from .task_means import TaskMeans as TaskMeans
from .task_means import TaskMeansWriter as TaskMeansWriter
from .task_means import read_task_means as read_task_means
