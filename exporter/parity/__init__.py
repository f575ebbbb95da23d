"""Proves engines against eager fair-esm in float64.

The data's path: ``packs`` (what is run) -> ``oracle`` (the truth, and eager's own error) ->
``metrics`` (distances) -> ``budgets`` (what is allowed, and why) -> ``verdict`` (passed or failed).
"""
