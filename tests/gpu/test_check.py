"""``make gpu-check`` with outer tools that are scripts: order and limits of the stages, what is left of them, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import processes
import pytest

from . import check, machine, stages

PROBE = {
    "python": "3.12.0",
    "packages": {name: "1.0" for name in machine.PACKAGES} | {"matplotlib": None, "xdist": None},
    "gpu": {"name": "NVIDIA H200", "capability": "9.0", "memory_mb": 143771},
}
NO_GPU = PROBE | {"gpu": None}

# One line to the log of the calls, then what the test wants of this program.
PYTHON = r"""#!/bin/sh
echo "python $*" >> "$CALLS"
case "$*" in
  *PACKAGES*|*importlib.metadata*) cat "$PROBE_FILE"; exit ;;
esac
for word in "$@"; do
  case "$word" in --junitxml=*) report="${word#--junitxml=}" ;; esac
done
for stage in $HANG; do
  case "$*" in *"$stage"*) echo "tests/x.py::test_a PASSED [ 50%]"; exec sleep 60 ;; esac
done
for stage in $FAIL; do
  case "$*" in
    *"$stage"*)
      echo "error: $stage does not work"
      if [ -n "$report" ]; then echo "$FAILED_REPORT" > "$report"; fi
      exit 1 ;;
  esac
done
if [ -n "$report" ]; then echo "$GOOD_REPORT" > "$report"; fi
case "$*" in
  *benchmarks.py*) cp "$ROWS" "$2/verify-nvidia-h200.csv" ;;
esac
exit 0
"""
SANITIZER = r"""#!/bin/sh
echo "compute-sanitizer $*" >> "$CALLS"
while [ $# -gt 0 ]; do
  case "$1" in --tool) tool="$2" ;; --log-file) log="$2" ;; esac
  shift
done
if [ "$tool" = "$FINDS" ]; then
  printf '========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n' > "$log"
  echo '=========     at walk_kernel' >> "$log"
  echo '========= ERROR SUMMARY: 1 error' >> "$log"
  exit 86
fi
printf '========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n' > "$log"
"""
GOOD_REPORT = (
    '<testsuites><testsuite><testcase classname="tests.x" name="test_a"/><testcase classname="tests.x" name="test_b">'
    "<skipped/></testcase></testsuite></testsuites>"
)
FAILED_REPORT = (
    '<testsuites><testsuite><testcase classname="tests.x" name="test_a"/><testcase classname="tests.agreement.test_edges" '
    'name="test_b[cuda]"><failure message="AssertionError: tokens differ&#10;more">long</failure></testcase></testsuite>'
    "</testsuites>"
)
ORDER = ["build", "import", "resources", "graphs", "tests-cuda", "bench"]
ORDER += ["memcheck", "racecheck", "initcheck", "tests-triton", "synccheck", "plots", "e2e", "serve"]


def row(**fields):
    from bench.rows import Row

    values = {"family": "verify", "op": "verify_match", "case": "T=1", "variant": "cuda", "dtype": "bfloat16"}
    return Row(**(values | {"accepted": "half", "shape": "64 requests x 8 nodes, V=151,936"} | fields))


@pytest.fixture
def gpu_check(tmp_path):
    """``gpu_check("--only", "build", FAIL="setup.py")`` gives the finished process; its results are in ``tmp_path/out``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    nothing = "#!/bin/sh\nexit 0\n"
    scripts = {
        "python": PYTHON,
        "compute-sanitizer": SANITIZER,
        "nvidia-smi": "#!/bin/sh\necho 'NVIDIA H200, 580.1'\n",
        "nvcc": "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n",
        **dict.fromkeys(("cmake", "ninja", "cuobjdump"), nothing),
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ("cat", "cp", "sleep"):  # nothing else of the machine is found
        (tools / name).symlink_to(shutil.which(name))
    rows = [
        row(
            time_us=30.0,
            needed_bytes=87_000_000,
            gb_per_s=2900.0,
            share_of_copy=0.72,
            speedup_over_eager=41.2,
            met=True,
        ),
        row(variant="triton", note="not available: nothing there", goal="<= 12 us", met=False),
    ]
    from bench.rows import Row, write_csv

    write_csv(Row, rows, tmp_path / "rows.csv")

    def run(*arguments, probe=PROBE, out=True, without=(), wait=True, **environment):
        for name in without:
            (tools / name).unlink()
        (tmp_path / "probe.json").write_text(json.dumps(probe) + "\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECDEC_", "CUDA"))}
        kept |= {"PATH": str(tools), "CALLS": str(tmp_path / "calls"), "ROWS": str(tmp_path / "rows.csv")}
        kept |= {"PROBE_FILE": str(tmp_path / "probe.json"), "CUDA_HOME": str(tmp_path / "nowhere")}
        kept |= {"GOOD_REPORT": GOOD_REPORT, "FAILED_REPORT": FAILED_REPORT, "HANG": "", "FAIL": "", "FINDS": ""}
        command = [sys.executable, "tests/gpu/check.py", "--python", str(tools / "python"), *arguments]
        command += ["--out", str(tmp_path / "out")] if out else []
        process = subprocess.Popen(
            command,
            cwd=processes.ROOT,
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    run.out = tmp_path / "out"
    run.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return run


def states(out):
    return {stage["name"]: stage["state"] for stage in json.loads((out / "stages.json").read_text())["stages"]}


def test_all_stages_pass_in_their_order(gpu_check):
    done = gpu_check()
    assert done.returncode == check.ALL_GOOD, done.stdout + done.stderr
    assert list(states(gpu_check.out)) == ORDER
    assert set(states(gpu_check.out).values()) == {"passed", "skipped"}  # there is no matplotlib
    calls = gpu_check.calls()
    assert [call.split()[2] for call in calls if "--tool" in call] == [
        "memcheck",
        "racecheck",
        "initcheck",
        "synccheck",
    ]
    text = (gpu_check.out / "summary.md").read_text()
    assert text.startswith("# gpu-check: NVIDIA H200\n\n13 of 14 stages passed; skipped: plots. ")
    for part in (
        "| compute capability, built for | 9.0, 90a |",
        "| driver | 580.1 |",
        "| nvcc | 13.0 |",
        "| tests-cuda | the whole test suite | passed |",
        "1 passed, 1 skipped",
        "| memcheck | compute-sanitizer memcheck: every op on cuda and triton | passed | 0 | ERROR SUMMARY: 0 errors |",
        "1 of 2 rows with goals meet them.",
        "| verify.match | T=1 | half | 64 requests x 8 nodes, V=151,936 | cuda | 30 | 2900 | 72 % | 41.2x | - | - | - | yes |",
        "- 1 rows, triton: not available: nothing there",
    ):
        assert part in text, text
    assert "## Failures" not in text


def test_the_build_is_for_this_gpu_and_nothing_is_installed(gpu_check):
    plan = stages.plan(machine.Machine("python3", gpu="x", capability="10.0"), gpu_check.out)
    build = plan[0]
    assert build.environment["SPECDEC_CUDA_ARCHS"] == "100a" and build.environment["SPECDEC_CUDA"] == "auto"
    assert build.command == ("python3", "setup.py", "build_ext", "--inplace")
    assert not [stage for stage in plan if "pip" in stage.command]


@pytest.mark.parametrize(("capability", "arch"), [("9.0", "90a"), ("10.0", "100a"), ("8.6", "86"), (None, "90a")])
def test_architectures_are_those_of_the_makefile(capability, arch, monkeypatch):
    monkeypatch.delenv("SPECDEC_CUDA_ARCHS", raising=False)
    assert machine.Machine("python3", capability=capability).arch == arch
    monkeypatch.setenv("SPECDEC_CUDA_ARCHS", "80;ptx")
    assert machine.Machine("python3", capability=capability).arch == "80;ptx"


def test_what_fails_stops_nothing_and_is_shown(gpu_check):
    done = gpu_check(FAIL="setup.py tests-cuda benchmarks.py", FINDS="racecheck")
    assert done.returncode == check.NOT_GOOD
    found = states(gpu_check.out)
    assert [name for name, state in found.items() if state == "failed"] == ["build", "tests-cuda", "bench", "racecheck"]
    assert found["tests-triton"] == found["synccheck"] == "passed"
    text = (gpu_check.out / "summary.md").read_text()
    failures = text[text.index("## Failures") :]
    assert "### build\n\n```\nerror: setup.py does not work\n```" in failures
    assert "### tests-cuda\n\n```\nagreement.test_edges::test_b[cuda]: AssertionError: tokens differ\n```" in failures
    assert "ERROR SUMMARY: 1 error\nInvalid __global__ write of size 4 bytes\n" in failures
    assert "| tests-cuda | the whole test suite | failed | 0 | 1 failed, 1 passed; exit code 1 |" in text


def test_what_hangs_is_stopped_and_the_next_has_its_turn(gpu_check):
    start = time.monotonic()
    done = gpu_check("--limit", "2", *only("tests-cuda", "bench"), HANG="tests-cuda")
    assert time.monotonic() - start < 30
    assert done.returncode == check.NOT_GOOD
    assert states(gpu_check.out) == {"tests-cuda": "timeout", "bench": "not run"}
    text = (gpu_check.out / "summary.md").read_text()
    assert re.search(r"\| timeout \| \d+ \| 1 passed, stopped before its end; stopped after \d+ s \|", text), text
    assert "no time was left" in text


def only(*names):
    return [word for name in names for word in ("--only", name)]


def test_a_stage_has_a_limit_of_its_own(tmp_path):
    from .run import Stage, run

    tmp_path.joinpath("x").mkdir()
    slow = Stage("slow", "sleeps", ("sh", "-c", "echo begun; sleep 60 & exec sleep 60"), limit=0.3)
    result = run(slow, tmp_path / "x", processes.ROOT, 100.0)
    assert (result.state, result.note) == ("timeout", "stopped after 0 s") and result.seconds < 30
    assert "begun" in (tmp_path / "x" / "slow.txt").read_text()
    assert run(Stage("next", "", ("true",)), tmp_path / "x", processes.ROOT, 100.0).state == "passed"
    lost = run(Stage("lost", "", ("/no/such/program",)), tmp_path / "x", processes.ROOT, 100.0)
    assert (lost.state, lost.note) == ("not run", "/no/such/program: No such file or directory")


def test_a_run_that_is_killed_leaves_what_it_had(gpu_check):
    process = gpu_check(*only("build", "tests-cuda", "bench"), HANG="tests-cuda", wait=False)
    deadline = time.monotonic() + 20
    while not ((gpu_check.out / "stages.json").exists() and states(gpu_check.out)["build"] == "passed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log = gpu_check.out / "tests-cuda.txt"
    while not (log.exists() and "PASSED" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = (gpu_check.out / "summary.md").read_text()
    assert "still to come: tests-cuda, bench" in before
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == check.NOT_GOOD
    assert states(gpu_check.out) == {"build": "passed", "tests-cuda": "not run", "bench": "not run"}
    assert "interrupted" in (gpu_check.out / "summary.md").read_text()


def test_without_a_gpu_it_says_so_and_checks_what_it_can(gpu_check):
    done = gpu_check(probe=NO_GPU, without=["nvidia-smi"])
    assert done.returncode == check.NO_GPU
    assert "no GPU: there is no CUDA device" in done.stdout
    found = states(gpu_check.out)
    passed = [name for name, state in found.items() if state == "passed"]
    assert passed == ["build", "import", "resources", "tests-host"]
    assert {found[name] for name in found if name not in passed} == {"not run"}
    text = (gpu_check.out / "summary.md").read_text()
    assert text.startswith("# gpu-check: no GPU\n\nno GPU: 4 of 12 stages passed; not run: graphs, ")
    assert "| GPU | none: there is no CUDA device |" in text
    [tests] = [call for call in gpu_check.calls() if "-m pytest" in call]
    assert "tests/gpu tests/dispatch" in tests and "--backend cpu" in tests


def test_a_torch_without_cuda_is_told_from_a_machine_without_a_gpu(gpu_check):
    done = gpu_check("--only", "build", probe=NO_GPU)
    assert "no GPU: torch sees no CUDA device, nvidia-smi says NVIDIA H200" in done.stdout


def test_missing_test_tools_leave_what_can_run(gpu_check):
    packages = PROBE["packages"] | dict.fromkeys(("pytest", "hypothesis", "scipy"))
    done = gpu_check(probe=PROBE | {"packages": packages}, without=["compute-sanitizer"])
    assert done.returncode == check.NOT_GOOD
    found = states(gpu_check.out)
    assert found["tests-cuda"] == found["tests-triton"] == found["memcheck"] == "not run"
    assert found["graphs"] == found["bench"] == "passed"
    assert [call for call in gpu_check.calls() if call.endswith("tests/gpu/calls.py replay without_sync")]
    text = (gpu_check.out / "summary.md").read_text()
    assert "- Without them no test runs: pytest, hypothesis (not installed)." in text
    assert "- Tests that import them fail: scipy (not installed)." in text
    assert "- Missing tools: compute-sanitizer (not installed)." in text
    assert "not installed: pytest, hypothesis" in text


def test_processes_share_a_test_run_where_the_plugin_is_installed(gpu_check):
    packages = PROBE["packages"] | {"xdist": "3.8"}
    gpu_check(*only("tests-cuda", "tests-triton"), "--jobs", "3", probe=PROBE | {"packages": packages})
    runs = [call for call in gpu_check.calls() if "-m pytest" in call]
    assert len(runs) == 2 and all("-n 3 --dist loadfile" in call for call in runs)
    assert "--backend cuda" in runs[0] and "--backend triton" in runs[1]


@pytest.mark.parametrize(("cores", "memory_gb", "number"), [(16, 80, 8), (2, 80, 1), (16, 16, 2), (1, 2, 1)])
def test_as_many_processes_as_cores_and_memory_allow(cores, memory_gb, number):
    made = machine.Machine("python3", packages=PROBE["packages"] | {"xdist": "3.8"}, gpu="x", cores=cores)
    made = replace(made, memory_mb=1024 * memory_gb)
    suite = next(stage for stage in stages.plan(made, processes.ROOT) if stage.name == "tests-cuda")
    assert (f"-n {number} " in " ".join(suite.command)) == (number > 1)
    assert int(suite.environment["OMP_NUM_THREADS"]) * number <= cores


def test_wrong_calls(gpu_check):
    done = gpu_check("--only", "speed")
    assert done.returncode == check.WRONG_CALL
    assert done.stderr == f"gpu-check: a stage must be one of {', '.join(ORDER)}, got 'speed'\n"
    assert gpu_check("--fast").returncode == check.WRONG_CALL
    assert gpu_check("--out", "/dev/null/x", out=False).returncode == check.WRONG_CALL


def test_the_folder_is_named_after_gpu_and_date():
    found = check.folder_for(machine.Machine("python3", gpu="NVIDIA H100 80GB HBM3"), None)
    assert re.fullmatch(r"nvidia-h100-80gb-hbm3-\d{4}-\d\d-\d\d", found.name)
    assert found.parent == processes.ROOT / "bench" / "results"


def test_everything_fits_in_nine_minutes():
    """What is shown first is what decides most: limits bound each stage, and all of them together."""
    assert stages.LIMIT + 10 < 9 * 60
    plan = stages.plan(machine.Machine("python3", gpu="x"), processes.ROOT)
    assert [stage.name for stage in plan] == ORDER
    assert all(0 < stage.limit <= 170 for stage in plan)
    # Before the first of the sanitizers there is time for all that comes before it.
    assert sum(stage.limit for stage in plan[: ORDER.index("bench")]) < stages.LIMIT


def test_make_hands_on_what_it_is_given():
    # A make that runs these tests has left its own in the environment.
    make = ["env", "-u", "MAKELEVEL", "-u", "PYTHON", "-u", "OUT", "-u", "GPU_CHECK_OPTIONS", "make", "-n", "gpu-check"]
    given = ["PYTHON=python9", "OUT=some/where", "GPU_CHECK_OPTIONS=--only bench"]
    done = processes.run(make + given, {"MAKEFLAGS": ""}, processes.ROOT)
    assert done.stdout.strip() == 'python9 tests/gpu/check.py --out "some/where" --only bench', done.stderr
    done = processes.run(make, {"MAKEFLAGS": ""}, processes.ROOT)
    assert done.stdout.strip() == "python3 tests/gpu/check.py"
