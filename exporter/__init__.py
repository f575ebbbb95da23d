"""Builds frozen, packed ESM-2 engines and proves each against eager fair-esm.

    exporter.build        load -> trace -> lower -> write aside -> verify -> publish
    exporter.esm2         the packed forward that is traced
    exporter.parity       oracle, metrics, budgets, verdict
"""
