"""One training step of the real model, without weights and without a GPU.

transformers builds the model, PEFT puts its adapters in, bitsandbytes' own autograd functions and
the real optimizer run; but every tensor is a `FakeTensor`: it has a shape, a dtype and a storage
that is made and freed as a real one would be, and no data. What was made and freed is written down
and played to a copy of PyTorch's caching allocator, three steps long. That gives what
`torch.cuda.max_memory_allocated` would say, and `max_memory_reserved`.

Three things that a tensor on a CPU does not show are put in by hand, each from its source:
the attention kernel (chosen, since CUDA's choice depends on the GPU), the scratch memory inside
kernels, and cuBLAS's workspaces.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from loralab.errors import CourseError
from loralab.memory import architectures, kernels, optimizers
from loralab.memory.allocator import CachingAllocator
from loralab.memory.held import held_bytes, trained_sizes
from loralab.memory.holdings import tensors_of
from loralab.memory.ledger import Ledger
from loralab.memory.result import LABELS, Estimate
from loralab.memory.settings import Settings, chosen
from loralab.memory.storages import LiveStorages
from loralab.memory.trace import Event, Trace
from loralab.quiet import quiet

STEPS = 3  # the first makes the optimizer's states; by the third the cache has settled

PHASES = {
    "forward": "the forward pass", "loss": "the forward pass of the loss",
    "backward of the loss": "the backward pass of the loss",
    "backward": "the backward pass", "optimizer": "the optimizer's step",
}  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a step. `by`: bytes by kind; `reserved`: bytes that the allocator has
    taken by the end; `phase`, `operation`, `module`: where."""

    by: dict[str, int]
    reserved: int
    phase: str
    operation: str
    module: str


def simulate(model: Any, method: str = "qlora", **given: Any) -> Estimate:
    """Bytes at the peak of one training step, found by running it without data.

    Takes what `estimate` takes, and any architecture that transformers knows. Needs about as many
    seconds for a 7B model as for a small one, and no memory to speak of. `master_weights` is a
    convention of other libraries and raises CourseError: in transformers mixed precision is
    dtype="fp32" with autocast=True.
    """
    step = chosen(model, method, given)
    if step.master_weights:
        raise CourseError(
            "transformers keeps no fp32 copy beside 16-bit weights: there is nothing to simulate.",
            'Its mixed precision is dtype="fp32" with autocast=True.',
        )
    try:
        found = peak_of(step)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        name, attention = step.arch.name, step.kernel
        raise CourseError(
            f"A step of {name} cannot be simulated with {attention} attention ({said}).",
            'Some models have an attention of their own: try attention="eager", or the formula.',
        ) from error
    trained = sum(trained_sizes(step))
    where = f" in {found.module}" if found.module and found.phase != "optimizer" else ""
    return Estimate(
        components=dict.fromkeys(LABELS, 0) | found.by,
        held=held_bytes(step),
        peak_at=f"in {PHASES[found.phase]}{where}, at {found.operation}",
        by="simulation",
        reserved=found.reserved,
        trainable=trained,
        parameters=step.arch.parameters + (0 if method == "full" else trained),
        settings=step.described(),
    )


def peak_of(
    settings: Settings, *, on_gpu: bool = True, workspaces: int = kernels.CUBLAS_WORKSPACES
) -> Peak:
    """Simulate the steps of a training after its first, so that all states exist.

    `workspaces`: bytes of cuBLAS's, which depend on the GPU. `on_gpu=False` leaves out what only a
    GPU has (the allocator's blocks, workspaces, scratch memory inside kernels, its ways with
    dropout and autocast) and gives what following real steps on a CPU finds.
    """
    trace = recorded(settings, on_gpu=on_gpu)
    return played(trace, workspaces if on_gpu else 0, CachingAllocator() if on_gpu else None)


def recorded(settings: Settings, *, on_gpu: bool = True) -> Trace:
    """What one step makes and frees, and what loading the model and the first step do."""
    with quiet():
        model = prepared(settings)
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = Step(model, settings, on_gpu=on_gpu)
            step.warm()
            step.run()
    return step.trace


def played(
    trace: Trace, workspaces: int = kernels.CUBLAS_WORKSPACES,
    allocator: CachingAllocator | None = None,
) -> Peak:  # fmt: skip
    """The fullest moment after the first step of a training of `STEPS` steps.

    Without an allocator, of the tensors' bytes instead of its blocks'.
    """
    parts, ledger = trace.parts, Ledger(allocator)
    trace.play(parts["load"], ledger)
    for time in range(STEPS):
        if time < 2:
            ledger.forget_peak()
        for thread, part in enumerate(("forward", "backward"), 1):
            events = parts[part]
            if time == 0:  # each of the two threads gets a handle of cuBLAS when it first needs one
                first = _first_product(events)
                trace.play(events[:first], ledger)
                ledger.made(-thread, workspaces // 2, "workspace")
                events = events[first:]
            trace.play(events, ledger, time)
            if part == "forward" and time:  # a name lives until it gets its next value
                trace.play(parts["names"], ledger, time - 1)
        trace.play(parts["step" if time else "first step"], ledger, time)
        trace.play(parts["end"], ledger, time)
    by = {kind: size for kind, size in ledger.peak_by.items() if size}
    phase, function, module = ledger.peak_at or ("", "", "")
    return Peak(by, ledger.allocator.reserved, phase, str(function), module)


def _first_product(events: Sequence[Event]) -> int:
    """Where the first matrix product among them is."""
    return next((at for at, (name, *given) in enumerate(events)
                 if name == "made" and given[3][1] in kernels.PRODUCTS), 0)


# --- the model -----------------------------------------------------------------------------------


def prepared(settings: Settings) -> nn.Module:
    """The model as it is when training begins, on the `meta` device."""
    model = architectures.build(copy.deepcopy(settings.arch.config), dtype=settings.dtype)
    kernels.use(model, settings.kernel)
    if settings.method == "qlora":
        quantise(model, settings)
    if settings.method != "full":
        model = with_adapters(model, settings)
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if settings.method != "full":
            model.enable_input_require_grads()
    return model.train()


def quantise(model: nn.Module, settings: Settings) -> None:
    """Put bitsandbytes' 4-bit layers in the place of linear ones, holding what it would hold."""
    import bitsandbytes as bnb

    kernels.register_bitsandbytes()
    for layer in settings.arch.linear:
        old = model.get_submodule(layer.path)
        inputs, outputs = layer.inputs, layer.outputs
        with torch.device("meta"):
            new = bnb.nn.Linear4bit(
                inputs, outputs, bias=old.bias is not None, compute_dtype=settings.compute,
                compress_statistics=settings.double_quant, quant_type="nf4",
            )  # fmt: skip
            new.weight = nn.Parameter(
                torch.empty((inputs * outputs + 1) // 2, 1, dtype=torch.uint8), requires_grad=False
            )
            new.weight.quant_state = constants((outputs, inputs), settings)
        new.weight.compress_statistics, new.weight.quant_type = settings.double_quant, "nf4"
        new.bias = old.bias
        model.set_submodule(layer.path, new)
    model.is_loaded_in_4bit = True


def constants(shape: tuple[int, int], settings: Settings) -> Any:
    """bitsandbytes' `QuantState` of one layer, on the current device."""
    from bitsandbytes.functional import QuantState

    blocks = -(-shape[0] * shape[1] // 64)
    inner = None
    if settings.double_quant:
        inner = QuantState(
            absmax=torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256),
            dtype=torch.float32,
        )  # fmt: skip
    return QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if inner else torch.float32),
        shape=torch.Size(shape), code=torch.empty(16), blocksize=64, quant_type="nf4",
        # What backward turns the codes back into: the dtype that they were made from.
        dtype=settings.dtype, offset=torch.empty(()) if inner else None, state2=inner,
    )  # fmt: skip


def with_adapters(model: nn.Module, settings: Settings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    if settings.kbit_prep:
        # As peft.prepare_model_for_kbit_training does; a Params4bit is told by its quant_state.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
        target_modules=[layer.path for layer in settings.adapted], task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.device("meta"):
        model = get_peft_model(model, config, low_cpu_mem_usage=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(settings.adapter)
    if settings.method == "qlora":  # a 4-bit layer casts its bias for good when it first runs
        for layer in settings.arch.linear:
            bias = model.get_submodule(f"base_model.model.{layer.path}").bias
            if bias is not None:
                bias.data = bias.data.to(settings.compute)
    return model


def put_on_device(model: nn.Module, settings: Settings, cache_emptied: Callable[[], None]) -> None:
    """Swap `meta` tensors for those of the `FakeTensorMode` in force, in the order of loading.

    As `loralab.measure.model` does it: quantised layers one after the other, the other tensors,
    buffers, what PEFT casts before 4-bit training, adapters. A shared tensor is made once.
    """
    base = model.get_base_model() if settings.method != "full" else model
    made: dict[nn.Parameter, torch.Tensor] = {}
    if settings.method == "qlora":
        for layer in settings.arch.linear:
            weight = base.get_submodule(layer.path).weight
            made[weight] = quantised(weight, settings)
    parameters = [p for module in model.modules() for p in module._parameters.values()
                  if p is not None and p not in made]
    lora = [p for name, p in model.named_parameters() if "lora_" in name]
    rest = [p for p in dict.fromkeys(parameters) if p not in set(lora)]
    for parameter in rest:
        made[parameter] = torch.empty(parameter.shape, dtype=settings.dtype)
    for module in model.modules():
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = _alike(old)
    for parameter in rest:
        if parameter.dtype != settings.dtype:
            made[parameter] = _alike(parameter)
    if settings.kbit_prep:
        cache_emptied()
    # PEFT makes adapters in the base's dtype, then has them all in fp32.
    begun = settings.compute if settings.method == "qlora" else settings.dtype
    for dtype in (begun, torch.float32, settings.adapter):
        for parameter in lora:
            if parameter not in made or made[parameter].dtype != dtype:
                made[parameter] = torch.empty(parameter.shape, dtype=dtype)
    _swap(model, made)


def quantised(weight: nn.Parameter, settings: Settings) -> torch.Tensor:
    """The codes of one layer, its constants made with them, as bitsandbytes makes them."""
    state = weight.quant_state
    whole = torch.empty(state.shape, dtype=settings.dtype)
    absmax = torch.empty(-(-whole.numel() // 64))
    codes = _alike(weight)
    state.code = _alike(state.code)
    if not state.nested:
        state.absmax = absmax
        return codes
    state.offset = absmax.mean()
    less = absmax - state.offset
    state.absmax, state.state2.absmax = _alike(state.absmax), _alike(state.state2.absmax)
    state.state2.code = _alike(state.state2.code)
    del absmax, less, whole
    return codes


def _alike(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _swap(model: nn.Module, made: Mapping[nn.Parameter, torch.Tensor]) -> None:
    swapped: dict[nn.Parameter, nn.Parameter] = {}
    for old, tensor in made.items():
        swapped[old] = nn.Parameter(tensor, requires_grad=old.requires_grad)
        if (state := getattr(old, "quant_state", None)) is not None:
            swapped[old].quant_state = state
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                module._parameters[name] = swapped[old]


# --- the step ------------------------------------------------------------------------------------


class Step:
    """A training step that writes a `trace` of its storages, and where it is."""

    def __init__(self, model: nn.Module, settings: Settings, *, on_gpu: bool = True):
        self.model, self.settings = model, settings
        self.phase, self.modules = "", []
        self.trace = Trace(lambda function: (self.phase, function, (self.modules or [""])[-1]))
        gpu = {"hidden": kernels.hidden_bytes} if on_gpu else {}
        self.place = as_on_gpu(settings) if on_gpu else contextlib.nullcontext()
        self.storages = LiveStorages(self.trace, **gpu)
        self.trace.begin("load")
        with self.storages:
            put_on_device(model, settings, self.trace.cache_emptied)
        for kind, tensor in tensors_of(model):
            self.storages.add(tensor, kind)
        for buffer in model.buffers():
            self.storages.add(buffer, "weights")
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.names = {module: name for name, module in self.base.named_modules()}
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizers.of(settings.optimizer, self.trained)
        if settings.loss == "trl":
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(self.base, outputs=("log_probs", "entropy", "is_top1"))

    def warm(self) -> None:
        """A first step of the optimizer alone: from now on its states exist."""
        self.trace.begin("gradients of the first step")
        with self.storages:
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
            self._enter("optimizer", "temporary")
            self.trace.begin("first step")
            self.optimizer.step()
            states = self.optimizer.states()
        for tensor in states:
            self.storages.add(tensor, "optimizer")
        for tensor in self.optimizer.in_main_memory():
            self.storages.leave_out(tensor)
        self.trace.begin("end of the first step")
        self.model.zero_grad(set_to_none=True)

    def run(self) -> None:
        """Forward, backward and the optimizer's step, on tokens without padding."""
        shape = self.settings.batch, self.settings.seq
        autocast = self.settings.autocast
        with self.storages, self._hooks(), self.place:
            self.trace.begin("forward", repeats=True)
            self._enter("forward", "activations")
            ids = torch.zeros(shape, dtype=torch.long)
            labels = torch.zeros(shape, dtype=torch.long)
            with torch.autocast("cpu", dtype=self.settings.compute, enabled=autocast):
                outputs = self._forward(ids, labels)
            loss = outputs.loss
            if self.settings.loss != "hf":
                outputs = None
            self.trace.begin("backward")
            self._enter("backward of the loss", "logits")
            loss.backward()
            self.trace.begin("step")
            self._enter("optimizer", "temporary")
            self.optimizer.step()
        self.trace.begin("end")
        self.model.zero_grad(set_to_none=True)
        del ids, labels
        self.trace.begin("names")
        del loss, outputs
        self.trace.begin("afterwards")

    def _forward(self, ids: torch.Tensor, labels: torch.Tensor) -> Any:
        if self.settings.loss == "trl":
            return self.model(input_ids=ids, labels=labels, fused_lm_head=True)
        # A cache of keys and values is made in training too, unless one says no: transformers'
        # Trainer does, and a model with checkpointing does by itself.
        cache = self.settings.loss == "hf" and not self.settings.checkpointing
        return self.model(input_ids=ids, labels=labels, use_cache=cache)

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        """What marks the way: modules entered and left, the loss begun, gradients made."""

        def entered(module: nn.Module, *_: Any) -> None:
            self.modules.append(self.names.get(module, ""))

        def left(*_: Any) -> None:
            self.modules.pop()

        def hidden_states_made(module: nn.Module, args: Any, output: Any) -> None:
            self._enter("loss", "logits")
            output.last_hidden_state.register_hook(lambda _: self._enter("backward", "temporary"))

        def gradient_made(parameter: torch.Tensor) -> None:
            self.storages.add(parameter.grad, "gradients")

        handles = [
            nn.modules.module.register_module_forward_pre_hook(entered),
            nn.modules.module.register_module_forward_hook(left, always_call=True),
            self.base.base_model.register_forward_hook(hidden_states_made),
            *(p.register_post_accumulate_grad_hook(gradient_made) for p in self.trained),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, phase: str, kind: str) -> None:
        self.phase, self.storages.kind = phase, kind


@contextlib.contextmanager
def as_on_gpu(settings: Settings) -> Iterator[None]:
    """Functions do what they do on a GPU where a CPU differs, and so does TRL's loss."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(kernels.seen_as_autocast(settings.autocast))
        stack.enter_context(kernels.functions_of_a_gpu())
        if settings.loss == "trl":
            stack.enter_context(_without_triton())
        yield


@contextlib.contextmanager
def _without_triton() -> Iterator[None]:
    """TRL's loss as on CUDA, where Triton kernels work on each tile in place."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def apply(hidden: torch.Tensor, *rest: Any) -> Any:
        # On CUDA the hidden states of tokens with a label are picked out: always a copy.
        return ordinary.apply(hidden.clone() if hidden._is_view() else hidden, *rest)

    ordinary = utils._ChunkedLogProbFunction
    nothing = {name: lambda *args, **kwargs: None
               for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")}
    picking = mock.Mock(apply=apply)
    with mock.patch.multiple(chunked_logprob, **nothing), \
            mock.patch.object(utils, "_ChunkedLogProbFunction", picking):
        yield
