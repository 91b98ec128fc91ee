"""The command ``specdec``: one file per command, and what they share."""
