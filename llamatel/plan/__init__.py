"""What a model costs to run: caches to the byte, weights and memory by device, what fits, how fast it can be."""

from llamatel.plan.cache import CachePart, CachePlan, cache_plan
from llamatel.plan.command_line import parse_server_flags
from llamatel.plan.settings import ServerSettings

__all__ = ["CachePart", "CachePlan", "ServerSettings", "cache_plan", "parse_server_flags"]
