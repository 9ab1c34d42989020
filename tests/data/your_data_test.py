"""The page "Your data": every example in it is read as the page says."""

import json
from pathlib import Path
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data import readers
from alignment.data.examples import Reading
from alignment.types import UserError
from tests.texts import texts as texts_of

PAGE = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text(encoding="utf-8")
COLUMN = re.compile(r"--config\.data\.columns\.(\w+)=(\w+)")
FENCES = re.split(r"^```(\w*)$\n", PAGE, flags=re.M)  # text, language, text, "", ...
# The columns that are mapped before an example; the example; what is read.
EXAMPLES = [
  (dict(COLUMN.findall(FENCES[i - 1])), FENCES[i + 1], FENCES[i + 5])
  for i in range(1, len(FENCES), 4)
  if FENCES[i] == "json"
]
LINES = [json.dumps(json.loads(record)) for _, record, _ in EXAMPLES]


def written_as(path: Path, record: str, container: str) -> Path:
  match container:
    case "lines":
      path.write_text(json.dumps(json.loads(record)) + "\n")
    case "array":
      path.write_text(f"[{record}]")
    case "parquet":
      pq.write_table(pa.Table.from_pylist([json.loads(record)]), path)
  return path


def outcome(path: Path, columns: dict[str, str]) -> str:
  reading = Reading()
  try:
    (example,) = readers.read_files(path, "skip", reading, columns)
    texts = texts_of(example)
  except UserError as error:
    if reading.dropped:
      return "".join(
        f"dropped: {n} {reason}\n" for reason, n in reading.dropped.items()
      )
    match = re.search(r"field '[^']*'(: field '[^']*')?", str(error))
    assert match is not None, error
    return f"refused: {match[0]}\n"
  assert not reading.ignored
  fields = zip(("prompt", "chosen", "rejected"), texts, strict=True)
  return "".join(f"{name}: {json.dumps(text)}\n" for name, text in fields)


def test_examples_are_all_found_and_have_three_lines():
  assert PAGE.count("```json") == len(EXAMPLES) >= 20
  assert sum(len(columns) for columns, _, _ in EXAMPLES) == 3
  assert {record.count("\n") for _, record, _ in EXAMPLES} <= {3, 4}


@pytest.mark.parametrize("container", ["lines", "array", "parquet"])
@pytest.mark.parametrize(("columns", "record", "expected"), EXAMPLES, ids=LINES)
def test_an_example_is_read_as_the_page_says(
  tmp_path, columns, record, expected, container
):
  path = written_as(tmp_path / "pairs", record, container)
  assert outcome(path, columns) == expected
