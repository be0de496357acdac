from .config import ShardedConfig as ShardedConfig
from .run import run_sharded as run_sharded
from .shards import read_sharded as read_sharded
