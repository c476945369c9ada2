"""npgpt merge, as a script: see npgpt/commands/merge.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("merge"))
