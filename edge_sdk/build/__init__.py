"""The stages of a build, the policy that decides, and the report."""
