"""The page of benchmarks.gpu: its record in words, as far as it was measured."""

import math

from benchmarks import table


def errors(found: dict) -> list[str]:
    """What could not be measured, and why."""
    return [f"not measured: {name}: {reason}" for name, reason in found.get("errors", {}).items()]


def of_tests(found: dict[str, list[str]] | None) -> list[str]:
    """What holds, and what does not."""
    if found is None:
        return ["The tests ended without results."]
    count = {name: len(sentences) for name, sentences in found.items()}
    lines = [f"Of {sum(count.values())} checks {count['hold']} hold, {count['do not hold']} do not, "
             f"{count['left out']} were left out."]  # fmt: skip
    lines += [f"  does not hold: {sentence}" for sentence in found["do not hold"]]
    return lines + [f"  left out: {sentence}" for sentence in found["left out"]]


def of_case(case: dict) -> list[str]:
    """A case in words and tables, as far as it was measured."""
    lines = ["", f"{case['title']}, {case['precision']}"]
    if "parts" in case:
        lines[-1] += f": {case['images/s']:,.0f} images/s"
        lines += table(case["parts"])
        lines.append("bytes allow: as if no cache held any; what fits into a GPU's (the loss's block of 17 MB into an "
                     "H100's) is faster")  # fmt: skip
    if case.get("launches"):
        busy = "the profiler recorded no work of the device"
        if case["busy"]:
            busy = f"the device works {100 * case['busy']:.0f} % of it"
        lines.append(f"{case['launches']} launches and copies a step; {busy}")
    if case.get("peak GB"):
        lines.append(f"at most {case['peak GB']:.2f} GB are held; computed: {case['computed peak GB']:.2f}")
    if "fed" in case:
        fed = case["fed"]
        lines.append(f"fed by {fed['workers']} loader processes from images in memory, {fed['batches']} batches: "
                     f"{fed['images/s']:,.0f} images/s, {100 * fed['waiting']:.0f} % of the host's time spent waiting "
                     "for a batch")  # fmt: skip
    if "forms" in case:
        times = case["forms"][-1]["times as fast"]
        lines += [f"{times:.2f} times as fast as the plain form, views finished beforehand:", *table(case["forms"])]
    lines += table(case["losses"]) if "losses" in case else []
    return lines + errors(case)


def to_set(record: dict) -> list[str]:
    """What to set on this machine, from what was measured."""
    lines, cores = [], record["machine"]["cores"] or 1
    for case in record["cases"]:
        said = []
        if "fed" in case and "images/s" in case:
            want = math.ceil(1.2 * case["images/s"] / case["fed"]["images/s a core"])
            said = [f"--num_workers {want} from raw packs"]
            if want > cores:
                said = [f"{want} loader processes would feed it, and there are {cores} cores: --num_workers {cores}"]
        if "forms" in case:
            faster = case["forms"][1]["ms"] / case["forms"][2]["ms"]
            said.append(
                f"--precision float32, since {case['precision']} is slower here" if faster < 1 else
                f"--precision auto is {case['precision']}, {faster:.2f} times as fast as float32"
            )  # fmt: skip
        lines += [f"  {case['title']}: {'; '.join(said)}"] if said else []
        if case.get("busy") and case["busy"] < 0.8:
            share = 100 * (1 - case["busy"])
            lines.append(f"    the device idles {share:.0f} % of a step: --compile, or more images a GPU")
    return ["", "To set on this machine:", *lines] if lines else []


def page(record: dict) -> str:
    """The record in words."""
    about = record["machine"]
    lines = [", ".join(f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in about.items())]  # fmt: skip
    if about["card"].startswith("none"):
        lines.insert(0, "This ran on a CPU to try the code: nothing about a GPU was measured.")
    lines += of_tests(record["tests"]) if "tests" in record else []
    if "rates" in record:
        lines += ["", "The card by itself: " + ", ".join(f"{name} {x:.4g}" for name, x in record["rates"].items())]
    for case in record["cases"]:
        lines += of_case(case)
    if record.get("several"):
        rows = sorted(record["several"], key=lambda row: row["scaling"])
        lines += ["", "Several GPUs, views finished beforehand, beside what benchmarks.scaling computes:", *table(rows)]
    return "\n".join([*lines, *errors(record), *to_set(record)])
