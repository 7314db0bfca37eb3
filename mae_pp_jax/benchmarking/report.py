"""Times as figures: a dict for JSON, and lines for people."""

import datetime

import jax
import numpy as np

from mae_pp_jax.benchmarking.train_step import FedTimes, StepTimes
from mae_pp_jax.core import hardware
from mae_pp_jax.core.program import Program


def setting(program: Program, config: str) -> dict:
    """What was timed, on what, and when."""
    device = program.mesh.devices.flat[0]
    return dict(
        config=config,
        stage=program.stage.config.stage,
        example=program.stage.example,
        global_batch=program.stage.config.global_batch,
        device=device.device_kind,
        devices=program.mesh.size,
        mesh=dict(program.mesh.shape),
        jax=jax.__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def step(program: Program, times: StepTimes) -> dict:
    """Figures of the step on a batch that stays on the devices.

    Returns:
      examples_per_second: of all devices, by the median.
      seconds: median, p10 and p90 of the time of a step, each the mean of `window_steps` steps; of `windows` means.
      model_flops: matrix products of one step, forward and backward; what remat computes again is not counted.
      utilization: their share of the devices' bf16 peak, None where the peak is not known.
      compile_seconds: of the step, compiled anew.
      peak_bytes: largest memory in use on one device, None where it does not tell.
    """
    median, low, high = (float(q) for q in np.quantile(times.seconds, (0.5, 0.1, 0.9)))
    flops = program.stage.train_flops_per_example() * program.stage.config.global_batch
    peak = hardware.peak_flops(program.mesh.devices.flat[0])
    return dict(
        examples_per_second=program.stage.config.global_batch / median,
        seconds=dict(median=median, p10=low, p90=high),
        windows=len(times.seconds),
        window_steps=times.window_steps,
        model_flops=flops,
        tflops_per_second=flops / median / 1e12,
        utilization=flops / (median * peak * program.mesh.size) if peak else None,
        compile_seconds=times.compile_seconds,
        peak_bytes=times.peak_bytes,
    )


def input_alone(program: Program, seconds: np.ndarray, cores: int) -> dict:
    """Figures of this host's input with nothing else running: seconds [batches] of each of its batches."""
    rate = program.stage.config.global_batch / program.stage.reader[1] * len(seconds) / float(np.sum(seconds))
    return dict(examples_per_second=rate, cores=cores, examples_per_second_per_core=rate / cores)


def together(program: Program, times: FedTimes) -> dict:
    """Figures of steps fed by the input. `stall_share`: part of the time in which the devices waited for a batch."""
    total = float(np.sum(times.seconds))
    return dict(
        examples_per_second=program.stage.config.global_batch * len(times.seconds) / total,
        stall_share=float(np.sum(times.stalls)) / total,
    )


def lines(found: dict) -> list[str]:
    """The figures for people; `found` holds `setting` and, by name, what the functions above return."""
    alone, unit = found["step"], found["example"] + "s"
    median, low, high = (f"{1e3 * alone['seconds'][name]:,.4g}" for name in ("median", "p10", "p90"))
    peak = "" if alone["utilization"] is None else f", {alone['utilization']:.1%} of the bf16 peak"
    memory = f"{alone['peak_bytes'] / 2**30:.2f} GiB per device" if alone["peak_bytes"] else "the device does not tell"
    rows = {
        "step": f"{alone['examples_per_second']:,.4g} {unit}/s",
        "time of a step": f"{median} ms (p10 {low}, p90 {high}, of {alone['windows']} × {alone['window_steps']} steps)",
        "matmuls": f"{alone['tflops_per_second']:.3g} TFLOP/s{peak}",
        "compiled in": f"{alone['compile_seconds']:.1f} s",
        "peak memory": memory,
    }
    if "input" in found:
        feed, both = found["input"], found["together"]
        each = f"{feed['examples_per_second_per_core']:,.4g} on each of {feed['cores']} cores"
        each += f", of process 0 of {jax.process_count()}" if jax.process_count() > 1 else ""
        rows |= {
            "input": f"{feed['examples_per_second']:,.4g} {unit}/s, {each}",
            "step and input": f"{both['examples_per_second']:,.4g} {unit}/s, waits {both['stall_share']:.1%} of the time",
        }
    device = f"{found['devices']} × {found['device']}, jax {found['jax']}, {found['date']}"
    head = f"{found['stage']}, {found['global_batch']} {unit} per step, {device}"
    return [head, *(f"  {name:<15} {text}" for name, text in rows.items())]
