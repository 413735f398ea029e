"""PDF files for tests, written by hand: pages of lines at places, in two weights of a font."""

import zlib
from collections.abc import Sequence

Line = tuple[int, int, bool, str]  # height from the bottom, size, whether it is bold, text


def pdf(pages: Sequence[Sequence[Line]], title: str = "", encrypt: str = "") -> bytes:
    """A PDF file of these pages. encrypt: the content of its /Encrypt entry, if any."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    for name in ("Helvetica", "Helvetica-Bold"):
        objects.append(
            f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} "
            "/Encoding /WinAnsiEncoding >>".encode()
        )
    for i, lines in enumerate(pages):
        fonts = "<< /Font << /F1 3 0 R /F2 4 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources {fonts} "
            f"/Contents {6 + 2 * i} 0 R >>".encode()
        )
        drawn = "\n".join(
            f"BT /F{1 + bold} {size} Tf 1 0 0 1 50 {height} Tm ({_escaped(text)}) Tj ET"
            for height, size, bold, text in lines
        )
        packed = zlib.compress(drawn.encode("cp1252"))
        head = f"<< /Length {len(packed)} /Filter /FlateDecode >>\nstream\n".encode()
        objects.append(head + packed + b"\nendstream")
    if title:
        objects.append(f"<< /Title ({_escaped(title)}) >>".encode())
    out, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    more = f" /Info {len(objects)} 0 R" if title else ""
    more += f" /Encrypt {encrypt} /ID [<00> <00>]" if encrypt else ""
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R{more} >>\n".encode()
    return out + f"startxref\n{start}\n%%EOF\n".encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
