"""``python -m onward``: the command `onward`, where its script is not on the PATH."""

from onward.cli.main import app

app()
