"""What a head that was trained on top of the model says of proteins: labels, or values.

The data's path: records -> runner -> ``scores`` (a head's numbers to probabilities) -> files.
"""
