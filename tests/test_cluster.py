"""cluster/slurm.sh, with stand-ins for SLURM's own commands."""

import os
import subprocess

import pytest
from commands import ROOT

SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "$CALLS"
[ "$1" != show ] || printf 'gpu-017\\ngpu-018\\n'
"""
SRUN = """#!/bin/sh
echo "srun $* at $MASTER_ADDR:$MASTER_PORT" >> "$CALLS"
exit "$STATUS"
"""


@pytest.mark.parametrize(("status", "again"), [(75, True), (0, False), (1, False), (2, False), (143, False)])
def test_a_job_whose_run_was_asked_to_stop_is_queued_again_and_no_other(tmp_path, status, again):
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "12"}
    env |= {"SLURM_JOB_NODELIST": "gpu-[017-018]", "CALLS": str(tmp_path / "calls"), "STATUS": str(status)}
    done = subprocess.run(["bash", ROOT / "cluster" / "slurm.sh", "--seed", "a b"], env=env, check=False)
    assert done.returncode == status
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "scontrol show hostnames gpu-[017-018]"
    assert "--resume auto --seed a b at gpu-017:20012" in calls[1]
    assert calls[2:] == (["scontrol requeue 12"] if again else [])
