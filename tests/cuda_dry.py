"""A simulated CUDA device: its tensors are computed on the CPU, and what a real one would do is recorded.

`with Device() as dry:` makes torch.cuda say that there is one device. Tensors on it are a wrapper subclass that says
cuda:0 in Python; C++ sees a CPU tensor, so that autograd and composite operations work in any build of torch.
`dry.faults` then lists what would fail, be wrong or be slow on a device, each with the operation and the line of our
code:

* "two devices": an operation over a tensor of the device and one of the CPU that has dimensions;
* "race": memory used on a stream that has not waited for who wrote it, or, to write, for who reads it;
* "no record_stream": memory made on one stream, used on another, and freed without word of it;
* "pageable": a `non_blocking` copy from memory that is not pinned, of any size;
* "host waits": an operation for which the host waits, inside a section.

`dry.waits` lists all of the last. `dry.launches` counts operations that compute or copy on the device, by section:
views are none, nor are operations without elements; an operation over a list (`_foreach_`, `_fused_`) is one.
`dry.allocated` and `dry.peak` are bytes of tensors that are alive; more than `memory` of them are an error of torch's.
Streams by vector clocks: each counts its work, an event holds what its stream had waited for.

What it cannot show: what a device's own kernels round or choose (cuDNN, TF32, autocast's list of operations, which is
the CPU's), its time and its random numbers, torch.compile (what is compiled runs as it is written), several processes,
and kernels inside an operation. `make gpu` asks a real one.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOT = str(Path(__file__).resolve().parent.parent) + "/"
TORCH = str(Path(torch.__file__).parent) + "/"
CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Fault:
    """What went wrong, in which operation, at which lines of our code: (file, line, function), the innermost first."""

    kind: str
    operation: str
    where: tuple[tuple[str, int, str], ...]
    about: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        return self.where[0] if self.where else ("?", 0, "?")

    def __str__(self) -> str:
        file, line, function = self.place
        return f"{file}:{line} ({function}) {self.kind}: {self.operation}{self.about and ', ' + self.about}"

    def inside(self, function: str) -> bool:
        """Whether a function of this name was running."""
        return any(name == function for *_, name in self.where)


def our_lines() -> tuple[tuple[str, int, str], ...]:
    """The lines of this tree that are being run, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if file.startswith(ROOT) and file != __file__ and "/.venv/" not in file:
            found.append((file[len(ROOT) :], frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(found)


# ---- streams, events, memory -----------------------------------------------------------------------------------------


class Stream:
    """torch.cuda.Stream: `clock` counts the work of each stream that comes before what is launched here next."""

    def __init__(self, device=None, *, owner: "Device | None" = None):
        self.owner, self.device, self.clock = owner or _current(), CUDA, Counter()

    def wait_event(self, event: "Event") -> None:
        self.clock |= event.clock

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.owner.wait("Stream.synchronize", self.clock)

    def __enter__(self):
        self.owner.current.append(self)
        return self

    def __exit__(self, *_):
        self.owner.current.pop()


class Event:
    """torch.cuda.Event, between two of which no time passes."""

    def __init__(self, enable_timing: bool = False):
        self.owner, self.clock = _current(), Counter()

    def record(self, stream: Stream | None = None) -> None:
        self.clock = (stream or self.owner.stream).clock | self.owner.known

    def synchronize(self) -> None:
        self.owner.wait("Event.synchronize", self.clock)

    def elapsed_time(self, end: "Event") -> float:
        return 0.0


class Memory:
    """What tensors share that are views of one another: where it was made, written and read.

    written, read: by stream, the count of its last work that did so, and the operation and line of that.
    """

    def __init__(self, owner: "Device", size: int):
        self.owner, self.home, self.size = owner, owner.stream, size
        self.written, self.read, self.recorded = {}, {}, {self.home}
        owner.allocated += size
        owner.peak = max(owner.peak, owner.allocated)

    def __del__(self):
        self.owner.allocated -= self.size
        if not self.owner.open:
            return
        known = self.home.clock | self.owner.known
        for stream, (count, operation, where) in (*self.read.items(), *self.written.items()):
            if stream not in self.recorded and known[stream] < count:
                self.owner.fault("no record_stream", operation, where, "whose memory is freed on another stream")


# ---- the tensor ------------------------------------------------------------------------------------------------------


class OnDevice(Tensor):
    """A tensor on the device: `inner` is computed in its place, `memory` is what it shares with its views."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )

    def __init__(self, inner: Tensor, memory: Memory):
        self.inner, self.memory = inner.detach(), memory

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _current().compute(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args, **kwargs) -> Tensor:
        return _current().moved(self, *args, **kwargs)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")

    def record_stream(self, stream: Stream) -> None:
        self.memory.recorded.add(stream)

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"OnDevice({self.inner!r})"


def leaves(args) -> Iterator:
    for x in args:
        if isinstance(x, (list, tuple)):
            yield from leaves(x)
        else:
            yield x


def unwrapped(x):
    if isinstance(x, OnDevice):
        return x.inner
    if isinstance(x, (list, tuple)):
        return type(x)(map(unwrapped, x))
    return x


def is_on_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# ---- what the host waits for -----------------------------------------------------------------------------------------

# outputs whose size, or values, the host has to know
WAITED_FOR = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "histc", "_linalg_check_errors",
}  # fmt: skip
# no operation of the device: memory is set aside, or looked at otherwise
NO_LAUNCH = {
    "detach", "alias", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "lift",
    "_reshape_alias", "_unsafe_view", "view", "is_same_size", "_local_scalar_dense", "_linalg_check_errors",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by tensors, which may lie on the CPU


def is_mask(x) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


def has_to_wait(name: str, args, kwargs) -> bool:
    """Whether the host waits in an operation."""
    if name in INDEXING:
        indices = [x for x in args[1] if x is not None]
        if any(not isinstance(x, OnDevice) for x in indices):  # copied to the device first
            return True
        of_masks = all(map(is_mask, indices))
        fills = name != "index" and of_masks and args[2].numel() == 1 and not (len(args) > 3 and args[3])
        return any(map(is_mask, indices)) and not fills
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITED_FOR


def written_by(func, name: str, args, kwargs) -> Iterator[OnDevice]:
    """The tensors that an operation writes into, beside those that it makes."""
    if name == "native_batch_norm":  # its statistics, though its schema does not say so
        yield from (x for x in args[3:5] if isinstance(x, OnDevice))
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (x for x in leaves([value]) if isinstance(x, OnDevice))


# ---- the device ------------------------------------------------------------------------------------------------------

_devices: list["Device"] = []


def _current() -> "Device":
    return _devices[-1]


class Device:
    """The record of one device; as a context, torch.cuda says that it is there."""

    def __init__(self, memory: int = 80 * 2**30):
        self.memory, self.allocated, self.peak = memory, 0, 0
        self.faults: list[Fault] = []
        self.waits: list[Fault] = []
        self.launches: Counter = Counter()
        self.sections: list[str] = []
        self.known, self.open = Counter(), True  # known: what the host has waited for
        self.current = [Stream(owner=self)]
        self.pinned: dict[int, Tensor] = {}  # by address; kept, so that no other memory gets it
        self.undo = contextlib.ExitStack()

    def __enter__(self) -> "Device":
        import torch._dynamo  # optimizers do; what it finds in torch.cuda it keeps

        _devices.append(self)
        # so that a module's parameters stay the same objects when they move, as on a device
        self.undo.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        for owner, name, value in replacements(self):
            self.undo.enter_context(mock.patch.object(owner, name, value))
        self.undo.enter_context(Functions(self))
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        for owner, name in ((cudnn, "benchmark"), (cudnn, "allow_tf32"), (products, "allow_tf32")):
            self.undo.callback(setattr, owner, name, getattr(owner, name))
        return self

    def __exit__(self, *_):
        self.open = False
        self.undo.close()
        _devices.pop()

    @property
    def stream(self) -> Stream:
        return self.current[-1]

    # -- record

    @contextlib.contextmanager
    def section(self, name: str):
        """What is launched counts under this name; a host that waits here is a fault."""
        self.sections.append(name)
        try:
            yield
        finally:
            self.sections.pop()

    def marked(self, function: Callable, name: str) -> Callable:
        """The function as a section; of a generator, all that it does until it is at its end."""

        @wraps(function)
        def run(*args, **kwargs):
            with self.section(name):
                made = function(*args, **kwargs)
            return self._steps(made, name) if isinstance(made, Iterator) else made

        return run

    def _steps(self, made: Iterator, name: str) -> Iterator:
        while True:
            with self.section(name):
                try:
                    x = next(made)
                except StopIteration:
                    return
            yield x

    def fault(self, kind: str, operation: str, where=None, about: str = "") -> None:
        self.faults.append(Fault(kind, operation, where or our_lines(), about))

    def wait(self, operation: str, clock: Counter | None = None) -> None:
        """The host waits for all of this, else for the current stream."""
        self.known |= self.stream.clock if clock is None else clock
        self.waits.append(Fault("host waits", operation, our_lines()))
        if self.sections:
            self.faults.append(self.waits[-1])

    def launch(self, operation: str, reads, writes) -> None:
        """One operation on the current stream, over what it reads and writes."""
        stream = self.stream
        stream.clock |= self.known
        before, written = stream.clock, {id(x.memory) for x in writes}
        for x in (*reads, *writes):
            users = x.memory.written if id(x.memory) not in written else {**x.memory.read, **x.memory.written}
            for other, (count, by, where) in users.items():
                if before[other] < count:
                    line = ":".join(map(str, where[0][:2])) if where else "?"
                    self.fault("race", operation, about=f"without waiting for {by} at {line}")
        stream.clock[stream] += 1
        done = stream.clock[stream], operation, our_lines()
        for x in reads:
            x.memory.read[stream] = done
        for x in writes:
            x.memory.written[stream] = done
        self.launches.update(set(self.sections))

    # -- tensors

    def put(self, inner: Tensor) -> OnDevice:
        """A tensor's values, in memory of their own on the device."""
        size = inner.untyped_storage().nbytes()
        if self.allocated + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
        return OnDevice(inner, Memory(self, size))

    def is_pinned(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self.pinned

    def pin(self, x: Tensor) -> Tensor:
        if not self.is_pinned(x):
            x = x.clone()
            self.pinned[x.untyped_storage().data_ptr()] = x.detach()
        return x

    def moved(self, x: Tensor, *args, copy: bool = False, **kwargs) -> Tensor:
        """Tensor.to."""
        if args and isinstance(args[0], Tensor):
            args = args[0].device, args[0].dtype, *args[1:]
        with torch._C.DisableTorchFunction():
            device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
        how = {"dtype": dtype or x.dtype} | ({} if form is None else {"memory_format": form})
        was_here = isinstance(x, OnDevice)
        if device is None or is_on_cuda(device) == was_here or (was_here and asked_by_torch()):
            return Tensor.to(x, copy=copy, **how)
        assert not (x.requires_grad and torch.is_grad_enabled()), "gradients between devices are not simulated"
        operation = f"to {device}" + (", non_blocking" if non_blocking else "")
        if was_here:
            self.launch(operation, [x], [])
            if not non_blocking:
                self.wait(operation)
            return Tensor.to(x.inner, copy=True, **how)
        made = self.put(Tensor.to(x, copy=True, **how))
        self.brought(x, made, operation, non_blocking)
        return made

    def brought(self, x: Tensor, made: OnDevice, operation: str, non_blocking: bool) -> None:
        """Record a copy from the host."""
        self.launch(operation, [], [made])
        if not non_blocking:
            self.wait(operation)
        elif not self.is_pinned(x):
            self.fault("pageable", operation, about=f"of {x.numel() * x.element_size()} bytes")

    def copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """aten.copy_ between the devices, or on this one."""
        unwrapped(target).copy_(unwrapped(source))
        if not isinstance(source, OnDevice):
            self.brought(source, target, "copy_ to cuda:0", non_blocking)
        else:
            self.launch("copy_", [source], [target] if isinstance(target, OnDevice) else [])
            if not isinstance(target, OnDevice):
                self.wait("copy_ to the host")
        return target

    def compute(self, func, args, kwargs):
        """An operation of torch in which a tensor of the device takes part."""
        name = func.overloadpacket.__name__
        if name == "copy_":
            return self.copied(*args, **kwargs)
        tensors = [x for x in leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor)]
        here = [x for x in tensors if isinstance(x, OnDevice)]
        allowed = {id(x) for x in (args[1] if name in INDEXING and isinstance(args[0], OnDevice) else ())}
        beside = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim and id(x) not in allowed]
        if beside:
            shapes = ", ".join(str(list(x.shape)) for x in beside)
            self.fault("two devices", name, about=f"with {shapes} on the CPU")
        result = func(*map(unwrapped, args), **{k: unwrapped(v) for k, v in kwargs.items()})
        known = {id(x.inner): x for x in here}
        memories = {x.inner.untyped_storage().data_ptr(): x.memory for x in here if x.inner.numel()}
        wrapped = partial(self._wrapped, known=known, memories=memories)
        made = type(result)(map(wrapped, result)) if isinstance(result, (list, tuple)) else wrapped(result)
        if not (func.is_view or name in NO_LAUNCH) and any(x.numel() for x in here):
            results = [x for x in leaves([made]) if isinstance(x, OnDevice)]
            writes = [x for x in results if id(x.inner) not in known] + list(written_by(func, name, args, kwargs))
            same = {id(x) for x in writes}
            self.launch(name, [x for x in here if id(x) not in same], writes)
        if has_to_wait(name, args, kwargs):
            self.wait("item" if name == "_local_scalar_dense" else name)
        return made

    def _wrapped(self, x, known: dict, memories: dict):
        if not isinstance(x, Tensor):
            return x
        if id(x) in known:
            return known[id(x)]
        memory = memories.get(x.untyped_storage().data_ptr()) if x.numel() else None
        return OnDevice(x, memory) if memory else self.put(x)

    def factory(self, func, args, kwargs):
        """A function with device="cuda"."""
        made = func(*args, **{**kwargs, "device": "cpu"})
        if isinstance(made, OnDevice):
            return made
        put = self.put(made).requires_grad_(made.requires_grad)
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.brought(made, put, func.__name__, non_blocking=False)
        elif not func.__name__.startswith(("empty", "new_empty")) and made.numel():
            self.launch(func.__name__, [], [put])
        return put


def asked_by_torch() -> bool:
    """Whether optimizers or gradient clipping ask for a tensor on the device that C++ has told them of."""
    file = sys._getframe(3).f_code.co_filename
    return file.startswith((f"{TORCH}optim/", f"{TORCH}nn/utils/"))


# ---- torch's functions -----------------------------------------------------------------------------------------------


class Functions(TorchFunctionMode):
    """Makes what is asked for on the device, and copies to it what lies on the CPU."""

    def __init__(self, device: Device):
        super().__init__()
        self.on = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.to:
            return self.on.moved(*args, **kwargs)
        if func is Tensor.cuda:
            return self.on.moved(args[0], CUDA, **kwargs)
        if func is Tensor.is_pinned:
            return self.on.is_pinned(args[0])
        if is_on_cuda(kwargs.get("device")):
            return self.on.factory(func, args, kwargs)
        return func(*args, **kwargs)


class Autocast(torch.autocast):
    """torch.autocast: C++ sees CPU tensors."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def replacements(on: Device) -> Iterator[tuple[object, str, object]]:
    """(owner, name, what takes its place) of all public names that would look for a device."""
    of_cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda _: None,
        "get_device_name": lambda _=None: "a dry run",
        "is_bf16_supported": lambda including_emulation=True: True,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda _=None: on.stream,
        "stream": lambda stream: stream if stream is not None else contextlib.nullcontext(),
        "mem_get_info": lambda _=None: (on.memory - on.allocated, on.memory),
        "memory_allocated": lambda _=None: on.allocated,
        "max_memory_allocated": lambda _=None: on.peak,
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _=None: None,
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
    }
    yield from ((torch.cuda, name, value) for name, value in of_cuda.items())
    if hasattr(torch, "accelerator"):
        for name, value in (
            ("is_available", lambda: True),
            ("current_accelerator", lambda *_, **__: torch.device("cuda")),
            ("current_device_index", lambda: 0),
            ("set_device_index", lambda _: None),
        ):
            yield torch.accelerator, name, value
    yield torch, "compile", lambda function, **_: function
    yield torch, "autocast", Autocast
    yield Tensor, "pin_memory", lambda x, *_: on.pin(x)
    # torch takes the forms over lists for tensors of its own classes alone
    yield torch.nn.utils, "clip_grad_norm_", partial(torch.nn.utils.clip_grad_norm_, foreach=True)
