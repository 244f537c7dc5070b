"""The host: read a model, plan, convert, measure, judge, package. See edge_sdk.api.

from edge_sdk import build, inspect, load_profile, plan, run, verify
"""

from edge_sdk.api import build, inspect, load_profile, plan, run, verify

__all__ = ["build", "inspect", "load_profile", "plan", "run", "verify"]
