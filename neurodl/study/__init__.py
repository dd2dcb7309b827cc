"""Studies: a file that says what to analyse, and the results folder that it becomes."""

from neurodl.study.config import load_study, parse_study, write_study
from neurodl.study.reproduction import Reproduction, reproduce
from neurodl.study.run import run_study
from neurodl.study.script import analysis_script
from neurodl.study.sections import Study
from neurodl.study.sweep import load_sweep, plan, run_sweep

__all__ = [
    "Reproduction",
    "Study",
    "analysis_script",
    "load_study",
    "load_sweep",
    "parse_study",
    "plan",
    "reproduce",
    "run_study",
    "run_sweep",
    "write_study",
]
