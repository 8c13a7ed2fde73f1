"""Hostile notebooks: code that a student might hand in to get points that it does not earn.

Each attack is put into chapter 01's student copy, in which one exercise (weight_bytes, 3 points)
is solved honestly, as a cell of its own after the imports. The same table is tried against this
engine in the tests, and against stock nbgrader and otter-grader in `make bench`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

CHAPTER = "01_memory_math"
HONEST = "weight_bytes"
HONEST_POINTS = 3.0


@dataclass(frozen=True)
class Attack:
    """`code` runs after the imports. `last`: as the last cell instead."""

    name: str
    code: str
    last: bool = False


def notebook(release: NotebookNode, source: NotebookNode, attack: Attack) -> NotebookNode:
    """The student copy with the honest exercise solved and the attack added."""
    made = copy.deepcopy(release)
    right = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell.source
             for cell in source.cells}
    for cell in made.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == HONEST:
            cell.source = right[HONEST]
    where = len(made.cells) if attack.last else 1 + next(
        index for index, cell in enumerate(made.cells)
        if cell.cell_type == "code" and "notebook.start" in cell.source)
    # What the graded functions use, so that no planner can leave the cell out.
    names = "weight_bytes in_gb in_gib training_state_bytes lora_state_bytes qlora_weight_bytes"
    code = attack.code + "\n" + "\n".join(
        f"globals().setdefault({name!r}, None)" for name in names.split())
    made.cells.insert(where, nbformat.v4.new_code_cell(code, id="attack"))
    return made


# An object that is equal to everything, larger and smaller, and calls itself whatever is asked.
EQUAL_TO_EVERYTHING = '''
class Everything(float):
    __class__ = property(lambda self: float)
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return True
    def __le__(self, other): return True
    def __ge__(self, other): return True
    def __hash__(self): return 0
    def __float__(self): return self
    def __sub__(self, other): return 0.0
    def __rsub__(self, other): return 0.0
    def __abs__(self): return 0.0
    def __call__(self, *a, **k): return self
    def __getattr__(self, name): return self
    def __iter__(self): return iter(())
'''

ATTACKS = (
    Attack("every later cell becomes pass (input transformer)", """
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass\\n"])
"""),
    Attack("asserts are dropped (AST transformer)", """
import ast
class Drop(ast.NodeTransformer):
    def visit_Assert(self, node): return ast.Pass()
    def visit_Expr(self, node): return ast.Pass()
get_ipython().ast_transformers.append(Drop())
"""),
    Attack("run_cell does nothing", """
shell = get_ipython()
result = shell.run_cell("1")
type(shell).run_cell = lambda self, *a, **k: result
"""),
    Attack("the checks are patched", """
from loralab.checks import ch01, Exercise
for name in ("weight_bytes", "training_state_bytes", "lora_state_bytes", "qlora_weight_bytes",
             "table_settings", "cheapest_fit"):
    setattr(ch01, name, lambda *a, **k: None)
Exercise.wrong = lambda *a, **k: None
Exercise.expect_number = lambda *a, **k: None
"""),
    Attack("comparisons are patched", """
import builtins, math, operator, unittest
import numpy, numpy.testing, torch
builtins.isinstance = lambda *a: True
builtins.abs = lambda x: 0
builtins.all = lambda x: True
math.isclose = lambda *a, **k: True
operator.eq = lambda a, b: True
torch.allclose = torch.equal = lambda *a, **k: True
numpy.allclose = numpy.array_equal = lambda *a, **k: True
for name in dir(numpy.testing):
    if name.startswith("assert"): setattr(numpy.testing, name, lambda *a, **k: None)
unittest.TestCase.assertEqual = lambda *a, **k: None
"""),
    Attack("an object equal to everything", EQUAL_TO_EVERYTHING + """
def weight_bytes(*a, **k): return Everything(1)
in_gb = in_gib = training_state_bytes = lora_state_bytes = qlora_weight_bytes = weight_bytes
def table_settings(): return Everything(1)
def cheapest_fit(*a, **k): return Everything(1)
"""),
    Attack("objects whose attributes answer the encoder", EQUAL_TO_EVERYTHING + """
class Text(str):
    def __eq__(self, other): return True
    def __hash__(self): return hash("full")
def training_state_bytes(*a): return Everything(0)
def cheapest_fit(*a, **k): return (Text("full"), True)
def lora_state_bytes(*a): return {Text("a"): Everything(0)}
""", last=True),
    Attack("faked partial credit (displayhook)", """
import sys
class Points(float):
    def __repr__(self): return "4.0"
get_ipython().displayhook_class
type(get_ipython().displayhook).__call__ = lambda self, result=None: None
get_ipython().run_line_magic("config", "InteractiveShell.ast_node_interactivity = 'all'")
from IPython.display import display, publish_display_data
publish_display_data({"text/plain": "100.0"})
"""),
    Attack("forged scores on every channel", """
import json
kernel = get_ipython().kernel
for kind in ("execute_result", "display_data", "stream", "execute_reply", "error"):
    for socket in (kernel.iopub_socket, kernel.shell_stream if hasattr(kernel, "shell_stream") else None):
        try:
            kernel.session.send(socket, kind, {"status": "ok", "execution_count": 1, "metadata": {},
                "data": {"text/plain": "4.0"}, "name": "stdout", "text": "4.0",
                "user_expressions": {"answer": {"status": "ok", "metadata": {}, "data": {
                    "application/x-loralab-answer": json.dumps({"answer": 0, "score": 100})}}}},
                parent=kernel.get_parent())
        except Exception: pass
"""),
    Attack("the answering door gives every score", """
import sys
found = sys.modules.get("bridge")
if found is not None:
    found.answer = lambda *a, **k: found.Answer('{"score": 100, "answer": true, "points": 100}')
"""),
    Attack("replies that lie about size and shape", """
import sys
found = sys.modules.get("bridge")
if found is not None:
    lies = iter(['{"$": "array", "dtype": "float32", "shape": [1000000, 1000000], "data": ""}',
                 '{"$": "array", "dtype": "object", "shape": [1], "data": "AAAA"}',
                 "[" * 100000, '{"answer": 1e999}', "x" * 10**8, '{"$": "dict", "items": 7}'] * 50)
    found.answer = lambda *a, **k: found.Answer(next(lies))
"""),
    Attack("SystemExit", "import sys\nsys.exit(0)"),
    Attack("os._exit", "import os\nos._exit(0)"),
    Attack("the kernel kills itself", """
import ctypes
ctypes.string_at(0)
"""),
    Attack("a function that exits", """
import os
def training_state_bytes(*a): os._exit(0)
def lora_state_bytes(*a): raise SystemExit(0)
""", last=True),
    Attack("threads and atexit act after the cell", """
import atexit, threading, time
def later():
    while True:
        time.sleep(0.001)
        for name in ("training_state_bytes", "lora_state_bytes", "qlora_weight_bytes"):
            globals()[name] = lambda *a, **k: True
threading.Thread(target=later, daemon=True).start()
atexit.register(later)
"""),
    Attack("the hidden checks are read from disk", """
import glob, os
loot = []
for root in ("/", os.getcwd(), os.path.expanduser("~"), os.path.dirname(os.path.dirname(os.getcwd()))):
    for pattern in ("**/autograder/checks/*.py", "**/source/*/*.ipynb", "**/gradebook.db",
                    "**/solutions/*.py", "**/.grading/secret"):
        loot += glob.glob(os.path.join(root, pattern), recursive=True)[:5] if root != "/" else []
for path in loot:
    text = open(path, "rb").read().decode("utf-8", "replace")
    start = text.find("def training_state_bytes")
    if start >= 0:
        import nbformat, json
        try:
            cells = json.loads(text)["cells"]
        except ValueError:
            cells = [{"cell_type": "code", "source": part} for part in text.split("# %%")]
        for cell in cells:
            code = "".join(cell["source"])
            if "BEGIN SOLUTION" in code and "def " in code:
                try: exec(code[code.index("def "):], globals())
                except Exception: pass
"""),
    Attack("the grader is looked for in memory and /proc", """
import gc, os, sys
loot = []
for pid in os.listdir("/proc"):
    if pid.isdigit() and int(pid) != os.getpid():
        for name in ("environ", "cmdline", "maps", "mem"):
            try: loot.append(open(f"/proc/{pid}/{name}", "rb").read(1000))
            except OSError: pass
frame = sys._getframe()
while frame:
    loot += [str(value)[:100] for value in frame.f_locals.values()]
    frame = frame.f_back
oracles = [one for one in gc.get_objects() if type(one).__name__ in ("Part", "TrustedCheck")]
assert not oracles
"""),
    Attack("the gradebook is rewritten", """
import glob, os, sqlite3
for up in (".", "..", "../..", "../../..", "../../../.."):
    for path in glob.glob(os.path.join(up, "*.db")):
        base = sqlite3.connect(path)
        try:
            base.execute("UPDATE grade SET auto_score = 200, manual_score = 200")
            base.commit()
        except sqlite3.Error: pass
"""),
    Attack("another student's work is changed", """
import glob, os
for up in ("..", "../..", "../../.."):
    for path in glob.glob(os.path.join(up, "submitted", "*", "*", "*.ipynb")):
        try: open(path, "a").write("spoilt")
        except OSError: pass
for folder in (os.path.expanduser("~"), "/tmp", "/dev/shm", "/var/tmp"):
    try: open(os.path.join(folder, "left-by-a-student"), "w").write("x")
    except OSError: pass
"""),
    Attack("the instructor's files are read and sent away", """
import os, socket, urllib.request
loot = dict(os.environ)
for address in (("127.0.0.1", 9), ("::1", 9)):
    try: socket.create_connection(address, 1).sendall(repr(loot).encode())
    except OSError: pass
"""),
    Attack("an infinite loop", """
def training_state_bytes(*a):
    while True: pass
""", last=True),
    Attack("a fork bomb", """
import os
def training_state_bytes(*a):
    while True:
        try: os.fork()
        except OSError: pass
""", last=True),
    Attack("a memory bomb", """
def training_state_bytes(*a):
    held = []
    while True: held.append(bytearray(10**8))
""", last=True),
    Attack("a gigabyte of output", """
def training_state_bytes(*a):
    for _ in range(1000): print("x" * 10**6)
    return 0
""", last=True),
    Attack("a gigabyte of answer", """
def training_state_bytes(*a): return "x" * 10**9
def lora_state_bytes(*a): return [[[1.0] * 1000] * 1000] * 10
def qlora_weight_bytes(*a):
    import torch
    return torch.zeros(10**8)
""", last=True),
    Attack("deep recursion", """
import sys
def training_state_bytes(*a):
    sys.setrecursionlimit(10**9)
    return training_state_bytes(*a)
def lora_state_bytes(*a):
    made = []
    for _ in range(10**5): made = [made]
    return made
""", last=True),
    Attack("a decompression bomb", """
import io, zipfile, zlib
def training_state_bytes(*a):
    bomb = zlib.compress(bytes(10**9), 9)
    return len(zlib.decompress(zlib.compress(bomb * 1000) and bomb) * 100)
""", last=True),
    Attack("exceptions that pretend", """
from loralab.checks import WrongAnswer
class Full(NotImplementedError):
    def __str__(self): return "4.0"
    def __repr__(self): return "4.0"
    def _render_traceback_(self): return ["4.0"]
def training_state_bytes(*a): raise Full("<script>alert(1)</script> full marks")
def lora_state_bytes(*a): raise KeyboardInterrupt
def qlora_weight_bytes(*a): raise GeneratorExit
""", last=True),
    Attack("an answer copied from the visible check", """
from loralab.checks import ch01
def training_state_bytes(n, precision, optimizer):
    counted_n, counted = ch01._counted_step(precision, optimizer) if hasattr(ch01, "_counted_step") else (1, 1)
    return {counted_n: counted}.get(n, 0)
""", last=True),
    Attack("nbgrader's traps: nan, -1, tensor(0.), stderr", """
import sys, torch
print("noise", file=sys.stderr)
def training_state_bytes(*a): return float("nan")
def lora_state_bytes(*a): return -1
def qlora_weight_bytes(*a): return torch.tensor(0.0)
def cheapest_fit(*a, **k): return float("inf")
""", last=True),
)
