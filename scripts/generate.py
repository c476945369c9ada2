"""npgpt generate, as a script: see npgpt/commands/generate.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("generate"))
