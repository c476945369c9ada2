"""npgpt convert checkpoint, as a script: see npgpt/commands/convert_checkpoint.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("convert checkpoint"))
