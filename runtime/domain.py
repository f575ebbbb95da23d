"""How large the packs were that an engine was compared on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """The largest that an engine was compared on.

    Attributes:
        longest: tokens of a protein.
        tokens: of a pack.
        proteins: of a pack.
    """

    longest: int
    tokens: int
    proteins: int

    def beyond(self, longest: int, tokens: int, proteins: int) -> list[str]:
        """In which of its sizes such a pack is larger, in words."""
        sizes = (
            (longest, self.longest, "tokens of a protein"),
            (tokens, self.tokens, "tokens of a pack"),
            (proteins, self.proteins, "proteins of a pack"),
        )
        return [f"{got:,} {what} (proven: {most:,})" for got, most, what in sizes if got > most]
