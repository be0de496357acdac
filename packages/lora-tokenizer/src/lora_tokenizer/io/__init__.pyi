from .finding import find_adapter as find_adapter
from .finding import find_adapters as find_adapters
from .reading import read_adapter as read_adapter
from .writing import write_adapter as write_adapter
