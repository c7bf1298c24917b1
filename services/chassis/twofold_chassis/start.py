"""What goes wrong before a service is up, said to a person in one sentence."""


class StartError(Exception):
    """A start that cannot go on: its text is one clear sentence, printed without a traceback."""
