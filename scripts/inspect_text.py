"""npgpt inspect-text, as a script: see npgpt/commands/inspect_text.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("inspect-text"))
