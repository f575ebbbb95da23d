"""Builds frozen, packed ESM-2 engines and proves each against eager fair-esm.

Start reading in ``exporter.build``; the model that is traced is in ``exporter.packed_forward``.
"""
