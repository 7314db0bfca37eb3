"""The result of `measure` as text."""

GIB = 2**30
SHOWN = 8
ADVISED_SHARE = 0.9  # of HBM; the rest is for what a run holds beside its step

LEFT_OUT = """\
Left out: the time of transfers between chips (collectives above), of the input pipeline and of the host, and what the
chip overlaps; the cycles are what the compiler estimates. Utilisation is a bound: a chip will not do better than its
operations allow, and may do worse."""


def lines(report: dict) -> list[str]:
    """What `plan` prints."""
    out = [_headline(report), ""]
    out += _memory(report)
    out += ["", f"model FLOPs per step  {report['model_flops']:.4g}  (global batch {report['global_batch']})"]
    out += _speed(report)
    out += _collectives(report)
    out += [
        "",
        f"compiled in {report['compile_seconds']:.0f} s, peak memory of the compiler "
        f"{report['compiler_peak_bytes'] / GIB:.1f} GiB",
    ]
    out += [f"note: {note}" for note in report["notes"]]
    return [*out, "", *LEFT_OUT.splitlines()]


def gib(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"


def _headline(report: dict) -> str:
    total, capacity = report["hbm_bytes"]["total"], report["hbm_capacity_bytes"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    where = f"{report['topology']} ({report['devices']} devices, {mesh})"
    if report["fits"] is None:
        return f"{where}: needs {gib(total)} per device; what a CPU may use is up to the machine"
    if not report["fits"]:
        return (
            f"{where}: DOES NOT FIT: needs {gib(total)} of {gib(capacity)} per device, {gib(total - capacity)} too much"
        )
    room = "" if total <= ADVISED_SHARE * capacity else f"; above the {ADVISED_SHARE:.0%} that leaves room for a run"
    return f"{where}: fits: {gib(total)} of {gib(capacity)} per device ({total / capacity:.0%}){room}"


def _memory(report: dict) -> list[str]:
    names = {
        "params": "parameters",
        "optimizer": "optimizer (and average)",
        "activations": "activations, gradients, scratch",
        "code": "program",
        "batch": "batch, padding",
        "total": "total",
    }
    rows = [(names[kind], count) for kind, count in report["hbm_bytes"].items() if count is not None]
    return ["memory per device", *(f"  {name:<32} {gib(count):>12}" for name, count in rows)]


def _speed(report: dict) -> list[str]:
    seconds = report["op_cycle_seconds"]
    if seconds is None:
        return ["op cycles           none: not a TPU, or the program could not be read; no bound on utilisation"]
    out = [
        f"op cycles           {seconds:.4g} s per step → at most {report['global_batch'] / seconds:.0f} images/s",
        f"utilisation         at most {report['utilization_bound']:.1%} of the bf16 peak",
        "",
        "where the cycles go",
        *(f"  {row['seconds'] / seconds:6.1%}  {row['where']}" for row in report["places"][:SHOWN]),
        "",
        "largest operations (all executions)",
        *(
            f"  {row['seconds'] / seconds:6.1%}  {row['count']:>4} × {row['opcode']} {row['name']} in {row['where']}"
            for row in report["largest_operations"][:SHOWN]
        ),
    ]
    return out + _charged(report)


def _charged(report: dict) -> list[str]:
    """Operations for which the compiler gives no estimate."""
    rows, seconds = report["without_estimate"], report["op_cycle_seconds"]
    share = sum(row["seconds"] for row in rows) / seconds
    out = ["", f"without an estimate of the compiler: {share:.1%}, charged 2 × max(FLOPs/peak, bytes/bandwidth)"]
    shown = [row for row in rows if row["flops"] is None or row["seconds"] > 0.001 * seconds]
    for row in shown:
        unknown = "  FLOPs unknown: charged its bytes alone, may cost more" if row["flops"] is None else ""
        out.append(f"  {row['seconds'] / seconds:6.1%}  {row['count']:>4} × {row['opcode']} in {row['where']}{unknown}")
    if loops := report["unread_loops"]:
        out.append(f"  loops whose trip count is unknown, charged once: {', '.join(loops)}")
    return out


def _collectives(report: dict) -> list[str]:
    rows = report["collectives"]
    if not rows:
        return []
    return [
        "",
        "between devices, per step (bytes on one device)",
        *(f"  {row['kind']:<20} {row['count']:>6} ×  {gib(row['bytes']):>12}" for row in rows),
    ]
