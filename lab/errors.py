"""The one exception a user sees: a sentence that names the thing and the remedy."""


class LabError(Exception):
    pass
