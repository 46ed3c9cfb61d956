"""The documentation's pages as a reader meets them: fenced blocks, with what their fences say, and code within lines.

A fence is ```LANGUAGE or ```LANGUAGE {NAME="VALUE" …}; docs/testing.md says what the names mean.
"""
import dataclasses
import os
import pathlib
import re
from typing import Dict, Iterator, List, Tuple

ROOT = pathlib.Path(os.environ.get("RLHF_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
# The service that README.md starts is the others'.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "client/python/README.md"]
FENCE = re.compile(r"^```(\w*)(?: \{(.*)\})?$")
ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


@dataclasses.dataclass
class Block:
    page: str
    line: int  # of its fence
    language: str
    says: Dict[str, str]
    text: str

    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read(path: pathlib.Path) -> Tuple[List[Block], List[Tuple[int, str]]]:
    """A page's blocks, and its other lines with their numbers. ValueError at a fence that cannot be read."""
    page = str(path.relative_to(ROOT))
    blocks, prose, inside, content = [], [], None, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line == "```":
                inside.text = "\n".join(content)
                blocks.append(inside)
                inside = None
            else:
                content.append(line)
        elif line.lstrip().startswith("```"):
            fence = FENCE.match(line)
            if not fence or not fence[1] or ATTRIBUTE.sub("", fence[2] or "").strip():
                raise ValueError(f'{page}:{number}: expected ```LANGUAGE or ```LANGUAGE {{name="value"}} at the line\'s start, found {line}')
            inside, content = Block(page, number, fence[1], dict(ATTRIBUTE.findall(fence[2] or "")), ""), []
        else:
            prose.append((number, line))
    if inside is not None:
        raise ValueError(f"{inside.where()}: expected a closing fence, found the end of the page")
    return blocks, prose


def spans(prose: List[Tuple[int, str]]) -> Iterator[Tuple[int, str]]:
    """Code within lines (of a table, too, where | is written \\|), also when it goes on in the next line of a paragraph."""
    text = "\n".join(line for _, line in prose)
    numbers = [number for number, _ in prose]
    for match in re.finditer(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", text):
        yield numbers[text.count("\n", 0, match.start())], match[1].replace("\n", " ").replace("\\|", "|")


def commands(block: Block) -> str:
    """The shell commands of a block; of a `console` block what follows "$ "."""
    if block.language == "console":
        return "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))
    return block.text


def dialogue(block: Block) -> List[Tuple[str, List[str]]]:
    """A `console` block as commands, each with the lines that it is shown to print."""
    shown: List[Tuple[str, List[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            shown.append((line[2:], []))
        elif shown:
            shown[-1][1].append(line)
        else:
            raise ValueError(f'{block.where()}: expected "$ COMMAND" first, found {line!r}')
    return shown


def matches(shown: List[str], printed: str) -> bool:
    """Whether output is as shown: … stands for anything in a line, and alone for any lines."""
    parts = []
    for line in shown:
        parts.append(r"(?:.*\n)*?" if line.strip() == "…" else r"[^\n]*".join(re.escape(part.rstrip()) for part in line.split("…")) + r"[ ]*\n")
    return re.fullmatch("".join(parts), printed if printed.endswith("\n") or not printed else printed + "\n") is not None
