"""README.md, CONTRIBUTING.md and docs/: their Python runs, their commands parse, their
links and the files that they name exist."""

import importlib
import json
from pathlib import Path
import re
import shlex
import sys

from absl import flags
from absl.testing import flagsaver
import pytest

from alignment import judge_benchmark
from alignment.analysis import results, topics
from alignment.core import evaluation, rules
from alignment.core.losses import registry
from alignment.data import datasets, readers
from alignment.models import decoder_config, sizes
from launch import sweep, tpu
from tests import synthetic

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("compile_quickly")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:alignment|configs|launch|tests|docs)/[\w./]*|\w+_test\.py)`")


def named(pages):
  return pytest.mark.parametrize(
    "page", pages, ids=lambda page: page.relative_to(ROOT).as_posix()
  )


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
  """(line, text) of a page's fenced blocks in these languages."""
  text = page.read_text(encoding="utf-8")
  return [
    (text.count("\n", 0, match.start(2)), match[2])
    for match in FENCE.finditer(text)
    if match[1] in languages
  ]


def prose(page: Path) -> str:
  return FENCE.sub("", page.read_text(encoding="utf-8"))


# --- Python ---------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path, monkeypatch):
  """A reader's directory: a finished study, a CSV file, and registries of their own."""
  for run in synthetic.study():
    if re.search("line_beta|_sft$|_golden_policy$", run.name):  # as in the quickstart
      synthetic.write(tmp_path / "workdir/quickstart", run)
  rows = [f"p{i},a{i},b" for i in range(200)]
  (tmp_path / "pairs.csv").write_text("\n".join(["prompt,better,worse", *rows]) + "\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))
  monkeypatch.setattr(readers, "FORMATS", dict(readers.FORMATS))
  monkeypatch.setattr(evaluation, "COLUMNS", dict(evaluation.COLUMNS))
  monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
  monkeypatch.setattr(sizes, "DECODERS", dict(sizes.DECODERS))
  monkeypatch.setitem(decoder_config.FAMILIES, "mistral", {})  # and not for good
  return tmp_path


@named([page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_page_by_page(page, reader, cli):
  namespace = {"__name__": page.stem}
  for line, text in blocks(page, "python"):
    exec(compile("\n" * line + text, str(page), "exec"), namespace)
  if "get_config" in namespace:  # a configuration: everything it describes makes sense
    (reader / "my_study.py").write_text(text)
    status, _, told = cli("--config=my_study.py", "--workdir=new", "--dry_run")
    assert (status, told) == (0, "")


def test_the_readme_adds_a_loss_and_a_data_set_from_outside_the_package(reader, cli):
  added = [text for _, text in blocks(ROOT / "README.md", "python")]
  document = ["from alignment.study import documents, schema", *added]
  document += [f"quickstart = documents.load({str(ROOT / 'configs/quickstart.py')!r})"]
  document += ["def get_config():", "  return quickstart.get_config()"]
  (reader / "mine.py").write_text("\n".join(document))
  study = [
    "--config=mine.py",
    "--workdir=new",
    "--config.policy.loss=cubic",
    "--config.policy.loss_options={'margin': 2.0}",
    "--config.data.format=csv",
    "--config.data.path=pairs.csv",
    "--config.vocab.kind=bytes",
    "--config.prompt_length=8",
    "--config.response_length=8",
  ]
  status, out, told = cli(*study, "--dry_run")
  assert (status, told) == (0, "")
  assert "offline_cubic" in out
  del registry.LOSSES["cubic"]  # as in a new process
  status, _, told = cli(*study, "--stages=data")
  assert status == 0, told
  statistics = next(reader.glob("new/artefacts/data*/statistics.json")).read_text()
  read = re.findall(r"(\d+) pairs", statistics)
  assert sum(map(int, read)) == 200


# --- Commands -------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
  """A page's commands, as words; bucket is a name that a bucket may have.

  They are all lines of shell blocks. Of other blocks and of prose they are what begins
  as this repository's commands do.
  """
  ours = ("make ", "python -m ")
  lines = [x for x in re.findall("`([^`\n]+)`", prose(page)) if x.startswith(ours)]
  for language in ("sh", ""):
    for _, block in blocks(page, language):
      joined = block.replace("\\\n", " ").replace("BUCKET", "bucket").split("\n")
      lines += [x for x in joined if language or x.startswith(ours)]
  words = [shlex.split(line, comments=True) for line in lines]
  return [line for line in words if line]


def check_study(words: list[str], module: str, cli, tmp_path: Path) -> None:
  """A command line whose configuration, if it has one, and other flags exist."""
  importlib.import_module(module)
  chosen = [word for word in words if word.startswith("--config")]
  others = [word for word in words if word not in chosen]
  with flagsaver.flagsaver():
    assert flags.FLAGS([module, *others])[1:] == []
  if "--config=my_study.py" in words or not chosen:
    return
  config = sweep.load_config(chosen)
  if module == "alignment.main" and config.data.format == "toy":
    flag = re.compile("--(workdir|coordinator|num_processes|process_id|dry_run)")
    kept = [word for word in words if not flag.match(word)]
    status, _, told = cli(*kept, f"--workdir={tmp_path}", "--dry_run")
    assert (status, told) == (0, "")


def check_command(words: list[str], cli, tmp_path: Path) -> None:
  match words:
    case ["make", target, *_]:
      makefile = (ROOT / "Makefile").read_text()
      assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    case ["python", "-m", "launch.tpu", *rest]:
      rest = [f"@{tmp_path}/{word[1:]}" if word[0] == "@" else word for word in rest]
      _, job = tpu.parse([word for word in rest if word != "--dry_run"])
      check_study([*job.arguments], "alignment.main", cli, tmp_path)
    case ["python", "-m", "launch.sweep", *rest]:
      options = ["--dry_run", *(w for w in rest if not w.startswith("--workdir"))]
      workdir = "gs://bucket/sweep" if "--tpu=v5p" in rest else str(tmp_path)
      assert sweep.sweep_main([f"--workdir={workdir}", *options]) == 0
    case ["python", "-m", "alignment.data.datasets", "--prepare", name, *_]:
      assert name in datasets.NAMES
    case ["python", "-m", "alignment.judge_benchmark", *rest]:
      judge_benchmark.parser().parse_args(rest)
    case [".venv/bin/python", "-m", "pytest", path, *_]:
      assert (ROOT / path).exists(), path
    case ["python", "-m", module, *rest] if any(w.startswith("--") for w in rest):
      check_study(rest, module, cli, tmp_path)
    case ["python", "-m", module, *_]:
      importlib.import_module(module)
    case ["python", path, *_]:
      assert (ROOT / path).exists(), path
    case [program, *_]:
      assert program == "gcloud", words


@named([page for page in PAGES if commands(page)])
def test_commands_parse(page, cli, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  for _, text in blocks(page, "text"):
    (tmp_path / "xxl.args").write_text(text.replace("BUCKET", "bucket"))
  for words in commands(page):
    check_command(words, cli, tmp_path)


# --- Links and names ------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
  """GitHub's names of a page's headings."""
  headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@named([*PAGES, ROOT / "CHANGELOG.md"])
def test_links_lead_somewhere_and_images_say_what_they_show(page):
  for image, text, target in LINK.findall(prose(page)):
    if target.startswith("https://"):
      continue
    assert not image or len(text) > 20, f"{target} needs an alternative text"
    path, _, anchor = target.partition("#")
    linked = (page.parent / path).resolve() if path else page
    assert linked.exists() and linked.is_relative_to(ROOT), target
    assert not anchor or anchor in anchors(linked), target


@named(PAGES)
def test_files_that_are_named_exist(page):
  tests = {path.name for path in ROOT.glob("tests/**/*.py")}
  for name in NAMED.findall(prose(page)):
    assert name in tests or (ROOT / name).exists(), name


def test_the_readme_has_every_room_and_where_to_start_in_it():
  row = re.compile(r"^\| `([\w/]+/)` \|[^|]*\| `([\w./]+)` \|$", re.MULTILINE)
  rooms = dict(row.findall((ROOT / "README.md").read_text()))
  assert all((ROOT / room / start).exists() for room, start in rooms.items())
  packages = {path.parent for path in ROOT.glob("alignment/*/__init__.py")}
  assert packages <= {ROOT / room for room in rooms}


def test_the_contents_list_every_page():
  pages = {page.stem for page in ROOT.glob("docs/*.md")} - {"index"}
  index = (ROOT / "docs/index.md").read_text()
  readme = (ROOT / "README.md").read_text()
  assert pages <= set(re.findall(r"^\w+$", index, re.MULTILINE))
  assert pages - {"api"} <= set(re.findall(r"docs/(\w+)\.md", readme))


def test_the_readme_is_one_page():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 220


# --- Numbers --------------------------------------------------------------------------


def test_the_tables_of_judges_are_their_data():
  """The rates of every benchmark whose pairs are kept, as the command writes them."""
  page = (ROOT / "docs/real_language.md").read_text()
  for path in ROOT.glob("docs/data/judges/*.csv"):
    held_out = topics.from_csv(path.read_text(), path.name)
    rates, _ = topics.table(held_out).split("\n\n")
    assert rates in page, f"put the first table of {path.stem}.md into the page"


STUDIES = sorted(path.parent for path in ROOT.glob("docs/data/*/study.json"))


@pytest.fixture(name="published")
def _published(monkeypatch):
  monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
  return importlib.import_module("published")


def test_tables_are_what_docs_data_says(published):
  for page in PAGES:
    text = page.read_text(encoding="utf-8")
    assert published.filled(text) == text, page.name
    assert text.count("<!-- data:") == len(published.REGION.findall(text)), page.name


@pytest.mark.parametrize("directory", STUDIES, ids=lambda directory: directory.name)
def test_published_data_is_whole(published, directory, tmp_path):
  """All that claims, figures and the report are made of; where it is from is said."""
  data = published.Data(directory)
  data.unpack(tmp_path)
  study = results.published.load(tmp_path)
  runs = results.load_runs(tmp_path, study.runs)
  assert {run.world for run in runs} == set(study.worlds)
  assert {row["world"] for row in data.claims} == {*map(str, study.worlds), "all"}
  assert all(data.study[key] for key in ("commit", "lock", "config"))


def slow_if_large(directory: Path):
  """Claims of several worlds take minutes."""
  worlds = json.loads((directory / "study.json").read_text())["worlds"]
  return pytest.param(directory, marks=[pytest.mark.slow] if len(worlds) > 1 else [])


@pytest.mark.parametrize(
  "directory",
  [slow_if_large(directory) for directory in STUDIES],
  ids=lambda directory: directory.name,
)
def test_claims_are_those_of_the_published_outcomes(published, directory, tmp_path):
  data = published.Data(directory)
  data.unpack(tmp_path)
  study = json.loads((tmp_path / "study.json").read_text())
  (tmp_path / "study.json").write_text(json.dumps(study | {"figures": []}))
  results.redraw(tmp_path)
  made = (tmp_path / "claims.csv").read_text()
  assert made == (directory / "claims.csv").read_text()


# --- The reference --------------------------------------------------------------------


def test_docstrings_are_plain_text_for_sphinx(monkeypatch):
  monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
  convert = importlib.import_module("docstrings").convert
  lines = [
    "Takes `x_B` to",
    "2 * y_.",
    "",
    "  a = b",
    "",
    "    c",
    "",
    "- one",
    "  two",
  ]
  lines += ["Args:", "  x: the number,", "    in *nats*.", "  y: another."]
  assert convert(lines) == [
    r"Takes \ ``x_B``\  to 2 \* y\_.",
    "",
    *("::", "", "     a = b", "   ", "       c", ""),
    *("* one two", ""),
    *("**Args**", "", r"* **x**: the number, in \*nats\*.", "* **y**: another.", ""),
  ]
