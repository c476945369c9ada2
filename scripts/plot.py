"""npgpt plot, as a script: see npgpt/commands/plot.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("plot"))
