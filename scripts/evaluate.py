"""npgpt evaluate, as a script: see npgpt/commands/evaluate.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("evaluate"))
