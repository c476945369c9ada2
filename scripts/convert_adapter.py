"""npgpt convert adapter, as a script: see npgpt/commands/convert_adapter.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("convert adapter"))
