"""python -m npgpt COMMAND: the program npgpt where its folder of programs is not on the search path."""

from npgpt.commands import console, start

if __name__ == "__main__":
    raise SystemExit(console.main(start.MODULE))
