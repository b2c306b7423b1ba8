"""One CUDA device without one: its tensors are computed on the CPU, and account is kept of what a real one would do.

`with Device() as dry:` makes torch.cuda say that there is one device. Tensors on it are a wrapper subclass that says
cuda:0 in Python; C++ sees a CPU tensor, so that autograd and composite operations work in any build of torch.
`dry.faults` then lists what would fail, be wrong or be slow on a device, each with the operation and the line of our
code:

* "two devices": an operation over a tensor of the device and one of the CPU that has dimensions;
* "race": memory used on a stream that has not waited for who wrote it (or, to write, for who reads it), or pinned
  memory that the host changed before it was copied;
* "no record_stream": memory made on one stream, used on another, and freed without word of it;
* "pageable": a `non_blocking` copy from memory that is not pinned, of any size;
* "host waits": an operation for which the host waits, inside a section that was marked so that none may.

`dry.waits` lists all of the last. `dry.launches` counts operations that compute or copy on the device, by section, and
`dry.traffic` the bytes that they read and write: views are none, nor are operations without elements; an operation over
a list (`_foreach_`, `_fused_`) is one, though a device launches a kernel for every thirty to hundred tensors; one that
takes several kernels, such as a sort, is one too. `dry.allocated` and `dry.peak` are bytes of tensors that are alive.

Waiting is by vector clocks: each stream counts its work, an event holds what its stream had waited for. Time is
simulated: the host takes `host` seconds to launch an operation, a stream `kernel` seconds to do it, streams side by
side; `dry.now` is the host's time, `dry.works(seconds)` lets the host do something else. Copies to the host that it has
not waited for hold NaN, or -1, until it has. More than `memory` bytes of tensors are torch.OutOfMemoryError.

What it cannot show: what a device's own kernels round or choose (cuDNN, TF32, autocast's list of operations, which is
the CPU's), torch.compile (what is compiled runs as it is written), several processes, and kernels inside an operation.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOT = str(Path(__file__).resolve().parent.parent) + "/"
TORCH = str(Path(torch.__file__).parent) + "/"
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


@dataclass(frozen=True)
class Fault:
    """What went wrong, in which operation, at which lines of our code: (file, line, function), the innermost first."""

    kind: str
    operation: str
    where: tuple[tuple[str, int, str], ...]
    about: str = ""
    sections: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, int, str]:
        return self.where[0] if self.where else ("?", 0, "?")

    def __str__(self) -> str:
        file, line, function = self.place
        return f"{file}:{line} ({function}) {self.kind}: {self.operation}{self.about and ', ' + self.about}"

    def inside(self, function: str) -> bool:
        """Whether a function of this name was running."""
        return any(name == function for *_, name in self.where)


def our_lines(whole: bool = True) -> tuple[tuple[str, int, str], ...]:
    """The lines of this tree that are being run, the innermost first; without `whole`, that one alone."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if file.startswith(ROOT) and file != __file__ and "/.venv/" not in file:
            found.append((file[len(ROOT) :], frame.f_lineno, code.co_name))
            if not whole:
                break
        frame = frame.f_back
    return tuple(found)


# ---- streams, events, memory -----------------------------------------------------------------------------------------


class Stream:
    """torch.cuda.Stream: `clock` counts the work of each stream that comes before what is launched here next; `free`:
    when it has done all.
    """

    def __init__(self, device=None, priority: int = 0, *, of: "Device | None" = None):
        self.owner = of or _current()
        self.device, self.clock, self.free = CUDA, Counter(), 0.0
        self.owner.streams.append(self)

    def wait_event(self, event: "Event") -> None:
        self.clock |= event.clock
        self.free = max(self.free, event.time)

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return self.record_event().query()

    def synchronize(self) -> None:
        self.owner.wait("Stream.synchronize", self)

    def __enter__(self):
        self.owner.current.append(self)
        return self

    def __exit__(self, *_):
        self.owner.current.pop()


class Event:
    """torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self.timed, self.owner = enable_timing, _current()
        self.clock, self.time, self.recorded = Counter(), 0.0, False

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.owner.stream
        self.clock, self.recorded = stream.clock | self.owner.known, True
        self.time = max(stream.free, self.owner.now)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.owner.stream).wait_event(self)

    def query(self) -> bool:
        self.owner.now += self.owner.host  # who asks again and again does not ask for ever
        done = self.time <= self.owner.now
        if done:
            self.owner.know(self.clock)
        return done

    def synchronize(self) -> None:
        self.owner.wait("Event.synchronize", self)

    def elapsed_time(self, end: "Event") -> float:
        if not (self.timed and end.timed and self.recorded and end.recorded):
            raise ValueError("both events must be recorded, and made with enable_timing=True")
        if max(self.time, end.time) > self.owner.now:
            raise RuntimeError("both events must be completed before elapsed_time")
        return 1000 * (end.time - self.time)


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

    def get_device(self) -> int:
        return 0

    def to(self, *args, **kwargs) -> Tensor:
        return _current().moved(self, *args, **kwargs)

    def cpu(self, *_, **how) -> Tensor:
        return self.to("cpu", **how)

    def cuda(self, *_, **how) -> Tensor:
        return self.to(CUDA, **how)

    def tolist(self):
        return _current().on_host("tolist", self).tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")

    def record_stream(self, stream: Stream) -> None:
        self.memory.recorded.add(stream)

    def is_pinned(self, *_) -> bool:
        return False

    def __reduce_ex__(self, protocol):
        return _current().on_host("pickled", self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        made = self.detach().clone().requires_grad_(self.requires_grad)
        made = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        return memo.setdefault(id(self), made)

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
    return device is not None and not isinstance(device, OnDevice) and torch.device(device).type == "cuda"


class _Moved(torch.autograd.Function):
    """A copy from one device to another, with a gradient."""

    @staticmethod
    def forward(ctx, x, device, dtype, non_blocking):
        ctx.back = {"device": x.device, "dtype": x.dtype, "non_blocking": non_blocking}
        return _current().moved(x, device, dtype, non_blocking)

    @staticmethod
    def backward(ctx, grad):
        return _current().moved(grad, **ctx.back), None, None, None


def destination(
    first=None, *flags, device=None, dtype=None, non_blocking=False, copy=False, other=None, memory_format=None
):
    """What the arguments of Tensor.to mean: device, and what else is asked for, by name."""
    first, flags = first if other is None else other, list(flags)
    if isinstance(first, Tensor):
        device, dtype = first.device, first.dtype
    elif isinstance(first, torch.dtype):
        dtype = first
    elif first is not None:
        device = first
        if flags and not isinstance(flags[0], bool):
            dtype = flags.pop(0)
    non_blocking, copy = [*flags, *(non_blocking, copy)[len(flags) :]]
    return device, {"dtype": dtype, "non_blocking": non_blocking, "copy": copy, "memory_format": memory_format}


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
    """The account of one device; as a context, torch.cuda says that it is there."""

    def __init__(self, kernel: float = 10e-6, host: float = 5e-6, memory: int = 80 * 2**30):
        self.kernel, self.host, self.now, self.memory = kernel, host, 0.0, memory
        self.faults: list[Fault] = []
        self.waits: list[Fault] = []
        self.launches: Counter = Counter()
        self.traffic: Counter = Counter()
        self.allocated = self.peak = 0
        self.sections: list[str] = []
        self.no_waits: list[str] = []  # of the sections
        self.streams: list[Stream] = []
        self.known, self.open = Counter(), True  # known: what the host has waited for
        self.default = Stream(of=self)
        self.current = [self.default]
        self.pinned: dict[int, Tensor] = {}  # by address; kept, so that no other memory gets it
        self.coming: list[tuple[Counter, Tensor, Tensor]] = []  # copies to the host: after what, from, to
        self.going: list[tuple[Counter, Tensor, Tensor, tuple]] = []  # from pinned memory: after what, from, as it was
        self.generator = torch.Generator()
        self.undo = contextlib.ExitStack()

    def __enter__(self) -> "Device":
        import torch._dynamo  # optimisers do; what it finds in torch.cuda it keeps

        _devices.append(self)
        # so that a module's parameters stay the same objects when they move, as on a device
        self.undo.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        for owner, name, value in stand_ins(self):
            self.undo.enter_context(mock.patch.object(owner, name, value))
        self.undo.enter_context(Functions(self))
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        for owner, name in ((cudnn, "benchmark"), (cudnn, "allow_tf32"), (products, "allow_tf32")):
            self.undo.callback(setattr, owner, name, getattr(owner, name))
        return self

    def __exit__(self, *_):
        self._check_pinned(self.going)
        self.open = False
        self.undo.close()
        _devices.pop()

    @property
    def stream(self) -> Stream:
        return self.current[-1]

    # -- account

    def works(self, seconds: float) -> None:
        """The host does something else for so long."""
        self.now += seconds

    @contextlib.contextmanager
    def section(self, name: str, waits: bool = True):
        """What is launched counts under this name; unless `waits`, a host that waits here is a fault."""
        self.sections.append(name)
        if not waits:
            self.no_waits.append(name)
        try:
            yield
        finally:
            self.sections.pop()
            if not waits:
                self.no_waits.pop()

    def marked(self, function: Callable, name: str, waits: bool = False) -> Callable:
        """The function as a section; of a generator, all that it does until it is at its end."""

        @wraps(function)
        def run(*args, **kwargs):
            with self.section(name, waits):
                made = function(*args, **kwargs)
            return self._steps(made, name, waits) if isinstance(made, Iterator) else made

        return run

    def _steps(self, made: Iterator, name: str, waits: bool) -> Iterator:
        while True:
            with self.section(name, waits):
                try:
                    x = next(made)
                except StopIteration:
                    return
            yield x

    def fault(self, kind: str, operation: str, where=None, about: str = "") -> None:
        self.faults.append(Fault(kind, operation, where or our_lines(), about, tuple(self.sections)))

    def know(self, clock: Counter) -> None:
        """The host has waited for all of this."""
        self.known |= clock
        self.coming, come = self._split(self.coming)
        for _, source, target in come:
            target.copy_(source)
        self.going, gone = self._split(self.going)
        self._check_pinned(gone)

    def _split(self, copies: list) -> tuple[list, list]:
        """Those that the host has not waited for, and those that it has."""
        done = [all(self.known[s] >= n for s, n in copy[0].items()) for copy in copies]
        return tuple([c for c, d in zip(copies, done, strict=True) if d is wanted] for wanted in (False, True))

    def _check_pinned(self, copies) -> None:
        for _, source, before, where in copies:
            if not torch.equal(source.nan_to_num(), before.nan_to_num()):
                self.fault("race", "to cuda:0, non_blocking", where, "from pinned memory that was changed meanwhile")

    def wait(self, operation: str, what: "Stream | Event | None" = None) -> None:
        """The host waits for a stream or an event, else for the current stream."""
        what = what or self.stream
        found = Fault("host waits", operation, our_lines(), "", tuple(self.sections))
        self.waits.append(found)
        if self.no_waits:
            self.faults.append(found)
        self.now = max(self.now, what.time if isinstance(what, Event) else what.free)
        self.know(what.clock)

    def synchronize(self, _=None) -> None:
        all_work = Event()
        for stream in self.streams:
            all_work.clock |= stream.clock
            all_work.time = max(all_work.time, stream.free)
        self.wait("synchronize", all_work)

    def launch(self, operation: str, reads, writes) -> None:
        """One operation on the current stream, over what it reads and writes."""
        stream = self.stream
        stream.clock |= self.known
        before = stream.clock
        written = {id(x.memory) for x in writes}
        for x in (*reads, *writes):
            users = x.memory.written if id(x.memory) not in written else {**x.memory.read, **x.memory.written}
            for other, (count, by, where) in users.items():
                if before[other] < count:
                    line = ":".join(map(str, where[0][:2])) if where else "?"
                    self.fault("race", operation, about=f"without waiting for {by} at {line}")
        stream.clock[stream] += 1
        done = stream.clock[stream], operation, our_lines(whole=False)
        for x in reads:
            x.memory.read[stream] = done
        for x in writes:
            x.memory.written[stream] = done
        self.now += self.host
        stream.free = max(stream.free, self.now) + self.kernel
        moved = sum(min(x.numel() * x.element_size(), x.memory.size) for x in (*reads, *writes))
        for section in {"all", *self.sections}:
            self.launches[section] += 1
            self.traffic[section] += moved

    # -- tensors

    def put(self, inner: Tensor) -> OnDevice:
        """A tensor's values, in memory of their own on the device."""
        size = inner.untyped_storage().nbytes()
        if self.allocated + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
        return OnDevice(inner, Memory(self, size))

    def on_host(self, operation: str, x: OnDevice) -> Tensor:
        """The values, once the host has waited for them."""
        self.launch(operation, [x], [])
        self.wait(operation)
        return x.inner.clone()

    def is_pinned(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self.pinned

    def pin(self, x: Tensor) -> Tensor:
        if not self.is_pinned(x):
            x = x.clone()
            self.pinned[x.untyped_storage().data_ptr()] = x.detach()
        return x

    def moved(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Tensor.to."""
        device, how = destination(*args, **kwargs)
        dtype, copy, non_blocking = how["dtype"] or x.dtype, how["copy"], how["non_blocking"]
        form = {} if how["memory_format"] is None else {"memory_format": how["memory_format"]}
        was_here = isinstance(x, OnDevice)
        if device is None or is_on_cuda(device) == was_here or (was_here and asked_by_torch()):
            return Tensor.to(x, dtype=dtype, copy=copy, **form)
        if x.requires_grad and torch.is_grad_enabled():
            return _Moved.apply(x, CUDA if not was_here else "cpu", dtype, non_blocking)
        operation = f"to {device}" + (", non_blocking" if non_blocking else "")
        if was_here:
            return self.fetched(Tensor.to(x, dtype=dtype, **form), operation, non_blocking)
        made = self.put(Tensor.to(x, dtype=dtype, copy=True, **form))
        self.brought(x, made, operation, non_blocking)
        return made

    def brought(self, x: Tensor, made: OnDevice, operation: str, non_blocking: bool) -> None:
        """Account of a copy from the host."""
        self.launch(operation, [], [made])
        if not non_blocking:
            self.wait(operation)
        elif self.is_pinned(x):
            self.going.append((Counter(self.stream.clock), x.detach(), x.detach().clone(), our_lines()))
        else:
            self.fault("pageable", operation, about=f"of {x.numel() * x.element_size()} bytes")

    def fetched(self, x: OnDevice, operation: str, non_blocking: bool) -> Tensor:
        """The values on the host: in pinned memory, and when it has waited, if it does not wait here."""
        if not non_blocking:
            return self.on_host(operation, x)
        target = self.pin(torch.empty_like(x.inner))
        self.to_come(x, target, operation)
        return target

    def to_come(self, x: OnDevice, target: Tensor, operation: str) -> None:
        self.launch(operation, [x], [])
        target.fill_(torch.nan if target.is_floating_point() else -1)
        self.coming.append((Counter(self.stream.clock), x.inner.clone(), target))

    def copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """aten.copy_ between the devices, or on this one."""
        if isinstance(target, OnDevice) and isinstance(source, OnDevice):
            self.launch("copy_", [source], [target])
            target.inner.copy_(source.inner)
        elif isinstance(target, OnDevice):
            target.inner.copy_(source)
            self.brought(source, target, "copy_ to cuda:0", non_blocking)
        elif non_blocking and self.is_pinned(target):
            self.to_come(source, target, "copy_ to the host")
        else:
            target.copy_(self.on_host("copy_ to the host", source))
        return target

    def compute(self, func, args, kwargs):
        """An operation of torch in which a tensor of the device takes part."""
        name = func.overloadpacket.__name__
        if name == "copy_":
            return self.copied(*args, **kwargs)
        tensors = [x for x in leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor)]
        here = [x for x in tensors if isinstance(x, OnDevice)]
        may_be_beside = args[1] if name in INDEXING and isinstance(args[0], OnDevice) else ()
        allowed = {id(x) for x in may_be_beside}
        beside = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim and id(x) not in allowed]
        if beside:
            shapes = ", ".join(str(list(x.shape)) for x in beside)
            self.fault("two devices", name, about=f"with {shapes} on the CPU")
        inner = {k: unwrapped(v) for k, v in kwargs.items()}
        if "generator" in inner or any(a.name == "generator" for a in func._schema.arguments):
            inner["generator"] = inner.get("generator") or self.generator
        result = computed(func, tuple(map(unwrapped, args)), inner)
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
        kwargs = {**kwargs, "device": "cpu"}
        if "generator" not in kwargs and func in RANDOM:
            kwargs["generator"] = self.generator
        made = func(*args, **kwargs)
        if isinstance(made, OnDevice):
            return made
        put = self.put(made).requires_grad_(made.requires_grad)
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.brought(made, put, func.__name__, non_blocking=False)
        elif not func.__name__.startswith(("empty", "new_empty")) and made.numel():
            self.launch(func.__name__, [], [put])
        return put


def computed(func, args, kwargs):
    """On the CPU; what it cannot do in float16, in float32."""
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if "Half" not in str(error):
            raise
    wide = [x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x for x in args]
    result = func(*wide, **kwargs)
    return tuple(x.half() for x in result) if isinstance(result, tuple) else result.half()


def asked_by_torch() -> bool:
    """Whether optimisers or gradient clipping ask for a tensor on the device that C++ has told them of."""
    file = sys._getframe(3).f_code.co_filename
    return file.startswith((f"{TORCH}optim/", f"{TORCH}nn/utils/"))


# ---- torch's functions -----------------------------------------------------------------------------------------------

RANDOM = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal)


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
            return self.on.moved(args[0], CUDA, non_blocking=kwargs.get("non_blocking", False))
        if func is Tensor.is_pinned:
            return self.on.is_pinned(args[0])
        if is_on_cuda(kwargs.get("device")):
            return self.on.factory(func, args, kwargs)
        if kwargs.get("pin_memory"):
            return self.on.pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)


class Autocast(torch.autocast):
    """torch.autocast: C++ sees CPU tensors."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Generator(torch.Generator):
    """torch.Generator, whose numbers come from the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


def stand_ins(on: Device) -> Iterator[tuple[object, str, object]]:
    """(owner, name, what takes its place) of all public names that would look for a device."""
    of_cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda _=None: "a dry run",
        "get_device_capability": lambda _=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda _=None: on.stream,
        "default_stream": lambda _=None: on.default,
        "stream": lambda stream: stream if stream is not None else contextlib.nullcontext(),
        "synchronize": on.synchronize,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _=None: (on.memory - on.allocated, on.memory),
        "get_device_properties": lambda _=None: SimpleNamespace(name="a dry run", total_memory=on.memory),
        "memory_allocated": lambda _=None: on.allocated,
        "max_memory_allocated": lambda _=None: on.peak,
        "reset_peak_memory_stats": lambda _=None: setattr(on, "peak", on.allocated),
        "get_rng_state": lambda _=None: on.generator.get_state(),
        "set_rng_state": lambda state, _=None: on.generator.set_state(state),
        "manual_seed": on.generator.manual_seed,
        "manual_seed_all": on.generator.manual_seed,
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
    yield torch, "Generator", Generator
    yield Tensor, "pin_memory", lambda x, *_: on.pin(x)
    # torch takes the forms over lists for tensors of its own classes alone
    yield torch.nn.utils, "clip_grad_norm_", partial(torch.nn.utils.clip_grad_norm_, foreach=True)
