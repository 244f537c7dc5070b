"""The host: read a model, plan, convert, measure, judge, package. See edge_sdk.api.

from edge_sdk import BuildOptions, build, inspect, load_profile, plan, run, verify
"""

from edge_sdk.api import build, inspect, load_profile, plan, run, verify
from edge_sdk.build.request import BuildOptions

__all__ = ["BuildOptions", "build", "inspect", "load_profile", "plan", "run", "verify"]
