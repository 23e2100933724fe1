"""SANA-Video's wing: MODELs of clips, what they begin with, clips block by block."""
