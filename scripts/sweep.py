"""npgpt sweep, as a script: see npgpt/commands/sweep.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("sweep"))
