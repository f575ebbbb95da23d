"""Containers of the runtime, and their steps run without a container engine."""
