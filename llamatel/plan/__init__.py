"""What a model costs to run: caches to the byte, weights and memory by device, what fits, how fast it can be."""

from llamatel.plan.cache import CachePart, CachePlan, cache_plan
from llamatel.plan.settings import ServerSettings, parse_server_flags

__all__ = ["CachePart", "CachePlan", "ServerSettings", "cache_plan", "parse_server_flags"]
