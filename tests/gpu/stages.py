"""What is run, in which order, and for how long. What decides most comes first, for the time may run out."""

from __future__ import annotations

from pathlib import Path

from .machine import NEEDED_BY_COMMANDS, NEEDED_BY_TESTS, Machine
from .run import Stage

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests") / "gpu"

#: Seconds for everything: under nine minutes.
LIMIT = 525.0

#: The sanitizer ends with this code where it has found something.
FOUND = 86

#: What each tool checks. `memcheck` sees every kernel; the others are too slow for that, and take those of the project.
TOOLS = {"memcheck": 50.0, "racecheck": 45.0, "initcheck": 40.0, "synccheck": 30.0}


def plan(machine: Machine, out: Path, *, bench: str = "quick", jobs: int | None = None) -> list[Stage]:
    """The stages for a machine.

    Args:
        machine: what there is.
        out: folder of the results.
        bench: ``quick`` or ``full``: the second takes as long as it takes, within its limit.
        jobs: processes of a test run, None: as many as make sense.
    """
    if machine.gpu is None:
        return [*_first(machine, out), _host_tests(machine, out), *_needing_a_gpu(machine)]
    suite, triton = (_suite(machine, out, backend, jobs) for backend in ("cuda", "triton"))
    memcheck, racecheck, initcheck, synccheck = (_sanitizer(machine, out, tool) for tool in TOOLS)
    measured = [_bench(machine, out, bench), _plots(machine, out)]
    checked = [memcheck, racecheck, initcheck]
    return [
        *_first(machine, out),
        _device(machine, out),
        suite,
        *measured[:1],
        *checked,
        triton,
        synccheck,
        *measured[1:],
        *_decoding(machine, out),
    ]


def _environment(**more: str) -> dict[str, str]:
    """The checkout is used where it lies: nothing is installed."""
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1", **more}


def _python(machine: Machine, *arguments: str | Path) -> tuple[str, ...]:
    return (machine.python, *map(str, arguments))


def _first(machine: Machine, out: Path) -> list[Stage]:
    """Build, import, and what the compiler made of the kernels."""
    lacking = machine.lacks(("torch", "setuptools"))
    cmake = None if machine.tools.get("cmake") else "there is no cmake"
    building = {
        "SPECDEC_CUDA": "auto",
        "SPECDEC_CUDA_ARCHS": machine.arch,
        "SPECDEC_BUILD_DIR": str(ROOT / "build" / "gpu-check"),
        "MAX_JOBS": str(machine.cores),
        # A build removes the modules that it does not make; that of the emulator stays where it was, for later test runs.
        "SPECDEC_EMULATOR": str(int((ROOT / "specdec_kernels" / "_C_emulated.abi3.so").exists())),
    }
    nvcc = "" if machine.tools.get("nvcc") else ", without the CUDA module: there is no nvcc"
    build = Stage(
        "build",
        f"the modules for {machine.arch}, in place{nvcc}",
        _python(machine, "setup.py", "build_ext", "--inplace"),
        limit=170,
        environment=_environment(**building),
        missing=f"there is no {lacking[0]}" if lacking else cmake,
    )
    module = ROOT / "specdec_kernels" / "_C_cuda.abi3.so"
    needed = ["_C"] + ([] if nvcc else ["_C_cuda"])
    imported = Stage(
        "import",
        "the package, and which backend serves which op",
        _python(machine, HERE / "backends.py", out / "backends.json", *needed),
        limit=60,
        environment=_environment(),
    )
    cuobjdump = machine.tools.get("cuobjdump")
    resources = Stage(
        "resources",
        "registers, stack and shared memory of each kernel",
        _python(machine, HERE / "resources.py", cuobjdump or "", module, out / "resources.csv"),
        limit=30,
        missing=None if cuobjdump else "there is no cuobjdump",
        optional=True,
    )
    return [build, imported, resources]


def _pytest(machine: Machine, out: Path, name: str, *arguments: str | Path, jobs: int = 1) -> tuple[str, ...]:
    """A test run that says each result as it comes, goes on after what cannot be imported, and ends with a JUnit file."""
    spread = ("-n", str(jobs), "--dist", "loadfile") if jobs > 1 else ()
    always = ("-vv", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu.selection", "--continue-on-collection-errors")
    report = (f"--junitxml={out / name}.xml", "-o", f"junit_suite_name={name}")
    return _python(machine, "-m", "pytest", *arguments, *always, *report, *spread)


def _without(machine: Machine) -> str | None:
    lacking = machine.lacks(NEEDED_BY_TESTS)
    return f"not installed: {', '.join(lacking)}" if lacking else None


def _suite(machine: Machine, out: Path, backend: str, jobs: int | None) -> Stage:
    """The whole suite on ``cuda``; on ``triton`` the tests that take a backend, for the others have run."""
    name = f"tests-{backend}"
    missing = _without(machine)
    if backend == "triton" and missing is None and not machine.packages.get("triton"):
        missing = "not installed: triton"
    # Each process has a context of its own on the GPU, about half a gigabyte, and tensors of megabytes; a few need gigabytes.
    fitting = max(1, min(8, machine.cores // 2, (machine.memory_mb or 0) // 6144))
    number = (jobs or fitting) if machine.packages.get("xdist") else 1
    return Stage(
        name,
        "the whole test suite" if backend == "cuda" else "the tests that take a backend",
        # The stage `graphs` has run what is left out.
        _pytest(machine, out, name, "tests", f"--ignore={HERE / 'test_device.py'}", "--backend", backend, jobs=number),
        limit=170 if backend == "cuda" else 100,
        # Processes that all want all cores would wait for each other.
        environment=_environment(OMP_NUM_THREADS=str(max(1, machine.cores // number))),
        missing=missing,
    )


def _device(machine: Machine, out: Path) -> Stage:
    """By pytest, and where there is none by the program behind the tests."""
    what = "CUDA graphs with changed device lengths, no synchronisation, every op"
    if _without(machine) is None:
        command = _pytest(machine, out, "graphs", HERE / "test_device.py")
    else:
        command = _python(machine, HERE / "calls.py", "replay", "without_sync")
    return Stage("graphs", what, command, limit=70, environment=_environment())


def _sanitizer(machine: Machine, out: Path, tool: str) -> Stage:
    path = machine.tools.get("compute-sanitizer")
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20", "--report-api-errors", "no"]
    options += ["--log-file", str(out / f"{tool}-log.txt")]
    on = "cuda and triton"
    program = _python(machine, HERE / "calls.py", "once")
    if tool != "memcheck":
        on = "cuda"
        options += ["--kernel-regex", "kns=specdec"]
        program += ("--backend", "cuda")
    return Stage(
        tool,
        f"compute-sanitizer {tool}: every op on {on}",
        (path or "compute-sanitizer", *options, *program),
        limit=TOOLS[tool],
        # Every tensor is an allocation of its own, so that its end is seen.
        environment=_environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        missing=None if path else "there is no compute-sanitizer",
    )


def _bench(machine: Machine, out: Path, bench: str) -> Stage:
    quick = ("--quick",) if bench == "quick" else ()
    return Stage(
        "bench",
        f"GPU benchmarks, {bench}",
        _python(machine, HERE / "benchmarks.py", out, *quick),
        limit=130 if bench == "quick" else 400,
        environment=_environment(),
    )


def _plots(machine: Machine, out: Path) -> Stage:
    missing = None if machine.packages.get("matplotlib") else "not installed: matplotlib"
    command = _python(machine, "-m", "bench.plots", out, out)
    return Stage(
        "plots", "pictures of the rows", command, 30, _environment(), missing=missing, optional=True, reserve=12
    )


def _decoding(machine: Machine, out: Path) -> list[Stage]:
    """What drafts gain on a large shape, and what the overlapped loop gains: there is time left for it, or there is not."""
    lacking = machine.lacks(NEEDED_BY_COMMANDS)
    missing = f"not installed: {', '.join(lacking)}" if lacking else None
    command = _python(machine, "-m", "bench")
    shape = ("e2e", "--shape", "qwen3-8b", "--drafter", "dflash", "--num-draft", "15", "--acceptance", "4.3,6.5")
    load = ("serve", "--drafter", "none,dflash", "--max-batch", "1,16", "--rate", "inf", "--requests", "16")
    stages = []
    for what, words, options in (
        ("Qwen3-8B with DFlash: predicted and measured speed-up", shape, ("--repeats", "3")),
        ("the plain and the overlapped loop", load, ()),
    ):
        files = ("--json", str(out / f"{words[0]}.json"), "--csv", str(out / f"{words[0]}.csv"))
        stages.append(
            Stage(
                words[0],
                what,
                (*command, *words, *options, "--device", "cuda", *files),
                60,
                _environment(),
                missing=missing,
                optional=True,
            )
        )
    return stages


def _host_tests(machine: Machine, out: Path) -> Stage:
    """What of the tests says something about this program and about the ops without a GPU."""
    chosen = (HERE, "tests/dispatch", "tests/benchmarks/test_gpu.py", "--backend", "cpu")
    return Stage(
        "tests-host",
        "this program, the fake kernels and the registration",
        _pytest(machine, out, "tests-host", *chosen),
        limit=300,
        environment=_environment(),
        missing=_without(machine),
    )


def _needing_a_gpu(machine: Machine) -> list[Stage]:
    names = ("graphs", "tests-cuda", "bench", *list(TOOLS)[:3], "tests-triton", "synccheck")
    return [Stage(name, "needs a GPU", missing=machine.no_gpu) for name in names]
