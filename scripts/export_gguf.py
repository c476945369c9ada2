"""npgpt export-gguf, as a script: see npgpt/commands/export_gguf.py."""

from npgpt.commands import console

if __name__ == "__main__":
    raise SystemExit(console.script("export-gguf"))
