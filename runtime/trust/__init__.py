"""Whether an artifact is what somebody signed: a bundle of OpenSSF model signing beside it."""
