"""Another library's exception as half a sentence."""


def reason(error: BaseException) -> str:
    """The first sentence of an exception's message, without its full stop; its type if there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition(". ")[0].rstrip(".!: ") if lines else ""
    return first or type(error).__name__
