"""Decodes `data:` URIs (RFC 2397), accepting white space and missing padding in base64 as browsers do.

It does not use `urllib`, which takes 11 s and 2.6 GB for 32 MiB of percent signs.
"""

import binascii

import numpy as np

from serve.errors import InvalidImage

SCHEME = "data:"
MAX_HEAD_CHARS = 1000
"""Limit for the media type and its parameters, before the comma."""
WHITE_SPACE = b"\t\n\f\r "
HEX_DIGITS = np.array(["0123456789abcdef".find(chr(code).lower()) for code in range(256)], dtype=np.int16)
"""The value of each character code as a hexadecimal digit, or -1."""


def is_data_uri(uri: str) -> bool:
    return uri[: len(SCHEME)].lower() == SCHEME


def decode_data_uri(uri: str, field: str, max_bytes: int) -> bytes:
    """Returns the content of `uri`, ignoring its media type.

    Raises `InvalidImage` for `field` if the URI is malformed or has more than `max_bytes`.
    """
    if not is_data_uri(uri):
        raise InvalidImage(field, "this is not a data: URI")
    too_large = InvalidImage(field, f"the data: URI has more than {max_bytes} bytes")
    # Base64 has 4 characters for 3 bytes, and percent encoding writes each of them as 3. The last 12 are for padding.
    if len(uri) > MAX_HEAD_CHARS + 4 * max_bytes + 12:
        raise too_large
    try:
        content = _decode(uri[len(SCHEME) :])
    except ValueError as error:
        raise InvalidImage(field, f"the data: URI is malformed: {error}") from error
    if len(content) > max_bytes:
        raise too_large
    return content


def _decode(uri: str) -> bytes:
    """Decodes `uri`, which has no scheme. Raises `ValueError` with a reason for the caller."""
    comma = uri.find(",", 0, MAX_HEAD_CHARS)
    if comma < 0:
        raise ValueError("it needs a comma before its data")
    if not uri.isascii():
        raise ValueError("it has characters that are not ASCII")
    data = _decode_percent_signs(uri[comma + 1 :].encode("ascii"))
    is_base64 = uri[:comma].lower().replace(" ", "").endswith(";base64")
    return _decode_base64(data) if is_base64 else data


def _decode_percent_signs(data: bytes) -> bytes:
    if b"%" not in data:
        return data
    # Two spaces at the end are no digits, so a percent sign there is found to be incomplete.
    codes = np.frombuffer(data + b"  ", np.uint8)
    signs = np.flatnonzero(codes == ord("%"))
    high, low = HEX_DIGITS[codes[signs + 1]], HEX_DIGITS[codes[signs + 2]]
    if (high < 0).any() or (low < 0).any():
        raise ValueError("a percent sign in it is not followed by two hexadecimal digits")
    decoded = codes.copy()
    decoded[signs] = 16 * high + low
    kept = np.ones(codes.size, dtype=bool)
    kept[signs + 1] = kept[signs + 2] = kept[-2:] = False
    return decoded[kept].tobytes()


def _decode_base64(data: bytes) -> bytes:
    digits = data.translate(None, WHITE_SPACE)
    unpadded = digits[:-2] + digits[-2:].rstrip(b"=") if len(digits) % 4 == 0 else digits
    try:
        return binascii.a2b_base64(unpadded + b"=" * (-len(unpadded) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ValueError("its data is not base64") from error
