from hypothesis import settings

# python -m pytest tests/fuzz --hypothesis-profile fuzz
settings.register_profile("fuzz", max_examples=2000, deadline=None)
