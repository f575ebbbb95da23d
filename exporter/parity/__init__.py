"""Proves engines against eager fair-esm in float64.

The data's path: ``truth`` (packs, the oracle, eager's own error) -> ``gate`` (each engine on each
pack) -> ``rules`` (distances, budgets, verdict) -> ``prove`` (faults that must fail) -> ``report``.
"""
