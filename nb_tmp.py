import pathlib
import sys
import time

sys.path.insert(0, "docs")
import notebooks

t = time.time()
c = time.process_time()
p = notebooks.markdown(pathlib.Path("docs/tutorial.ipynb").read_text())
pathlib.Path("/tmp/habits/page.md").write_text(p)
print("wall", time.time() - t, "cpu", time.process_time() - c)
