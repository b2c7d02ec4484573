"""The letters by which byte-level vocabularies write bytes.

Source: Radford et al. 2019 (GPT-2); `tokenizers` has the same table in its pre-tokenizer ByteLevel.
"""

from functools import cache


@cache
def letter_bytes() -> dict[str, int]:
    """Return the byte of each of the 256 letters.

    Printable bytes of Latin-1 are their own letters; the others have those from U+0100 on, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
