"""npgpt inspect-adapter, as a script: see npgpt/commands/inspect_adapter.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("inspect-adapter"))
