"""Text that must stay on one line: what could end the line is written out, so that content cannot forge another."""

# Everything that str.splitlines() and the readers of models take for an end of line, and the backslash itself.
_ESCAPES = str.maketrans(
    {
        "\\": "\\\\",
        "\n": "\\n",
        "\r": "\\r",
        "\v": "\\v",
        "\f": "\\f",
        "\x1c": "\\x1c",
        "\x1d": "\\x1d",
        "\x1e": "\\x1e",
        "\x85": "\\x85",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)


def escaped(text: str) -> str:
    """The text as one line; different texts stay different."""
    return text.translate(_ESCAPES)
