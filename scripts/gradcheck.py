"""npgpt gradcheck, as a script: see npgpt/commands/gradcheck.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("gradcheck"))
