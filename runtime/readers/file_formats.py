"""Says what a file is that is not FASTA, and what to do with it."""

import re

_CONVERT = "Convert it to FASTA, with EMBOSS seqret or Biopython's SeqIO.convert"
_PROTEINS = "Take the FASTA file of its proteins"
_UNPACK = "Unpack it and give the FASTA file that is in it"

# What a binary file begins with, what it is, what to do. The first that fits.
_BINARY: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (.zip, .npz, .xlsx, .pt)", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x1f\x8b", "compressed twice", "Decompress it once with 'gzip -dc'"),
    (b"\x1f\x9d", "a .Z file", "Decompress it with 'gzip -dc'"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "Decompress it with 'lz4 -dc'"),
    (b"PAR1", "a Parquet file", "'esm2-run embed' reads it with --sequence-column NAME"),
    (b"\x89HDF", "an HDF5 file", "Write its sequences as FASTA"),
    (b"\x93NUMPY", "a NumPy file", "Write its sequences as FASTA"),
    (b"ARROW1", "an Arrow file", "Write its sequences as FASTA"),
    (b"SQLite format 3", "an SQLite database", "Write its sequences as FASTA"),
    (b"BAM\1", "a BAM file", _PROTEINS),
    (b"CRAM", "a CRAM file", _PROTEINS),
    (b"BCF", "a BCF file", _PROTEINS),
    (b"%PDF", "a PDF document", _PROTEINS),
    (b"{\\rtf", "an RTF document", "Save it as plain text"),
    (b"\xd0\xcf\x11\xe0", "an Office document", "Save it as plain text"),
    (b"\x7fELF", "a program", _PROTEINS),
)
_TAR_MAGIC, _TAR_PLACE = b"ustar", 257

# Its second line is a title, and would be read as residues.
PIR_HEADER = re.compile(r">(?:P1|F1|DL|DC|RL|RC|N1|N3|XX);")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")

# The same for text, whose first line that is not blank begins so.
_TEXT: tuple[tuple[str, str, str], ...] = (
    (r"LOCUS\s", "a GenBank file", _CONVERT),
    (r"ID\s{3}", "an EMBL or UniProt flat file", _CONVERT),
    (PIR_HEADER.pattern, "a PIR file", _CONVERT),
    (r"@(?:HD|SQ|RG|PG|CO)\t", "a SAM file", f"It holds reads. {_PROTEINS}"),
    (r"@[^\n]*\n[^\n]*\n\+", "a FASTQ file", f"It holds reads. {_PROTEINS}"),
    (r"##gff|##gtf|track\s", "a GFF file", f"It holds places in a genome. {_PROTEINS}"),
    (r"##fileformat=VCF", "a VCF file", f"It holds variants. {_PROTEINS}"),
    (r"(?:HEADER|ATOM  |HETATM|REMARK|CRYST1|MODEL |TITLE ) ", "a PDB file",
     "Take the FASTA file of its entry, or its chains' sequences"),
    (r"data_|loop_", "an mmCIF file",
     "Take the FASTA file of its entry, or its chains' sequences"),
    (r"CLUSTAL|MUSCLE", "a Clustal alignment", _CONVERT),
    (r"# STOCKHOLM", "a Stockholm alignment", _CONVERT),
    (r"#NEXUS", "a NEXUS file", _CONVERT),
    (r"\d+\s+\d+\s*(?:\n|$)", "a PHYLIP alignment", _CONVERT),
    (r"(?i)<!doctype html|<html|<head|<body", "a web page (HTML)",
     "The download went wrong: open it in a browser to see why, and download it again"),
    (r"<", "an XML file", _PROTEINS),
    (r"[{\[]", "a JSON file", "Write its sequences as FASTA"),
    (r"version https://git-lfs", "a pointer of Git LFS", "Fetch the file with 'git lfs pull'"),
    (r"(?:[^\t\n]*\t){8}[^\t\n]*(?:\n|$)", "a GFF file",
     f"It holds places in a genome. {_PROTEINS}"),
    (r"(?:[^\t\n]*\t){10}", "a SAM file", f"It holds reads. {_PROTEINS}"),
    (r"[^\n]*([\t,;])[^\n]*\n[^\n]*\1", "a table (CSV or TSV)",
     "'esm2-run embed' reads it with --sequence-column NAME"),
    (r"[A-Za-z*.\-]+\s*(?:\n|$)", "sequences without headers",
     "Put a line '>name' before each sequence"),
)  # fmt: skip
_SHOWN = 40
_LOOKED_AT = 4096


def binary_format(start: bytes) -> str | None:
    """What a file is that begins with ``start``, with what to do, or None if it may be text."""
    for magic, what, remedy in _BINARY:
        if start.startswith(magic):
            return f"it is {what}. {remedy}"
    if start[_TAR_PLACE:].startswith(_TAR_MAGIC):
        return f"it is a tar archive. {_UNPACK}"
    return None


def text_format(lead: str, rest: str) -> str:
    """The same for text without a header where FASTA has its first.

    Args:
        lead: blank lines and comments that come first.
        rest: what comes then.
    """
    if _CONTROL.search(rest[:_LOOKED_AT]):
        return f"it is a binary file. {_PROTEINS}"
    for pattern, what, remedy in _TEXT:
        if re.match(pattern, lead.lstrip()) or re.match(pattern, rest.lstrip()):
            return f"it is {what}. {remedy}"
    first = rest.split("\n", 1)[0]
    shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."
    line = lead.count("\n") + 1
    return f"line {line} is {shown!r}, and FASTA begins with '>'. Give a FASTA file"
