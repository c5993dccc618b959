"""Where the units of a sweep are worked off: in this process, or on a Ray cluster. The results are the same.

Each unit is the same program on one thread in either place, and what it finds depends on nothing else.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kltutor.checks import check_device
from kltutor.run import Run
from kltutor.sweep import versions
from kltutor.units import Result, Unit, work

RETRIES = 3  # of a unit whose worker was lost
ANY = "auto"  # the address of the cluster that this machine belongs to
HERE = "local"  # the address of a cluster that is started for the sweep and ends with it

Outcome = Result | str  # what a unit found, or why it could not be worked off


def in_process(
    units: Sequence[Unit], told: Callable[[int], None] | None = None
) -> Iterator[tuple[Unit, Outcome]]:
    """Work units off one after another, here.

    Args:
        units: in this order.
        told: hears each step of each unit.

    Yields:
        A unit and its outcome. An error in a unit is its outcome, and the next unit follows.

    Raises:
        ValueError: torch cannot use a device that a run names.
    """
    for device in sorted({run.device for unit in units for run in unit.runs}):
        check_device(device)
    for unit in units:
        try:
            outcome: Outcome = work(unit.runs, told)
        except Exception as error:
            outcome = _reason(error)
        yield unit, outcome


def on_ray(units: Sequence[Unit], address: str = ANY) -> Iterator[tuple[Unit, Outcome]]:
    """Work units off on a Ray cluster, as many at a time as it has processors.

    Its workers need the same versions of this package and of torch. A unit whose worker is lost is tried
    again. A unit takes one processor, and one GPU where a run is on "cuda".

    Args:
        units: sent in this order.
        address: of a cluster; "auto" finds the one that this machine belongs to, "local" starts one here,
            which reports no usage to anybody and takes only those who know its random token.

    Yields:
        A unit and its outcome, in the order in which they are finished.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there is no cluster, or it has nothing that the units can run on.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "engine is 'ray', which is not installed: pip install 'kltutor[scale]'."
        ) from None
    with _cluster(address):
        options = [_options(unit) for unit in units]
        _check_cluster(address, options)
        send = ray.remote(_there)
        waiting = {
            send.options(**own).remote([run.to_json() for run in unit.runs], versions()): unit
            for unit, own in zip(units, options, strict=True)
        }
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            unit = waiting.pop(done)
            try:
                outcome: Outcome = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                outcome = _reason(error.cause)
            except ray.exceptions.RayError as error:
                times = "1 time" if RETRIES == 0 else f"{RETRIES + 1} times"
                outcome = f"its worker was lost {times} ({type(error).__name__})"
            yield unit, outcome


def _options(unit: Unit) -> dict[str, Any]:
    gpu = {"num_gpus": 1} if any(run.device.startswith("cuda") for run in unit.runs) else {}
    return {"num_cpus": 1, "max_retries": RETRIES} | gpu


def _there(runs: list[str], expected: dict[str, str]) -> Result:
    """Work off a unit on a worker, if that is one whose digits are those of the others."""
    found = versions()
    if found != expected:
        raise ValueError(f"a worker of the cluster has {_said(found)}; {_said(expected)} is expected.")
    unit = [Run.from_json(text) for text in runs]
    for run in unit:
        check_device(run.device)
    return work(unit)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Be connected to a cluster; a connection that was there before is taken and left."""
    import ray

    if ray.is_initialized():
        yield
        return
    if address not in (ANY, HERE):
        _knock(address)
    start: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == HERE:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        start |= {"include_dashboard": False, "object_store_memory": 2**27}
    try:
        ray.init(**start)
    except Exception as error:  # on a machine that is too slow Ray raises no narrower one
        said = str(error).splitlines()[0].rstrip(".")
        if address == HERE:
            raise ValueError(f"address is 'local', but Ray did not start here ({said}). Try again.") from None
        raise _nobody(address, said) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise ValueError where nobody listens; Ray itself would knock for many minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in host:
        raise ValueError(f"address is {address!r}; auto, local, or HOST:PORT is expected.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, str(error)) from None


def _nobody(address: str, said: str) -> ValueError:
    return ValueError(
        f"address is {address!r}, where no Ray cluster answers ({said}). Start one with `ray start --head`, "
        "or let --address local start one for this sweep."
    )


def _check_cluster(address: str, options: list[dict[str, Any]]) -> None:
    """Raise ValueError where units would wait for ever."""
    import ray

    has = ray.cluster_resources()
    for resource, name in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if any(own.get(name, 0) > has.get(resource, 0) for own in options):
            raise ValueError(f"address is {address!r}, a cluster without a {resource}, which the runs need.")


def _said(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {number}" for name, number in versions.items())


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"
