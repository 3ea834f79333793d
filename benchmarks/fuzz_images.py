"""Decode thousands of damaged pictures in a watched child process: each is pixels or an `ImageError`, or is counted.

    python benchmarks/fuzz_images.py --count 10000 --seed 0

A crash, a hang (over 2 s for one picture) or any other exception is located by its index; `mutated(index, seed)` of
tests/mutations.py gives the bytes again. Exit code 1 where there was one. Writes benchmarks/results/fuzz_images.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
HANG_SECONDS = 2.0
START_SECONDS = 60.0  # imports and the warming up of a child


def resident_mib(field: str = "VmRSS") -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM at its highest."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def decode_all(start: int, count: int, seed: int) -> None:
    """The child: one line of JSON before each picture and one after it."""
    from mutations import mutated, pictures

    from mmembed.errors import ImageError
    from mmembed.images import open_image

    warnings.simplefilter("ignore")
    for _ in range(3):  # caches and the allocator's pools belong to no mutation
        for data in pictures().values():
            open_image(data)
    print(json.dumps({"resident": resident_mib()}), flush=True)
    for index in range(start, count):
        name, kind, data = mutated(index, seed)
        print(json.dumps({"index": index, "name": name, "kind": kind}), flush=True)
        begun = time.perf_counter()
        try:
            rgb, info = open_image(data)
            good = rgb.dtype.name == "uint8" and rgb.shape == (info.size[1], info.size[0], 3)
            outcome, reason = ("ok", "") if good and rgb.flags.c_contiguous else ("other", f"{rgb.dtype} {rgb.shape}")
        except ImageError as error:
            outcome, reason = "ImageError", str(error).partition(": ")[2]
            if re.search(r"\b0x[0-9a-f]{6}", reason):
                outcome = "leaks an address"
        except BaseException as error:  # what must not happen, and is to be counted
            outcome, reason = "other", repr(error)
        seconds = time.perf_counter() - begun
        line = {"outcome": outcome, "reason": reason, "seconds": seconds, "resident": resident_mib()}
        print(json.dumps(line | {"peak": resident_mib("VmHWM")}), flush=True)


class Child:
    """A decoding process and its lines, each waited for no longer than asked."""

    def __init__(self, start: int, count: int, seed: int):
        command = [sys.executable, __file__, "--child", str(start), "--count", str(count), "--seed", str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # libtiff chatters
        assert self.process.stdout is not None
        self.pipe, self.pending = self.process.stdout.fileno(), b""

    def line(self, seconds: float) -> dict | None:
        """The next line; {} at the end of the process; None when the time is over."""
        until = time.monotonic() + seconds
        while b"\n" not in self.pending:
            if not select.select([self.pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            if not (read := os.read(self.pipe, 65536)):
                return {}
            self.pending += read
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)

    def end(self) -> int:
        self.process.kill()
        self.process.communicate()
        return self.process.returncode


def short_reason(reason: str) -> str:
    """A reason less its numbers and bytes, to count alike what is alike."""
    reason = re.sub(r"begins b(['\"]).*$", "begins ...", reason, flags=re.DOTALL)
    reason = re.sub(r"b(['\"]).*?\1|'.*?'", "...", reason)
    return re.sub(r"-?\d[\d.e+-]*", "N", reason)[:100]


def fuzz(count: int, seed: int) -> dict:
    """Decode `count` damaged pictures and count what came of them."""
    outcomes: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad: list[dict] = []
    begun, slowest, growth, peak, children, index = time.monotonic(), {"seconds": 0.0}, 0.0, 0.0, 0, 0
    while index < count:
        child = Child(index, count, seed)
        children += 1
        first = child.line(START_SECONDS)
        if not first:
            raise SystemExit("the decoding process does not start")
        while index < count:
            case = child.line(START_SECONDS) or {"index": index, "name": "?", "kind": "?"}
            result = child.line(HANG_SECONDS)
            if not result:
                code = None if result is None else child.process.wait()
                result = {"outcome": "hang" if result is None else "crash", "reason": f"exit code {code}"}
            index = case["index"] + 1
            outcomes[result["outcome"]] += 1
            by_kind[case["kind"]][result["outcome"]] += 1
            if result["outcome"] == "ImageError":
                reasons[short_reason(result["reason"])] += 1
            elif result["outcome"] != "ok":
                bad.append(case | result)
            if "seconds" not in result:
                break
            growth = max(growth, result["resident"] - first["resident"])
            peak = max(peak, result["peak"] - first["resident"])
            slowest = max(slowest, case | {"seconds": result["seconds"]}, key=lambda one: one["seconds"])
        child.end()
    return {
        "count": count,
        "seed": seed,
        "outcomes": dict(outcomes),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "reasons": dict(reasons.most_common()),
        "bad": bad,
        "slowest": slowest,
        "resident_growth_mib": round(growth, 1),
        "peak_over_start_mib": round(peak, 1),
        "processes": children,
        "wall_seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fuzz_images.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        decode_all(args.child, args.count, args.seed)
        return 0
    found = fuzz(args.count, args.seed)
    columns = sorted(found["outcomes"], key=lambda outcome: -found["outcomes"][outcome])
    print(f"{'damage':18}" + "".join(f"{column:>12}" for column in columns))
    for kind, counts in found["by_kind"].items():
        print(f"{kind:18}" + "".join(f"{counts.get(column, 0):12}" for column in columns))
    print(f"{'all':18}" + "".join(f"{found['outcomes'][column]:12}" for column in columns))
    for reason, times in list(found["reasons"].items())[:15]:
        print(f"{times:6}  {reason}")
    for case in found["bad"]:
        print("BAD", case)
    print({key: found[key] for key in ("slowest", "resident_growth_mib", "peak_over_start_mib", "wall_seconds")})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
